"""`superclip words`: what the head sees in pictures and where, and what a wrong picture or model is told."""

import asyncio
import base64
import html
import importlib.util
import io
import json
import random
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import EpsImagePlugin, Image
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from support import GOLDEN
from support.browser import dumped, evaluated, needs_browser, num_pixels_outside
from support.models import VOCAB_SIZE, write_model
from support.training_runs import run_ranks, superclip_train
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import openclip_superclip as superclip
from openclip_superclip.__main__ import main
from openclip_superclip.data.images import load_image
from openclip_superclip.method.patch_tokens import encode_image, patch_map, patch_tokens
from openclip_superclip.words.lexicon import Lexicon, lexicon, open_lexicon
from openclip_superclip.words.server import MAX_BYTES, MAX_UPLOADS, bind, loopback_names, serve, words_app
from openclip_superclip.words.tag_images import find_images, tag_images, unfinished_words
from openclip_superclip.words.tagger import Shares, Tagger, open_with_head

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 170, 60), "yellow": (240, 220, 40)}
CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row, column of a quarter
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": 64}
COCA = {"attn_pooler_queries": 5, "attn_pooler_heads": 2, "attentional_pool": True, "output_tokens": True}
TOWERS = {
    "ViT": {},
    "ViT, mean": {"pool_type": "avg", "final_ln_after_pool": True},
    "ViT, attentional pool": {"attentional_pool": "parallel", "attn_pooler_queries": 5, "attn_pooler_heads": 2},
    "oblong ViT": {"image_size": [32, 48]},
    "ResNet": RESNET,
    "timm ViT": {"timm_model_name": "test_vit", "image_size": 160},
    "timm ConvNeXt": {"timm_model_name": "test_convnext", "image_size": 64},
}  # fmt: skip


def words(*argv) -> int:
    return main(["words", *map(str, argv)])


def squares(placed: dict[str, tuple[int, int]], size: int = 32) -> Image.Image:
    """A picture of coloured squares, each in its quarter."""
    image, half = Image.new("RGB", (size, size), (235, 235, 235)), size // 2
    for name, (row, column) in placed.items():
        box = (column * half + 2, row * half + 2, (column + 1) * half - 2, (row + 1) * half - 2)
        image.paste(COLOURS[name], box)
    return image


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The checkpoint of a SuperCLIP that has learned the names of colours: each caption names a picture's squares."""
    folder = tmp_path_factory.mktemp("trained")
    rng, rows = random.Random(0), ["filepath\ttitle"]
    for index in range(256):
        num_squares = rng.choice([1, 2])
        placed = dict(zip(rng.sample(list(COLOURS), num_squares), rng.sample(CORNERS, num_squares), strict=True))
        squares(placed).save(folder / f"{index}.png")
        rows.append(f"{folder}/{index}.png\t{' '.join(placed)}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    (run,) = run_ranks(
        superclip_train, "--model", write_model(folder / "model", text={"layers": 1}), "--superclip",
        "--train-data", folder / "train.csv", "--dataset-type", "csv", "--batch-size", 32, "--epochs", 6,
        "--workers", 0, "--lr", 3e-3, "--warmup", 5, "--device", "cpu", "--precision", "fp32", "--name", "run",
        "--save-frequency", 6, cwd=folder,
    )  # fmt: skip
    assert run.returncode == 0, run.output[-3000:]
    return folder / "logs" / "run" / "checkpoints" / "epoch_6.pt"


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", str(trained), "--out", str(out), "--with-head"]) == 0
    return out


@pytest.fixture
def picture(tmp_path) -> Path:
    squares({"red": (0, 0), "blue": (1, 1)}).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def save(model: torch.nn.Module, config: Path) -> None:
    """Puts weights beside a configuration that `write_model` wrote."""
    torch.save(model.state_dict(), config / "open_clip_pytorch_model.bin")


# What is seen


