"""`superclip words`: scores and locations of words, the output folder, the web page, and errors."""

import asyncio
import html
import importlib.util
import io
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import EpsImagePlugin, Image
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from support import GOLDEN, WORDS
from support.browser import dumped, needs_browser, num_pixels_outside
from support.coloured_squares import COLOURS, CORNERS, squares
from support.models import MODELS, write_model
from tokenizers import Tokenizer as PlainTokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import openclip_superclip as superclip
from openclip_superclip.__main__ import main
from openclip_superclip.data.images import load_image
from openclip_superclip.method.patch_tokens import encode_image, patch_map
from openclip_superclip.words import tag_images
from openclip_superclip.words.lexicon import Lexicon, lexicon, open_lexicon
from openclip_superclip.words.server import MAX_BYTES, MAX_UPLOADS, bind, loopback_names, serve, words_app
from openclip_superclip.words.tagger import FULL_BAR, Shares, Tagger, open_with_head

TOWERS = {"oblong": {"vision": {"image_size": [32, 48]}}}
TOWERS |= {name: MODELS[name] for name in ("resnet", "timm-convnext", "coca")}


def words(*argv) -> int:
    return main(["words", *map(str, argv)])


def json_lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    image.save(file := io.BytesIO(), kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def opened(squares_run):
    return open_with_head(squares_run)


@pytest.fixture(scope="module")
def tagger(opened) -> Tagger:
    return Tagger(opened, lexicon(list(COLOURS), opened.tokenizer, len(opened.token_weights)))


@pytest.fixture
def image(tmp_path) -> Path:
    squares({"red": (0, 0), "blue": (1, 1)}).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with images, one of which is upside down without its EXIF data, and a file that is not an image."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    turned = squares({"green": (0, 1)})
    exif = turned.getexif()
    exif[0x0112] = 3  # rotated by 180°
    turned.save(folder / "below" / "a <b> & 'c'.jpg", quality=95, exif=exif)
    squares({"red": (0, 0)}).convert("P").save(folder / "red.png")
    (folder / "notes.txt").write_text("no image")
    return folder


# Scores and locations


def test_the_head_names_the_colours_of_an_image_and_their_quarters(opened):
    tagger = Tagger(opened, top=2)
    for placed in ({"red": (0, 0), "blue": (1, 1)}, {"yellow": (1, 0), "green": (0, 1)}):
        seen = tagger.tag(squares(placed))
        assert {word.word for word in seen} == placed.keys()
        for word in seen:
            row, column = divmod(word.map.argmax().item(), word.map.shape[1])
            assert (row // 2, column // 2) == placed[word.word]


def test_run_checkpoint_and_export_print_the_same_table_with_the_score_that_the_head_computes(
    squares_run, squares_export, opened, image, tmp_path, capsys
):
    (tmp_path / "lone.pt").symlink_to(squares_run / "checkpoints/epoch_6.pt")
    lone = [tmp_path / "lone.pt", "--architecture", f"local-dir:{squares_run.parents[1]}/model"]
    printed = []
    for model in ([squares_run], [squares_run / "checkpoints/epoch_6.pt"], [squares_export], lone):
        assert words(image, "--words", "red,blue,a|b", "--model", *model) == 0
        printed.append(capsys.readouterr().out)
    assert printed == printed[:1] * 4
    model, pixels = opened.model, opened.preprocess()(Image.open(image))[None]
    _, patch_mean = encode_image(model.visual, model.patch_tokens, pixels)
    probabilities = model.class_head.logits(patch_mean)[0].softmax(dim=0)
    red, blue = (probabilities[opened.tokenizer.encode(name)[0]].item() for name in ("red", "blue"))
    assert set(re.findall(r"\| (\w+) \| (\S+) \|", printed[0])) == {
        ("word", "score"), ("red", f"{red:.1%}"), ("blue", f"{blue:.1%}")
    }  # fmt: skip
    assert "| a\\|b | " in printed[0]  # bars in words are escaped


@pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS.keys())
def test_every_tower_has_patches_whose_mean_is_what_the_head_was_trained_on(config, tmp_path, image, capsys):
    name = write_model(tmp_path / "model", **config)
    torch.manual_seed(0)
    model, _, preprocess = superclip.create_model_and_transforms(name)
    torch.save(model.state_dict(), tmp_path / "model/open_clip_pytorch_model.bin")
    pixels = preprocess(Image.open(image))[None]
    with torch.no_grad():
        map = patch_map(model.eval().visual, model.patch_tokens, pixels)
        _, mean = encode_image(model.visual, model.patch_tokens, pixels)
    torch.testing.assert_close(map.mean(dim=(2, 3)), mean)
    assert words(image, "--model", tmp_path / "model", "--words", "cat,moon", "--json") == 0
    assert {word["word"] for word in json_lines(capsys)[0]["words"]} == {"cat", "moon"}


def test_an_imported_checkpoint_of_the_authors_opens(tmp_path, image, capsys):
    """The authors' tiny model has the first 300 tokens of CLIP's vocabulary, which do not spell any word."""
    config = tmp_path / "authors.json"
    config.write_text((GOLDEN / "reference_tiny.json").read_text())
    assert main(["import", str(GOLDEN / "reference_tiny.pt"), "--model", str(config), "--out", f"{tmp_path}/in"]) == 0
    assert words(image, "--model", tmp_path / "in", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]).keys() == {"image", "words"}


