"""`superclip words`: scores and locations of words, the output folder, and
errors."""

import html
import os
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from support import cases, parametrize, read_json_lines, refusals, table
from support.data import squares
from support.models import LIST_OF_WORDS, write_tokenizer
from support.training_runs import call, execute

from openclip_superclip.method.head_input import encode_image
from openclip_superclip.words.lexicon import WordProbabilities, lexicon, open_lexicon
from openclip_superclip.words.open_checkpoint import open_with_head
from openclip_superclip.words.tagger import Tagger


@pytest.fixture(scope="module")
def opened(squares_run):
    return open_with_head(squares_run)


@pytest.fixture
def image(tmp_path):
    squares({"red": (0, 0), "blue": (1, 1)}).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def folder(tmp_path):
    """A folder with images, one of which is upside down without its EXIF
    data, and a file that is not an image."""
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
    for placed in ({"red": (0, 0), "blue": (1, 1)}, {"blue": (1, 0), "green": (0, 1)}):
        seen = Tagger(opened, top=2).tag(squares(placed))
        assert {word.word for word in seen} == placed.keys()
        for word in seen:
            row, column = divmod(word.map.argmax().item(), word.map.shape[1])
            assert (row // 2, column // 2) == placed[word.word]


def test_run_checkpoint_and_export_print_the_heads_scores(
    squares_run, squares_export, opened, image, tmp_path
):
    (tmp_path / "lone.pt").symlink_to(squares_run / "checkpoints/epoch_6.pt")
    lone = [tmp_path / "lone.pt", "--architecture", f"local-dir:{squares_run.parents[1]}/model"]
    printed = []
    for model in ([squares_run], [squares_run / "checkpoints/epoch_6.pt"], [squares_export], lone):
        printed.append(execute(f"words {image} --words 'red,blue,a|b,a red' --model", *model))
    assert printed == printed[:1] * 4
    model, pixels = opened.model, opened.preprocess()(Image.open(image))[None]
    _, _, patch_mean = encode_image(model.visual, model.patch_tokens, pixels)
    probabilities = model.class_head.logits(patch_mean)[0].softmax(dim=0)
    red, blue = (probabilities[opened.tokenizer.encode(name)[0]].item() for name in ("red", "blue"))
    note, name, _, *lines, _ = printed[0].splitlines()
    # a part of which was in no caption
    assert note == "left out, because no training caption contains them: a|b, a red"
    assert name == str(image)
    shown = [line.split()[1:4:2] for line in lines]
    assert len(shown) == 4  # with the heads
    assert ["red", f"{red:.1%}"] in shown and ["blue", f"{blue:.1%}"] in shown


# Words and tokens


def test_the_lexicon_is_clips_whole_words_and_the_least_probable_token_limits_a_words_score():
    """Its score is Σ p if they are proportional to the weights.

    Tokens in every caption are ignored."""
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    every = open_lexicon(tokenizer, 49408)
    assert {"cat", "hamburger", "butterfly"} <= set(every.words) and len(every.words) > 30_000
    # single tokens
    assert every.tokens.tolist() == [tokenizer.encode(word) for word in every.words]
    p, w = torch.zeros(49408), torch.full((49408,), 2.0)
    (cat,), (red,), (the,) = map(tokenizer.encode, ("cat", "red", "the"))
    p[cat], p[red], p[the] = 0.3, 0.2, 0.0
    w[cat], w[the] = 1.0, 0.0
    words = ["cat", "red", "red cat", "the red cat", "cat cat", "dog", "the"]
    of_words = WordProbabilities(lexicon(words, tokenizer, 49408), w)
    expected = [0.3, 0.2, 0.1 * 3, 0.1 * 3, 0.3, 0.0, 0.0]
    of_both = of_words.of(torch.stack([p, 0 * p]))
    torch.testing.assert_close(of_both, torch.tensor([expected, [0.0] * 7]))


@cases("mark, pieces, texts", table("training: words of tokenizers"))
def test_the_words_of_a_hugging_face_tokenizer_are_its_whole_tokens_after_a_space(
    mark, pieces, texts, tmp_path
):
    pieces, texts = [*LIST_OF_WORDS[:4], *pieces.split()], texts.split()
    write_tokenizer(tmp_path, pieces, mark)
    tokenizer = HFTokenizer(str(tmp_path), context_length=8)
    found = open_lexicon(tokenizer, len(pieces))
    expected = {text: [id] for id, text in enumerate(texts, 4) if text.isalpha() and len(text) > 2}
    assert dict(zip(found.words, found.tokens.tolist(), strict=True)) == expected
    assert (lexicon(["cat a"], tokenizer, len(pieces)).tokens - 4).tolist() == [
        [texts.index("cat"), texts.index("a")]
    ]


# Output files


def test_a_folder_gives_a_self_contained_page_and_json_lines(
    folder, squares_export, tmp_path, capsys
):
    (folder / "text.jpg").write_text("no image")
    (folder / "folder.png").mkdir()
    out = tmp_path / "out"
    assert call(f"words {folder} --model {squares_export} --out {out}") == 3
    printed = capsys.readouterr().out
    assert "text.jpg is skipped: no readable image (cannot identify image file" in printed
    assert "2 images, 1 skipped" in printed
    records = read_json_lines(out / "words.jsonl")
    names = ["a <b> & 'c'.jpg", "red.png", "text.jpg"]
    assert [Path(record["image"]).name for record in records] == names
    assert [record["words"][0]["word"] for record in records[:2]] == ["green", "red"]
    # all that the captions of its training contain; "low" is the last token of yellow
    assert [{word["word"] for word in record["words"]} for record in records[:2]] == 2 * [
        {"red", "green", "blue", "low"}
    ]
    assert sorted(os.listdir(out)) == ["index.html", "superclip.json", "words.jsonl"]
    page = (out / "index.html").read_text()
    assert "a <b> & 'c'.jpg" in html.unescape(page) and "<b>a" not in page
    assert not re.search(r"https?:|<script|<link|@import", page)


def test_a_heat_map_is_bright_at_its_word_and_a_second_call_does_not_tag_it(
    squares_export, tmp_path
):
    for name in ("a/image.png", "b/image-2.png", "b/image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        squares({"red": (0, 0), "blue": (1, 1)}).save(tmp_path / name)
    out = tmp_path / "words"
    argv = ["--model", squares_export, "--words", "red, blue", "--heatmap", "--out", out]
    for more in ("", "--overwrite"):
        assert "3 images, 0 skipped" in execute(f"words {tmp_path} {more}", *argv)
    records = read_json_lines(out / "words.jsonl")
    names = ["image.words.png", "image-2.words.png", "image-3.words.png"]
    assert [Path(record["heatmap"]).name for record in records] == names
    for record in records:
        drawn = np.asarray(Image.open(record["heatmap"]).convert("RGB")).astype(int)
        # the image and two words, below their titles
        panels = np.array_split(drawn[drawn.shape[0] // 3 :], 3, axis=1)
        for word, panel in zip(record["words"], panels[1:], strict=True):
            top, bottom = np.array_split(panel.sum(axis=2), 2)
            assert (top.mean() > bottom.mean() + 30) == (word["word"] == "red")
    assert (out / "index.html").read_text().count("data:image/png;base64,") == 3


# Errors


@pytest.fixture(scope="module")
def models(squares_run, squares_export, tmp_path_factory):
    """A folder with an image, a model, and invalid models."""
    folder = tmp_path_factory.mktemp("models")
    squares({"red": (0, 0)}).save(folder / "image.png")
    (folder / "empty").mkdir()
    (folder / "model").symlink_to(squares_export)
    execute(f"export {squares_run}/checkpoints/epoch_6.pt --out {folder}/plain")
    (folder / "lone.pt").symlink_to(squares_run / "checkpoints/epoch_6.pt")
    (folder / "text.pt").write_text("no checkpoint")
    return folder


@cases("argv, reason", refusals("words"))
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(argv, reason, models, refused):
    assert reason in refused(models, f"words {argv}")


@parametrize("kind", ["EPS", "ICO"])
def test_formats_that_run_code_are_not_opened(kind, folder, squares_export, tmp_path, capsys):
    squares({"red": (0, 0)}, 256).save(folder / "cat.jpg", kind)
    reason = "no readable image (cannot identify image file"
    assert call(f"words {folder} --model {squares_export} --words red --out {tmp_path}/out") == 3
    assert f"cat.jpg is skipped: {reason}" in capsys.readouterr().out