def test_the_head_names_the_colours_of_a_picture_and_the_quarters_where_they_are(trained):
    tagger = Tagger(open_with_head(trained), None, 2)
    placed = [{"red": (0, 0), "blue": (1, 1)}, {"yellow": (1, 0), "green": (0, 1)}, {"blue": (0, 0), "green": (1, 0)}]
    for where, seen in zip(placed, tagger.tag([squares(where) for where in placed]), strict=True):
        assert {word.word for word in seen} == where.keys()
        for word in seen:
            place = word.map.argmax().item()
            row, column = divmod(place, word.map.shape[1])
            assert (row // 2, column // 2) == where[word.word]


def test_run_checkpoint_and_export_print_the_same_table_with_the_score_that_the_head_computes(
    trained, exported, picture, capsys
):
    printed = []
    for model in (trained, exported, trained.parents[1]):
        assert words(picture, "--model", model, "--words", "red,blue,moon", "--top", 2) == 0
        printed.append(capsys.readouterr().out)
    assert printed == printed[:1] * 3
    opened = open_with_head(trained)
    model, image = opened.model, opened.preprocess()(Image.open(picture))[None]
    _, patch_mean = encode_image(model.visual, model.patch_tokens, image)
    probabilities = model.class_head.logits(patch_mean)[0].softmax(dim=0)
    red, blue = (probabilities[opened.tokenizer.encode(name)[0]].item() for name in ("red", "blue"))
    assert set(re.findall(r"\| (\w+) \| (\S+) \|", printed[0])) == {
        ("word", "score"), ("red", f"{red:.1%}"), ("blue", f"{blue:.1%}")
    }  # fmt: skip


@pytest.mark.parametrize("vision_cfg", TOWERS.values(), ids=TOWERS.keys())
def test_every_tower_has_patches_to_look_at_whose_mean_is_what_the_head_was_trained_on(vision_cfg, tmp_path, capsys):
    base = {} if "timm_model_name" in vision_cfg or vision_cfg is RESNET else {"layers": 1, "width": 32}
    config = write_model(tmp_path / "model", text={"layers": 1})
    file = tmp_path / "model" / "open_clip_config.json"
    cfg = json.loads(file.read_text())
    native = cfg["model_cfg"]["vision_cfg"] | base if base else {}
    cfg["model_cfg"]["vision_cfg"] = native | vision_cfg
    file.write_text(json.dumps(cfg))
    torch.manual_seed(0)
    model, _, preprocess = superclip.create_model_and_transforms(config)
    model.statistics.update(open_clip.get_tokenizer(config)(["a cat", "a red dog", "the moon"]))
    save(model, tmp_path / "model")

    image = squares({"red": (0, 0)}, 96)
    visual, tokens = model.eval().visual, patch_tokens(model.visual)
    with torch.no_grad():
        map = patch_map(visual, tokens, preprocess(image)[None])
        _, mean = encode_image(visual, tokens, preprocess(image)[None])
    torch.testing.assert_close(map.mean(dim=(2, 3)), mean)
    image.save(tmp_path / "picture.png")
    assert words(tmp_path / "picture.png", "--model", tmp_path / "model", "--words", "cat,moon", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert {word["word"] for word in json.loads(line)["words"]} == {"cat", "moon"}


def test_cocas_tower_has_patches_too(tmp_path, picture, capsys):
    multimodal = {"context_length": 20, "vocab_size": VOCAB_SIZE, "width": 32, "heads": 2, "layers": 1}
    config = write_model(
        tmp_path / "coca", vision=COCA, text={"embed_cls": True}, custom_text=True, multimodal_cfg=multimodal
    )
    save(superclip.create_model_and_transforms(config)[0], tmp_path / "coca")
    assert words(picture, "--model", tmp_path / "coca", "--top", 3) == 0
    assert len(re.findall(r"^\| \w+ \| \d", capsys.readouterr().out, re.MULTILINE)) == 3


def test_an_import_from_the_authors_opens(tmp_path, picture, capsys):
    """Their tiny model knows 300 tokens: bytes and letters of CLIP's vocabulary, and no word is of these alone."""
    config = tmp_path / "authors.json"
    config.write_text((GOLDEN / "reference_tiny.json").read_text())
    assert main(["import", str(GOLDEN / "reference_tiny.pt"), "--model", str(config), "--out", f"{tmp_path}/in"]) == 0
    assert words(picture, "--model", tmp_path / "in", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]).keys() == {"image", "words"}


# Words and tokens


@pytest.fixture(scope="module")
def tokenizer():
    return open_clip.get_tokenizer("ViT-B-32")


def test_the_lexicon_is_clips_whole_words(tokenizer):
    lexicon = open_lexicon(tokenizer, 49408)
    assert {"cat", "hamburger", "butterfly"} <= set(lexicon.words)
    assert len(lexicon.words) > 30_000
    assert lexicon.tokens.tolist() == [tokenizer.encode(word) for word in lexicon.words]  # each one token


def test_a_word_of_several_tokens_is_what_its_scarcest_token_allows(tokenizer):
    """Its share is Σ p where they stand in proportion to their weights; a token that every caption holds is mute."""
    p, w = torch.zeros(49408), torch.full((49408,), 2.0)
    (cat,), (red,), (the,) = map(tokenizer.encode, ("cat", "red", "the"))
    p[cat], p[red], p[the] = 0.3, 0.2, 0.0
    w[cat], w[the] = 1.0, 0.0
    shares = Shares(lexicon(["cat", "red", "red cat", "the red cat", "cat cat", "dog", "the"], tokenizer, 49408), w)
    expected = [0.3, 0.2, 0.1 * 3, 0.1 * 3, 0.3, 0.0, 0.0]
    torch.testing.assert_close(shares.of(p), torch.tensor(expected))
    torch.testing.assert_close(shares.of(torch.stack([p, 0 * p])), torch.tensor([expected, [0.0] * 7]))


def test_tokens_join_to_the_longest_word_that_is_seen_in_one_place():
    """A vocabulary of parts: what hamburger takes is not left to burger, and two places make no melrose."""
    vocabulary = ["ham", "bur", "ger</w>", "mel", "on</w>", "rose</w>"]
    ham, bur, ger, mel, on, rose = range(6)
    spelled = {"hamburger": [ham, bur, ger], "burger": [bur, ger], "melon": [mel, on], "melrose": [mel, rose]}
    spelled["rose"] = [rose]
    tokens = torch.tensor([[*ids, *[6] * (3 - len(ids))] for ids in spelled.values()])
    shares = Shares(Lexicon(list(spelled), tokens, len(vocabulary)), torch.ones(6))
    at_patches = torch.tensor([[0.3, 0.3, 0.4, 0.0, 0.0, 0.0], [0.0] * 3 + [0.5, 0.5, 0.0], [0.0] * 5 + [1.0]])
    pooled = torch.tensor([0.15, 0.2, 0.2, 0.1, 0.1, 0.25])
    found = shares.divide(pooled, at_patches, top=4)
    assert [list(spelled)[word] for word in found] == ["hamburger", "rose", "melon", "burger"]
    assert list(found.values()) == pytest.approx([0.45, 0.25, 0.2, 0.1])


def test_a_hugging_face_tokenizers_words_are_its_own_and_those_that_it_spells_in_parts(tmp_path):
    pieces = ["[PAD]", "[UNK]", "cat", "sun", "##flower", "flower", "ab"]
    inner = Tokenizer(WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path)
    found = open_lexicon(HFTokenizer(str(tmp_path), context_length=8), len(pieces))
    spelled = {word: [id for id in row if id < 7] for word, row in zip(found.words, found.tokens.tolist(), strict=True)}
    assert spelled == {"cat": [2], "sun": [3], "flower": [5], "sunflower": [3, 4]}


# What is written


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two pictures, one of them upright only by its EXIF, in a folder with one below it, and what is no picture."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    turned = squares({"green": (0, 1)})
    exif = turned.getexif()
    exif[0x0112] = 3  # turned by half
    turned.save(folder / "below" / "a <b> & 'c'.jpg", quality=95, exif=exif)
    squares({"red": (0, 0)}).convert("P").save(folder / "red.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_gives_a_contact_sheet_that_stands_alone_and_lines_of_json(folder, exported, tmp_path, capsys):
    out = tmp_path / "out"
    assert words(folder, "--model", exported, "--out", out) == 0
    assert "2 images, 0 skipped" in capsys.readouterr().out
    records = [json.loads(line) for line in (out / "words.jsonl").read_text().splitlines()]
    assert [Path(record["image"]).name for record in records] == ["a <b> & 'c'.jpg", "red.png"]
    assert [record["words"][0]["word"] for record in records] == ["green", "red"]
    assert all(len(record["words"]) == 10 for record in records)
    page = (out / "index.html").read_text()
    assert "a <b> & 'c'.jpg" in html.unescape(page)
    assert "<b>" not in page
    assert not re.search(r"https?:|<script|<link|@import", page)
    pictures = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    assert [Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures] == [(32, 32)] * 2
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "words.jsonl"]


def test_a_heat_map_is_lit_where_its_word_is_seen(exported, picture, tmp_path, capsys):
    assert words(picture, picture, "--model", exported, "--words", "red, blue", "--heatmap", "--out", tmp_path) == 0
    (record,) = map(json.loads, (tmp_path / "words.jsonl").read_text().splitlines())
    drawn = np.asarray(Image.open(record["heatmap"]).convert("RGB")).astype(int)
    panels = np.array_split(drawn[drawn.shape[0] // 3 :], 3, axis=1)  # the picture and two words, below their titles
    order = [word["word"] for word in record["words"]]
    for name, panel in zip(order, panels[1:], strict=True):
        top, bottom = np.array_split(panel.sum(axis=2), 2)
        assert (top.mean() > bottom.mean() + 30) == (name == "red")
    assert "data:image/png;base64," in (tmp_path / "index.html").read_text()


@needs_browser
@pytest.mark.parametrize("flags", [[], ["--heatmap"]], ids=["thumbnails", "heat maps"])
def test_a_contact_sheet_is_as_wide_as_a_phone(flags, folder, exported, tmp_path):
    long_name = "a-picture-with-a-name-that-is-longer-than-any-phone-is-wide-and-has-no-space.png"
    (folder / long_name).write_bytes((folder / "red.png").read_bytes())
    assert words(folder, "--model", exported, "--top", 6, "--out", tmp_path / "out", *flags) == 0
    page = tmp_path / "out" / "index.html"
    assert num_pixels_outside(page, 390, tmp_path / "browser") == 0
    narrowest = "Math.min(...[...document.images].map(image => image.getBoundingClientRect().width))"
    assert evaluated(page, 390, narrowest, tmp_path / "browser") >= 240
    assert "initial-scale=1" in page.read_text()


def test_pictures_of_the_same_name_keep_a_heat_map_each(folder, exported, tmp_path, monkeypatch, capsys):
    (folder / "below" / "red.png").write_bytes((folder / "red.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert words(folder / "red.png", folder / "below" / "red.png", "--model", exported, "--heatmap", "--top", 1) == 0
    assert sorted(path.name for path in Path("words").iterdir()) == ["red-2.words.png", "red.words.png"]
    assert "words/red-2.words.png" in capsys.readouterr().out


def test_words_can_come_from_a_file_with_phrases(exported, picture, tmp_path, capsys):
    (tmp_path / "tags.txt").write_text("red\n\nred blue\nmoon \nred\n")
    assert words(picture, "--model", exported, "--words", tmp_path / "tags.txt", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert sorted(word["word"] for word in record["words"]) == ["moon", "red", "red blue"]
    assert record["words"][0]["word"] == "red blue"  # both are there, and a phrase is worth the sum of its words


def test_all_of_the_words_that_were_asked_for_are_shown(exported, picture, capsys):
    asked = "red,blue,green,yellow,moon,sun,cat,dog,bird,house,tree,car,boat,rose"
    assert words(picture, "--model", exported, "--words", asked, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["words"]) == 14
    assert words(picture, "--model", exported, "--words", asked, "--top", 3, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["words"]) == 3


def test_words_that_differ_by_capitals_alone_are_one_for_a_tokenizer_that_knows_none(exported, picture, capsys):
    assert words(picture, "--model", exported, "--words", "Red,red,RED,moon,moon,", "--json") == 0
    assert sorted(word["word"] for word in json.loads(capsys.readouterr().out)["words"]) == ["Red", "moon"]


def test_a_bar_in_a_word_leaves_the_table_whole(exported, picture, capsys):
    assert words(picture, "--model", exported, "--words", "a|b,red") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert any(line.startswith("| a\\|b |") for line in lines)


def test_a_second_call_does_not_tag_the_heat_maps_of_the_first(folder, exported, capsys):
    for _ in range(2):
        assert words(folder, "--model", exported, "--heatmap", "--top", 1, "--out", folder / "words") == 0
        assert "2 images, 0 skipped" in capsys.readouterr().out
    moved = folder / "below" / "other.words.png"
    (folder / "words" / "red.words.png").rename(moved)
    assert moved not in find_images([folder])
    assert find_images([moved]) == [moved]  # named, it is meant


def test_a_call_that_is_stopped_keeps_what_it_has_and_the_same_command_goes_on(exported, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(80):
        squares({list(COLOURS)[index % 4]: CORNERS[index % 3]}).save(pictures / f"{index:02d}.png")
    argv = [sys.executable, "-m", "openclip_superclip", "words", pictures, "--model", exported, "--json", "--out"]
    stopped = subprocess.Popen(
        [*map(str, argv), str(tmp_path / "stopped")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = [stopped.stdout.readline() for _ in range(3)]
    stopped.send_signal(signal.SIGINT)
    _, told = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, told
    assert re.search(r"stopped after \d+ of 80: the same command resumes", told)
    assert "Traceback" not in told
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["words.jsonl.part"]

    again = subprocess.run([*map(str, argv), str(tmp_path / "stopped")], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert int(re.search(r"(\d+) images were tagged before", again.stderr)[1]) >= 3
    assert words(pictures, "--model", exported, "--out", tmp_path / "whole") == 0
    lines, whole = ((tmp_path / name / "words.jsonl").read_text() for name in ("stopped", "whole"))
    assert lines == again.stdout == whole
    assert lines.startswith("".join(first))
    images = [(tmp_path / name / "index.html").read_text().count("<img") for name in ("stopped", "whole")]
    assert images == [80, 80]
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["index.html", "words.jsonl"]


def test_what_was_tagged_with_other_words_or_of_another_picture_is_tagged_again(exported, picture, tmp_path):
    tagger = Tagger(open_with_head(exported), "red,blue", None)
    (tagged,) = tag_images([picture], tagger, None, {})

    def found(words: str | None) -> list[Path]:
        tagger = Tagger(open_with_head(exported), words, None)
        return list(unfinished_words(tmp_path, exported, words, tagger, [picture], False).earlier)

    def keep() -> None:
        (tmp_path / "words.jsonl.part").unlink(missing_ok=True)
        unfinished_words(tmp_path, exported, "red,blue", tagger, [picture], False).add(tagged)

    keep()
    assert found("red,blue") == [picture]
    with (tmp_path / "words.jsonl.part").open("a") as file:
        file.write('{"state": [1')  # cut
    assert found("red,blue") == [picture]
    assert found("red,moon") == []
    keep()
    squares({"green": (0, 0)}, 40).save(picture)
    assert found("red,blue") == []


# Pictures of every kind


def test_grey_of_16_bits_is_as_dark_as_it_is(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(8, axis=0)
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    deep.save(tmp_path / "16.png")
    deep.save(tmp_path / "16.tif")
    Image.fromarray(ramp.astype(np.int32) * 257).save(tmp_path / "32.tif")
    Image.fromarray((ramp / 255).astype(np.float32)).save(tmp_path / "float.tif")
    for file in ("16.png", "16.tif", "32.tif", "float.tif"):
        read = np.asarray(load_image(tmp_path / file, 1024).image).astype(int)
        assert np.abs(read - ramp[..., None]).max() <= 1, file


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white_whatever_colour_hides_there(mode, tmp_path):
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 8, 16))
    if mode == "RGB":
        image.convert("RGB").save(tmp_path / "picture.png", transparency=(200, 0, 0))
    else:
        image.convert(mode).save(tmp_path / "picture.png")
    read = np.asarray(load_image(tmp_path / "picture.png", 1024).image)
    assert (read[:, :8] == 0).all()
    assert (read[:, 8:] == 255).all()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_of_a_large_picture_no_more_is_held_than_the_model_can_use(suffix, tmp_path):
    image = Image.new("RGB", (4200, 3000), COLOURS["blue"])
    image.paste(COLOURS["red"], (0, 0, 4200, 1500))
    exif = image.getexif()
    exif[0x0112] = 6  # lies on its side
    image.save(tmp_path / f"large.{suffix}", exif=exif)
    read = load_image(tmp_path / f"large.{suffix}", 1024).image
    assert 1024 <= read.width < 2048
    assert read.width < read.height
    left, right = np.array_split(np.asarray(read).astype(int), 2, axis=1)
    assert np.abs(right[:, 8:] - COLOURS["red"]).max() < 6
    assert np.abs(left[:, :-8] - COLOURS["blue"]).max() < 6


# What goes wrong


def test_pictures_that_cannot_be_read_are_named_skipped_and_counted_and_the_exit_code_says_so(
    folder, exported, tmp_path, capsys
):
    (folder / "broken.png").write_bytes((folder / "red.png").read_bytes()[:60])
    (folder / "text.jpg").write_text("no picture")
    Image.new("1", (200_000, 1)).save(folder / "thin.png")
    assert words(folder, "--model", exported, "--out", tmp_path / "out") == 3
    printed = capsys.readouterr().out
    assert "broken.png is skipped" in printed
    assert "text.jpg is skipped" in printed
    assert "thin.png is skipped, it cannot be read: it has 200,000 × 1 pixels: expected a longer side" in printed
    assert "2 images, 3 skipped" in printed
    records = [json.loads(line) for line in (tmp_path / "out" / "words.jsonl").read_text().splitlines()]
    assert [("words" in r, "error" in r) for r in records] == [
        (True, False),
        (False, True),
        (True, False),
        (False, True),
        (False, True),
    ]
    assert "cannot be read" in (tmp_path / "out" / "index.html").read_text()
    assert words(folder / "text.jpg", folder / "red.png", "--model", exported) == 3
    assert "text.jpg is skipped" in capsys.readouterr().out


def test_where_no_picture_can_be_read_it_fails(folder, exported, capsys):
    (folder / "text.jpg").write_text("no picture")
    assert words(folder / "text.jpg", "--model", exported) == 1
    assert capsys.readouterr().err == "error: none of the 1 images could be read\n"


@pytest.fixture(scope="module")
def models(trained, exported, tmp_path_factory) -> Path:
    """A folder with a picture, the model, and what is none or has no head."""
    folder = tmp_path_factory.mktemp("models")
    squares({"red": (0, 0)}).save(folder / "picture.png")
    (folder / "empty").mkdir()
    (folder / "model").symlink_to(exported)
    assert main(["export", str(trained), "--out", str(folder / "plain")]) == 0
    (folder / "for-transformers").mkdir()
    (folder / "for-transformers" / "config.json").write_text("{}")
    (folder / "lone.pt").symlink_to(trained)
    weights = torch.load(trained, weights_only=True)["state_dict"]
    plain = {name: value for name, value in weights.items() if not name.startswith(("class_head", "statistics"))}
    torch.save(plain, folder / "plain.pt")
    (folder / "text.pt").write_text("no checkpoint")
    return folder


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["empty", "--model", "model"], "empty holds no images; expected .bmp .gif"),
        (["nowhere.png", "--model", "model"], "there is no image nowhere.png"),
        (["picture.png", "--model", "nowhere"], "--model: there is no file or folder nowhere"),
        (["picture.png", "--model", "plain"], "--model: plain holds no class head, which sees the words: export "),
        (["picture.png", "--model", "plain.pt"], "plain.pt holds no class head, which sees the words: its run was"),
        (["picture.png", "--model", "for-transformers"], "for-transformers is for transformers; export the checkpoint"),
        (["picture.png", "--model", "lone.pt"], "--architecture: nothing beside lone.pt says what model it is"),
        (["picture.png", "--model", "lone.pt", "--architecture", "ViT-B-32"], "lone.pt does not match ViT-B-32"),
        (["picture.png", "--model", "text.pt"], "--model: text.pt cannot be read"),
        (["picture.png", "--model", "model", "--out", "text.pt"], "--out: text.pt cannot be written (File exists)"),
        (["picture.png", "--model", "model", "--top", "0"], "--top is 0; expected 1 or more"),
        (["picture.png", "--model", "model", "--words", " ,"], "--words is ' ,'; expected words separated by commas"),
        (
            ["picture.png", "--model", "model", "--words", "tags.txt"],
            "--words: there is no file tags.txt; end a",
        ),
        (
            ["picture.png", "--model", "model", "--words", "my/tags"],
            "--words: there is no file my/tags; end a",
        ),
        (["picture.png", "--model", "nowhere", "--device", "cuda:99"], "--device is cuda:99, which torch cannot use"),
        (["picture.png", "--model", "nowhere", "--device", "gpu"], "--device is gpu, which torch cannot use here"),
        (
            ["picture.png", "--model", "model", "--words", "red,&nbsp;"],
            "--words: the model's tokenizer has no tokens for",
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_in_one_line(argv, reason, models, capsys, monkeypatch):
    monkeypatch.chdir(models)
    assert words(*argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert reason in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("argv", [["empty/.."], ["picture.png", "--heatmap"]], ids=["folder", "heat map"])
def test_where_the_model_is_refused_nothing_is_written(argv, models, capsys, monkeypatch):
    monkeypatch.chdir(models)
    assert words(*argv, "--model", "plain.pt") == 1
    assert "plain.pt holds no class head" in capsys.readouterr().err
    assert not Path("words").exists()


def test_a_lone_checkpoint_opens_where_the_user_says_what_it_is(trained, picture, tmp_path, capsys):
    model = trained.parents[3] / "model"
    (tmp_path / "lone.pt").symlink_to(trained)
    assert words(picture, "--model", tmp_path / "lone.pt", "--architecture", f"local-dir:{model}", "--top", 2) == 0
    assert set(re.findall(r"^\| (red|blue) ", capsys.readouterr().out, re.MULTILINE)) == {"red", "blue"}


def test_help_answers_without_importing_torch_and_only_heat_maps_need_matplotlib(exported, picture):
    program = "import sys; sys.modules['matplotlib'] = None\nfrom openclip_superclip.__main__ import main\n"
    program += "try: main(['words', '--help'])\nexcept SystemExit: assert 'torch' not in sys.modules\n"
    program += f"assert main(['words', {str(picture)!r}, '--model', {str(exported)!r}, '--words', 'red']) == 0\n"
    program += f"sys.exit(main(['words', {str(picture)!r}, '--model', {str(exported)!r}, '--heatmap']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "[report]" in done.stderr


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """The file that Ghostscript leaves if it is started, as Pillow does to read EPS."""
    started, program = tmp_path / "started", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    with pytest.raises(subprocess.CalledProcessError):
        Image.open(io.BytesIO(encoded(Image.new("RGB", (8, 8)), "EPS"))).load()
    started.unlink()
    return started


@pytest.mark.parametrize("kind", ["EPS", "ICO"])
def test_no_command_and_no_page_opens_a_format_that_runs_code_or_holds_many_images(
    kind, folder, exported, ghostscript, tmp_path, capsys
):
    content = encoded(squares({"red": (0, 0)}, 256), kind)
    (folder / "cat.jpg").write_bytes(content)
    app = words_app(Tagger(open_with_head(exported), "red", None), "a model", None)
    assert request(app, "POST", "/words", body(content), host="x") == (
        422, b'{"error":"this is no readable image: expected PNG, JPEG, WebP, GIF, BMP or TIFF"}'
    )  # fmt: skip
    assert words(folder, "--model", exported, "--out", tmp_path / "out") == 3
    assert "cat.jpg is skipped, it cannot be read: cannot identify image file" in capsys.readouterr().out
    for name in ("cat", "red"):
        (folder / f"{name}.txt").write_text("red")
    audit = ["audit", folder, "--model", exported, "--out", tmp_path / "audit", "--unreadable-max", 1]
    assert main(list(map(str, audit))) == 0
    assert "cat.jpg,no readable image (cannot identify image file" in (tmp_path / "audit/left_out.csv").read_text()
    assert not ghostscript.exists()


# The page


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    return encoded(image, "PNG")


DRIVER = """<script>
const told = {}
async function drive(name, words) {
  await ask(await (await fetch("/file/" + name)).blob(), words)
  const lines = [...table.rows].map(line => line.innerText.replace(/\\s+/g, " "))
  if (table.rows.length) table.rows[0].dispatchEvent(new Event("mouseenter"))
  const canvas = drop.querySelector("canvas"), heat = canvas ? [canvas.dataset.word, canvas.width] : null
  const images = drop.querySelectorAll("img").length
  told[name + words] = {lines, heat, images, error: error.hidden ? "" : error.textContent}
}
onload = async () => {
  await drive("good", "")
  await drive("good", "green, red")
  for (const name of ["broken", "cut", "huge", "bomb", "thin"]) await drive(name, "")
  const result = document.createElement("pre")
  result.id = "told"
  result.textContent = JSON.stringify(told)
  document.body.append(result)
}
</script>"""


@needs_browser
def test_the_page_shows_a_pictures_words_and_where_and_refuses_broken_and_huge_ones(trained, tmp_path):
    good = png(squares({"red": (0, 0), "blue": (1, 1)}))
    files = {
        "good": good, "broken": b"no picture", "cut": good[: len(good) // 2], "huge": b"x" * (MAX_BYTES + 1),
        "bomb": png(Image.new("1", (30_000, 30_000))), "thin": png(Image.new("1", (1, 200_000))),
    }  # fmt: skip
    app = words_app(Tagger(open_with_head(trained), "red,blue,green,yellow", None), "a model", None)
    page = next(route.endpoint for route in app.routes if route.path == "/")

    def driver(request):
        answer = page(request)
        policy = {"Content-Security-Policy": answer.headers["Content-Security-Policy"]}
        return HTMLResponse(answer.body.decode().replace("</body>", f"{DRIVER}</body>"), headers=policy)

    app.routes.append(Route("/driver", driver))
    app.routes.append(Route("/file/{name}", lambda request: Response(files[request.path_params["name"]])))
    listening = bind("127.0.0.1", 0)
    server = threading.Thread(target=serve, args=(app, listening), daemon=True)
    server.start()
    dom = dumped(f"http://127.0.0.1:{listening.getsockname()[1]}/driver", tmp_path)
    told = json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert {line.split()[0] for line in told["good"]["lines"][:2]} == {"red", "blue"}
    assert len(told["good"]["lines"]) == 4
    assert told["good"]["heat"][0] == told["good"]["lines"][0].split()[0]
    assert told["good"]["images"] == 1
    assert [line.split()[0] for line in told["goodgreen, red"]["lines"]] == ["red", "green"]
    refusals = {
        "broken": "no readable image",
        "cut": "is damaged",
        "huge": "larger than 20 MB",
        "bomb": "too many pixels",
    }
    refusals["thin"] = "it has 1 × 200,000 pixels: expected a longer side of at most 100 times the shorter"
    for name, reason in refusals.items():
        assert reason in told[name]["error"]
        assert (told[name]["lines"], told[name]["images"]) == ([], 0)  # nothing of the image before
    assert not re.search(r"/(tmp|root|home|work|usr)/", dom)


@pytest.mark.parametrize(
    ("host", "names", "others"),
    [
        ("127.0.0.1", ["127.0.0.1:80", "localhost", "LOCALHOST:1"], ["elsewhere.example", "127.0.0.2", ""]),
        ("127.0.0.2", ["127.0.0.2:80", "localhost"], ["elsewhere.example", "[::1].example"]),
        ("::1", ["[::1]:80", "[::1]", "localhost:80"], ["elsewhere.example", "[::2]:80", "[::1]x"]),
        ("0.0.0.0", ["elsewhere.example"], []),
    ],
)
def test_on_loopback_alone_other_names_are_refused(host, names, others):
    with bind(host, 0) as listening:
        known = loopback_names(host, listening)
    assert (known is None) == (host == "0.0.0.0")
    app = words_app(SimpleNamespace(), "a model", known)
    assert [request(app, host=name)[0] for name in names] == [200] * len(names)
    assert [request(app, host=name)[0] for name in others] == [400] * len(others)


def request(app, method="GET", path="/", receive=None, **headers) -> tuple[int, bytes]:
    """Status and body of an application's answer."""
    return asyncio.run(requested(app, method, path, receive, **headers))


async def requested(app, method, path, receive=None, **headers) -> tuple[int, bytes]:
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def body(content: bytes):
    async def receive():
        return {"type": "http.request", "body": content, "more_body": False}

    return receive


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 422),  # no browser
        ({"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}, 422),
        ({"origin": "http://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),  # another port of this machine
    ],
)
def test_a_post_from_another_site_is_refused(headers, status):
    app = words_app(SimpleNamespace(shortest=8), "a model", {"localhost"})
    assert request(app, "POST", "/words", body(b"no image"), host="localhost:8000", **headers)[0] == status


def test_only_some_uploads_are_read_at_a_time():
    app = words_app(SimpleNamespace(shortest=8), "a model", None)

    async def uploads() -> list[int]:
        arrived = asyncio.Event()

        async def half_open():
            await arrived.wait()
            return {"type": "http.request", "body": b"no image", "more_body": False}

        tasks = [asyncio.create_task(requested(app, "POST", "/words", half_open, host="x")) for _ in range(30)]
        while sum(task.done() for task in tasks) < 30 - MAX_UPLOADS:
            await asyncio.sleep(0)
        arrived.set()
        return [status for status, _ in await asyncio.gather(*tasks)]

    statuses = asyncio.run(uploads())
    assert statuses.count(503) == 30 - MAX_UPLOADS
    assert statuses.count(422) == MAX_UPLOADS


def test_serve_says_where_once_the_model_is_there_knows_its_name_and_ends_by_ctrl_c(trained):
    command = [sys.executable, "-m", "openclip_superclip", "words", "--serve", "--model", str(trained), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = re.match(r"(http://127\.0\.0\.1:\d+/) shows the words", process.stdout.readline())[1]
    with urllib.request.urlopen(address) as answer:
        assert "The words of an image" in answer.read().decode()
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--serve"], "--model is missing"),
        (["cat.png", "--serve", "--model", "x"], "leave cat.png out"),
        (["--serve", "--model", "x", "--heatmap"], "--heatmap does nothing with --serve"),
        (["cat.png", "--model", "x", "--port", "1"], "--host and --port do nothing without --serve"),
        (["--serve", "--model", "x", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 8000 cannot be used"),
        (["--serve", "--model", "x", "--port", "70000"], "--port is 70000; expected 0 to 65,535"),
        (["--serve", "--model", "no-such-file", "--port", "0"], "there is no file or folder no-such-file"),
    ],
)
def test_a_wrong_call_of_serve_is_told_in_one_line(argv, told, capsys):
    assert words(*argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_serve_without_its_extra_says_which_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "uvicorn" else name)
    assert words("--serve", "--model", "x") == 1
    assert "install the extra [serve]" in capsys.readouterr().err