# Words and tokens


def test_the_lexicon_is_clips_whole_words_and_the_least_probable_token_limits_a_words_score():
    """Its score is Σ p if they are proportional to the weights. Tokens in every caption are ignored."""
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    every = open_lexicon(tokenizer, 49408)
    assert {"cat", "hamburger", "butterfly"} <= set(every.words) and len(every.words) > 30_000
    assert every.tokens.tolist() == [tokenizer.encode(word) for word in every.words]  # single tokens
    p, w = torch.zeros(49408), torch.full((49408,), 2.0)
    (cat,), (red,), (the,) = map(tokenizer.encode, ("cat", "red", "the"))
    p[cat], p[red], p[the] = 0.3, 0.2, 0.0
    w[cat], w[the] = 1.0, 0.0
    shares = Shares(lexicon(["cat", "red", "red cat", "the red cat", "cat cat", "dog", "the"], tokenizer, 49408), w)
    expected = [0.3, 0.2, 0.1 * 3, 0.1 * 3, 0.3, 0.0, 0.0]
    torch.testing.assert_close(shares.of(p), torch.tensor(expected))
    torch.testing.assert_close(shares.of(torch.stack([p, 0 * p])), torch.tensor([expected, [0.0] * 7]))


def test_tokens_form_the_longest_word_that_is_seen_in_one_place():
    """Words of several tokens: "hamburger" leaves nothing for "burger"; tokens in two places are not "melrose"."""
    spelled = {"hamburger": [0, 1, 2], "burger": [1, 2], "melon": [3, 4], "melrose": [3, 5], "rose": [5]}
    tokens = torch.tensor([[*ids, *[6] * (3 - len(ids))] for ids in spelled.values()])
    shares = Shares(Lexicon(list(spelled), tokens, 6), torch.ones(6))
    at_patches = torch.tensor([[0.3, 0.3, 0.4, 0.0, 0.0, 0.0], [0.0] * 3 + [0.5, 0.5, 0.0], [0.0] * 5 + [1.0]])
    found = shares.divide(torch.tensor([0.15, 0.2, 0.2, 0.1, 0.1, 0.25]), at_patches, top=4)
    assert [list(spelled)[word] for word in found] == ["hamburger", "rose", "melon", "burger"]
    assert list(found.values()) == pytest.approx([0.45, 0.25, 0.2, 0.1])


def test_a_hugging_face_tokenizer_has_words_of_one_token_and_of_several(tmp_path):
    pieces = ["[PAD]", "[UNK]", "cat", "sun", "##flower", "flower", "ab"]
    inner = PlainTokenizer(WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path)
    found = open_lexicon(HFTokenizer(str(tmp_path), context_length=8), len(pieces))
    spelled = {word: [id for id in row if id < 7] for word, row in zip(found.words, found.tokens.tolist(), strict=True)}
    assert spelled == {"cat": [2], "sun": [3], "flower": [5], "sunflower": [3, 4]}


def test_words_from_a_list_or_a_file_are_all_shown_without_duplicates(squares_export, image, tmp_path, capsys):
    (tmp_path / "tags.txt").write_text("red\n\nred blue\nmoon \nRED\n")
    many = "red,blue,green,yellow,moon,sun,cat,dog,bird,house,tree,car,boat,rose"
    found = []
    for flags in (["--words", tmp_path / "tags.txt"], ["--words", many], ["--words", many, "--top", 3]):
        assert words(image, "--model", squares_export, "--json", *flags) == 0
        found.append([word["word"] for word in json_lines(capsys)[0]["words"]])
    assert found[0][0] == "red blue"  # the score of a phrase is the sum of its words' scores
    assert sorted(found[0]) == ["moon", "red", "red blue"]  # this tokenizer ignores case
    assert [len(some) for some in found[1:]] == [14, 3]


# Output files


def test_a_folder_gives_a_self_contained_contact_sheet_in_pages_and_json_lines(
    folder, squares_export, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tag_images, "PER_PAGE", 2)
    (folder / "text.jpg").write_text("no image")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/index_3.html").write_text("of an earlier call")
    assert words(folder, "--model", squares_export, "--out", tmp_path / "out") == 3
    printed = capsys.readouterr().out
    assert "text.jpg is skipped, it cannot be read: cannot identify image file" in printed
    assert "2 images, 1 skipped" in printed
    out = tmp_path / "out"
    records = [json.loads(line) for line in (out / "words.jsonl").read_text().splitlines()]
    assert [Path(record["image"]).name for record in records] == ["a <b> & 'c'.jpg", "red.png", "text.jpg"]
    assert [record["words"][0]["word"] for record in records[:2]] == ["green", "red"]
    assert [len(record["words"]) for record in records[:2]] == [10, 10]
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "index_2.html", "words.jsonl"]
    page = (out / "index.html").read_text()
    assert "a <b> & 'c'.jpg" in html.unescape(page) and "<b>a" not in page
    assert not re.search(r"https?:|<script|<link|@import", page)
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) == 2
    assert '<a href="index_2.html">2</a>' in page
    score = records[0]["words"][1]["score"]  # bars have the same scale for all images
    assert f'<span style="width:{min(55, 55 * score / FULL_BAR):.0f}%"></span>{100 * score:.1f}%' in page
    assert "cannot be read" in (out / "index_2.html").read_text()


def test_a_heat_map_is_bright_at_its_word_and_a_second_call_does_not_tag_it(squares_export, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        squares({"red": (0, 0), "blue": (1, 1)}).save(tmp_path / name / "image.png")
    for _ in range(2):
        assert words(tmp_path, "--model", squares_export, "--words", "red, blue", "--heatmap", "--out", tmp_path) == 0
        assert "2 images, 0 skipped" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    assert [Path(record["heatmap"]).name for record in records] == ["image.words.png", "image-2.words.png"]
    for record in records:
        drawn = np.asarray(Image.open(record["heatmap"]).convert("RGB")).astype(int)
        panels = np.array_split(drawn[drawn.shape[0] // 3 :], 3, axis=1)  # the image and two words, below their titles
        for word, panel in zip(record["words"], panels[1:], strict=True):
            top, bottom = np.array_split(panel.sum(axis=2), 2)
            assert (top.mean() > bottom.mean() + 30) == (word["word"] == "red")
    assert (tmp_path / "index.html").read_text().count("data:image/png;base64,") == 2


def test_a_stopped_call_resumes_with_the_same_command_but_not_after_a_change(
    squares_export, opened, tagger, tmp_path, monkeypatch, capsys
):
    images = tmp_path / "images"
    images.mkdir()
    for index, corner in enumerate(CORNERS):
        squares({list(COLOURS)[index]: corner}).save(images / f"{index}.png")
    tagged, tag = [], Tagger.tag

    def stopped(tagger, image):
        if len(tagged) == 2:
            raise KeyboardInterrupt
        tagged.append(image)
        return tag(tagger, image)

    argv = [images, "--model", squares_export, "--words", "red,blue", "--json", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(Tagger, "tag", stopped)
        assert words(*argv, tmp_path / "stopped") == 130
    capsys.readouterr()
    (part,) = (tmp_path / "stopped").iterdir()
    part.write_bytes(part.read_bytes() + b'{"image": "')  # truncated by an interruption
    assert words(*argv, tmp_path / "stopped") == words(*argv, tmp_path / "whole") == 0
    assert "2 images were tagged before" in capsys.readouterr().err
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("stopped", "whole")
    )
    assert one == other and one.keys() == {"index.html", "words.jsonl"}
    paths, names = sorted(images.iterdir()), set()
    for top, size in ((1, 32), (2, 32), (1, 40)):  # other settings, another image
        squares({"green": (0, 0)}, size).save(paths[0])
        other = Tagger(opened, tagger.lexicon, top)
        names.add(tag_images.WordsFolder(tmp_path, paths, other, squares_export, False).lines)
    assert len(names) == 3


# Image formats


def test_16_bit_grey_keeps_its_brightness_and_transparent_pixels_become_white(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(8, axis=0)
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    deep.save(tmp_path / "16.png")
    deep.save(tmp_path / "16.tif")
    Image.fromarray(ramp.astype(np.int32) * 257).save(tmp_path / "32.tif")
    Image.fromarray((ramp / 255).astype(np.float32)).save(tmp_path / "float.tif")
    for file in ("16.png", "16.tif", "32.tif", "float.tif"):
        read = np.asarray(load_image(tmp_path / file, 1024).image).astype(int)
        assert np.abs(read - ramp[..., None]).max() <= 1, file
    clear = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 8, 16))
    for mode in ("RGBA", "LA", "P", "RGB"):
        clear.convert(mode).save(tmp_path / "clear.png", **({"transparency": (200, 0, 0)} if mode == "RGB" else {}))
        read = np.asarray(load_image(tmp_path / "clear.png", 1024).image)
        assert (read[:, :8] == 0).all() and (read[:, 8:] == 255).all(), mode


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_images_are_decoded_at_a_reduced_size(suffix, tmp_path):
    image = Image.new("RGB", (4200, 3000), COLOURS["blue"])
    image.paste(COLOURS["red"], (0, 0, 4200, 1500))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90°
    image.save(tmp_path / f"large.{suffix}", exif=exif)
    read = load_image(tmp_path / f"large.{suffix}", 1024).image
    assert 1024 <= read.width < 2048 and read.width < read.height
    left, right = np.array_split(np.asarray(read).astype(int), 2, axis=1)
    assert np.abs(right[:, 8:] - COLOURS["red"]).max() < 6
    assert np.abs(left[:, :-8] - COLOURS["blue"]).max() < 6


# Errors


@pytest.fixture(scope="module")
def models(squares_run, squares_export, tmp_path_factory) -> Path:
    """A folder with an image, a model, and invalid models."""
    folder = tmp_path_factory.mktemp("models")
    squares({"red": (0, 0)}).save(folder / "image.png")
    (folder / "empty").mkdir()
    (folder / "model").symlink_to(squares_export)
    assert main(["export", f"{squares_run}/checkpoints/epoch_6.pt", "--out", str(folder / "plain")]) == 0
    (folder / "for-transformers").mkdir()
    (folder / "for-transformers" / "config.json").write_text("{}")
    (folder / "lone.pt").symlink_to(squares_run / "checkpoints/epoch_6.pt")
    (folder / "text.pt").write_text("no checkpoint")
    return folder


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ("", "IMAGE is missing"),
        ("image.png", "--model is missing"),
        ("empty --model model", "empty holds no images; expected .bmp .gif"),
        ("nowhere.png --model model", "there is no image nowhere.png"),
        ("text.pt --model model --words red", "none of the 1 images could be read"),
        ("image.png --model nowhere", "--model: there is no file or folder nowhere"),
        ("image.png --model plain --heatmap", "--model: plain holds no class head, which sees the words: train with"),
        ("image.png --model for-transformers", "for-transformers is for transformers; export the checkpoint"),
        ("image.png --model lone.pt", "--architecture: nothing beside lone.pt says what model it is"),
        ("image.png --model lone.pt --architecture ViT-B-32", "lone.pt does not match ViT-B-32"),
        ("image.png --model text.pt", "--model: text.pt cannot be read"),
        ("image.png --model model --words red --out text.pt", "--out: text.pt cannot be written (File exists)"),
        ("image.png --model model --top 0", "--top is 0; expected 1 or more"),
        ("image.png --model model --words ,", "--words is ','; expected words separated by commas"),
        ("image.png --model model --words tags.txt", "--words: there is no file tags.txt; end a"),
        ("image.png --model model --words red,&nbsp;", "--words: the model's tokenizer has no tokens for"),
        ("image.png --model model --device gpu", "--device is gpu, which torch cannot use here"),
        ("image.png --serve --model x", "image.png does nothing with --serve"),
        ("--serve --model x --heatmap", "--heatmap does nothing with --serve"),
        ("image.png --model x --port 1", "--host and --port do nothing without --serve"),
        ("--serve --model x --host 192.0.2.1", "--host 192.0.2.1 --port 8000 cannot be used"),
        ("--serve --model x --port 70000", "--port is 70000; expected 0 to 65,535"),
        ("image.png --course x", "image.png does nothing with --course"),
        ("--course x --model x", "--model does nothing with --course"),
        ("--course a b c", "--course has 3 runs; expected one, or two"),
        ("--course nowhere", "nowhere holds no words/epoch_N.safetensors"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(argv, reason, models, capsys, monkeypatch):
    monkeypatch.chdir(models)
    before = sorted(models.rglob("*"))
    assert words(*argv.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert sorted(models.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "package", "extra"),
    [(["--serve"], "uvicorn", "[serve]"), (["x.png", "--heatmap"], "matplotlib", "[report]")],
)
def test_a_missing_package_is_reported_with_the_extra_to_install(flags, package, extra, image, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == package else name)
    flags = [image if flag == "x.png" else flag for flag in flags]
    assert words(*flags, "--model", "x") == 1
    assert f"install the extra {extra}" in capsys.readouterr().err


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A file that a fake Ghostscript creates if Pillow starts it to read EPS."""
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
    kind, folder, squares_export, tagger, ghostscript, tmp_path, capsys
):
    content = encoded(squares({"red": (0, 0)}, 256), kind)
    (folder / "cat.jpg").write_bytes(content)
    app = words_app(tagger, "a model", None)
    assert request(app, "POST", "/words", body(content), host="x") == (
        422, b'{"error":"no readable image (cannot identify image file)"}'
    )  # fmt: skip
    assert words(folder, "--model", squares_export, "--words", "red", "--out", tmp_path / "out") == 3
    assert "cat.jpg is skipped, it cannot be read: cannot identify image file" in capsys.readouterr().out
    for name in ("cat", "red"):
        (folder / f"{name}.txt").write_text("red")
    audit = ["audit", folder, "--model", squares_export, "--out", tmp_path / "audit", "--unreadable-max", 1]
    assert main(list(map(str, audit))) == 0
    assert "cat.jpg,no readable image (cannot identify image file" in (tmp_path / "audit/left_out.csv").read_text()
    assert not ghostscript.exists()


# The web page


DRIVER = """<script>
const found = {}
async function drive(name, words) {
  await ask(await (await fetch("/file/" + name)).blob(), words)
  const lines = [...table.rows].map(line => line.innerText.replace(/\\s+/g, " "))
  if (table.rows.length) table.rows[0].dispatchEvent(new Event("mouseenter"))
  const canvas = drop.querySelector("canvas"), heat = canvas ? [canvas.dataset.word, canvas.width] : null
  const images = drop.querySelectorAll("img").length
  found[name + words] = {lines, heat, images, error: error.hidden ? "" : error.textContent}
}
onload = async () => {
  await drive("good", "")
  await drive("good", "green, red")
  for (const name of ["broken", "cut", "huge", "bomb", "thin"]) await drive(name, "")
  const result = document.createElement("pre")
  result.id = "found"
  result.textContent = JSON.stringify(found)
  document.body.append(result)
}
</script>"""


@needs_browser
def test_the_page_shows_words_and_locations_and_clears_them_on_an_error(tagger, tmp_path):
    good = encoded(squares({"red": (0, 0), "blue": (1, 1)}))
    files = {
        "good": good, "broken": b"no image", "cut": good[: len(good) // 2], "huge": b"x" * (MAX_BYTES + 1),
        "bomb": encoded(Image.new("1", (30_000, 30_000))), "thin": encoded(Image.new("1", (1, 200_000))),
    }  # fmt: skip
    app = words_app(tagger, "a model", None)
    page = next(route.endpoint for route in app.routes if route.path == "/")

    def driver(request):
        answer = page(request)
        policy = {"Content-Security-Policy": answer.headers["Content-Security-Policy"]}
        return HTMLResponse(answer.body.decode().replace("</body>", f"{DRIVER}</body>"), headers=policy)

    app.routes.append(Route("/driver", driver))
    app.routes.append(Route("/file/{name}", lambda request: Response(files[request.path_params["name"]])))
    listening = bind("127.0.0.1", 0)
    threading.Thread(target=serve, args=(app, listening), daemon=True).start()
    dom = dumped(f"http://127.0.0.1:{listening.getsockname()[1]}/driver", tmp_path)
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert {line.split()[0] for line in found["good"]["lines"][:2]} == {"red", "blue"}
    assert len(found["good"]["lines"]) == 4
    assert found["good"]["heat"][0] == found["good"]["lines"][0].split()[0]
    assert found["good"]["images"] == 1
    assert [line.split()[0] for line in found["goodgreen, red"]["lines"]] == ["red", "green"]
    refusals = {
        "broken": "no readable image", "cut": "no readable image", "huge": "larger than 20 MB",
        "bomb": "decompression bomb", "thin": "expected a longer side of at most 100 times the shorter",
    }  # fmt: skip
    for name, reason in refusals.items():
        assert reason in found[name]["error"]
        assert (found[name]["lines"], found[name]["images"]) == ([], 0)
    assert not re.search(r"/(tmp|root|home|work|usr)/", dom)


@needs_browser
def test_no_page_is_wider_than_a_phone(folder, squares_export, tagger, tmp_path):
    long_name = "an-image-with-a-name-that-is-longer-than-any-phone-is-wide-and-has-no-space.png"
    (folder / long_name).write_bytes((folder / "red.png").read_bytes())
    pages = [tmp_path / "served.html"]
    pages[0].write_bytes(request(words_app(tagger, long_name, None), host="x")[1])
    for flags in ([], ["--heatmap"]):
        out = tmp_path / f"out{len(flags)}"
        assert words(folder, "--model", squares_export, "--words", ",".join(WORDS), "--out", out, *flags) == 0
        pages.append(out / "index.html")
    for page in pages:
        assert num_pixels_outside(page, 390, tmp_path / "browser") == 0
        assert "initial-scale=1" in page.read_text()


@pytest.mark.parametrize(
    ("host", "names", "others"),
    [
        ("127.0.0.1", ["127.0.0.1:80", "localhost", "LOCALHOST:1"], ["elsewhere.example", "127.0.0.2", ""]),
        ("::1", ["[::1]:80", "[::1]", "localhost:80"], ["elsewhere.example", "[::2]:80", "[::1]x"]),
        ("0.0.0.0", ["elsewhere.example"], []),
    ],
)
def test_only_on_loopback_other_host_names_are_refused(host, names, others):
    with bind(host, 0) as listening:
        known = loopback_names(host, listening)
    assert (known is None) == (host == "0.0.0.0")
    app = words_app(None, "a model", known)
    assert [request(app, host=name)[0] for name in names] == [200] * len(names)
    assert [request(app, host=name)[0] for name in others] == [400] * len(others)


def request(app, method="GET", path="/", receive=None, **headers) -> tuple[int, bytes]:
    """Returns the status and body of an application's response."""
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
def test_a_post_from_another_site_is_refused(headers, status, tagger):
    app = words_app(tagger, "a model", {"localhost"})
    assert request(app, "POST", "/words", body(b"no image"), host="localhost:8000", **headers)[0] == status


def test_concurrent_uploads_are_limited(tagger):
    app = words_app(tagger, "a model", None)

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


def test_serve_prints_its_address_after_loading_the_model_and_stops_on_ctrl_c(squares_run):
    command = [
        sys.executable,
        "-m",
        "openclip_superclip",
        "words",
        "--serve",
        "--model",
        str(squares_run),
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = re.match(r"(http://127\.0\.0\.1:\d+/) shows the words", process.stdout.readline())[1]
    with urllib.request.urlopen(address) as answer:
        assert "The words of an image" in answer.read().decode()
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
