"""Parts of superclip audit: scores against slow plain formulas, data, and
the page."""

import math
import os
import tarfile

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from support import input_error, parametrize
from support.data import write_shards, write_tar
from support.models import LIST_OF_WORDS, SPECIAL_TOKENS, write_tokenizer

import openclip_superclip as superclip
from openclip_superclip.audit import kept as kept_module
from openclip_superclip.audit.audit import _lock
from openclip_superclip.audit.kept import write_kept
from openclip_superclip.audit.pair_scores import CaptionSupport, PairScorer
from openclip_superclip.audit.reading import open_data, read_in_batches
from openclip_superclip.audit.score_file import mean_of_ranks
from openclip_superclip.data.tables import Columns
from openclip_superclip.method.head_input import encode_image
from openclip_superclip.words.open_checkpoint import OpenedCheckpoint

LEARNED = [
    "a red cat",
    "a dog",
    "the blue house",
    "a cat, a dog and a red house",
    "a",
    "tree",
    "a tree",
]
CAPTIONS = ["a red cat", "dog, house. A DOG!", "unicorn tree", "", "a tree and a moon"]
COLUMNS = Columns(",", "image", "caption")


@pytest.fixture(scope="module")
def scorer(tiny_model):
    """Of a model with an untrained class head and counts of captions."""
    torch.manual_seed(0)
    model, _, _ = superclip.create_model_and_transforms(tiny_model)
    tokenizer = open_clip.get_tokenizer(tiny_model)
    model.statistics.update(tokenizer(LEARNED))
    model.class_head.weight.data *= 3
    return PairScorer(OpenedCheckpoint(model.eval(), tokenizer, model.statistics.idf()))


@pytest.fixture(scope="module")
def seen(scorer):
    torch.manual_seed(1)
    images = torch.randn(len(CAPTIONS), 3, 32, 32)
    return images, scorer.see(images)


# Scores


def test_class_loss_and_clip_score_equal_those_of_training(scorer, seen):
    images, found = seen
    model, tokens = scorer.opened.model, scorer.opened.tokenizer(CAPTIONS)
    with torch.no_grad():
        _, _, patch_mean = encode_image(model.visual, model.patch_tokens, images)
        losses = model.class_head(patch_mean, tokens, model.statistics.idf()).tolist()
        images = model.encode_image(images, normalize=True)
        texts = model.encode_text(tokens, normalize=True)
    for one, caption, loss, cosine in zip(
        scorer.score(found, CAPTIONS),
        CAPTIONS,
        losses,
        (images * texts).sum(dim=1).tolist(),
        strict=True,
    ):
        assert one.clip_score == pytest.approx(cosine, abs=1e-5)
        assert one.class_loss == pytest.approx(loss if caption else math.nan, rel=1e-5, nan_ok=True)


def test_support_equals_a_slow_plain_version_and_a_learned_word_has_it_once(scorer, seen):
    scores = scorer.score(seen[1], CAPTIONS)
    words = [" ".join(word.word for word in one.words) for one in scores]
    assert words == ["a red cat", "dog house a", "tree", "", "a tree and"]
    counts, encoder = scorer.opened.model.statistics, scorer.opened.tokenizer.encode
    df = counts.document_frequency.tolist()
    n = counts.num_captions.item()
    idf = [
        max(0.0, math.log((n + 1) / (d + 1))) if token not in SPECIAL_TOKENS else 0.0
        for token, d in enumerate(df)
    ]
    mass = sum(d * w for d, w in zip(df, idf, strict=True))
    for row, (one, caption) in enumerate(zip(scores, CAPTIONS, strict=True)):
        p = seen[1].log_probabilities[row].double().exp().tolist()
        tokens = [token for token in dict.fromkeys(encoder(caption)) if df[token] and idf[token]]
        if not tokens:
            assert math.isnan(one.support)
            continue
        total = sum(idf[token] for token in tokens)
        gained = most = 0.0
        for token in tokens:
            target, expected = idf[token] / total, df[token] * idf[token] / mass
            gained += target * math.log(p[token] / expected)
            most += target * math.log(target / expected)
        assert one.support == pytest.approx(gained / most, rel=1e-4)
        for word in one.words:
            (token,) = encoder(word.word)
            expected = df[token] * idf[token] / mass
            assert [word.share, word.expected] == pytest.approx([p[token], expected], rel=1e-4)
            assert word.support == pytest.approx(math.log2(p[token] / expected), abs=1e-3)


@parametrize("mark", "Ġ▁")
def test_the_first_word_has_the_support_of_its_own_token_and_is_not_suggested(mark, tmp_path):
    write_tokenizer(
        tmp_path,
        [*LIST_OF_WORDS[:5], "dog", *(mark + word for word in ("a", "dog", "cat", "sees"))],
        mark,
    )
    tokenizer = HFTokenizer(str(tmp_path), context_length=8)
    captions = ["dog sees a cat", "a dog"]
    tokens = tokenizer(captions)
    support = CaptionSupport(tokenizer, torch.tensor([0.0] * 4 + [1.0] * 6), torch.ones(10).long())
    probabilities = torch.tensor([0, 0, 0, 0, 0.05, 0.1, 0.05, 0.3, 0.4, 0.1]).expand(2, 10)
    words, missing = (
        of(probabilities, captions, tokens) for of in (support.words, support.missing)
    )
    shares = [{word.word: round(word.share, 2) for word in some} for some in words]
    assert shares == [{"dog": 0.1, "sees": 0.1, "a": 0.05, "cat": 0.4}, {"a": 0.05, "dog": 0.3}]
    assert [[word.word for word in some] for some in missing] == [[], ["cat"]]


# Ranks, words, selection


def test_equal_scores_share_their_mean_rank_and_scores_need_no_common_unit():
    assert mean_of_ranks([np.array([3.0, 1, 3, 2])]).tolist() == [0.875, 0.25, 0.875, 0.5]
    assert mean_of_ranks([np.array([1.0, 2]), np.array([20.0, 10])]).tolist() == [0.75, 0.75]
    ranks = mean_of_ranks([np.array([1.0, 2, np.nan, np.nan]), np.array([10.0, 30, 20, np.nan])])
    assert ranks == pytest.approx([(1 / 2 + 1 / 3) / 2, 1, 2 / 3, np.nan], nan_ok=True)


# Data and files


@pytest.fixture
def pairs(tmp_path):
    """A table with commas, quotes, a carriage return, blank lines, an empty
    caption and invalid images."""
    Image.effect_noise((32, 32), 9).convert("RGB").save(tmp_path / "0.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    rows = [
        '{p}/0.png,"a cat, a dog"',
        '{p}/0.png,"two\rlines"',
        "",
        "  ",
        "{p}/nix.png,a dog",
        "{p}/cut.png,a tree",
        "{p}/0.png,",
        '{p}/0.png,"a ""moon"""',
    ]
    (tmp_path / "pairs.csv").write_text(
        "image,caption\n" + "\n".join(rows).replace("{p}", str(tmp_path))
    )
    return tmp_path / "pairs.csv"


@pytest.mark.filterwarnings("error::pandas.errors.ParserWarning")
def test_the_kept_rows_of_a_table_are_unchanged(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_module, "ROWS_AT_ONCE", 4)
    kept = np.array([False, True, False, True, False, True])
    assert write_kept(tmp_path, open_data(str(pairs), COLUMNS), kept, []) == f"{tmp_path}/kept.csv"
    image, cut = tmp_path / "0.png", tmp_path / "cut.png"
    assert (tmp_path / "kept.csv").read_text() == (
        f'image,caption\n{image},"two\nlines"\n{cut},a tree\n{image},"a ""moon"""\n'
    )
    pairs.write_text(f"image\tcaption\tid\n{image}\tNA\t007\n{image}\ta dog\t1\n")
    # pandas accepts regular expressions
    data = open_data(str(pairs), Columns("\\t", "image", "caption"))
    assert (
        write_kept(tmp_path, data, np.array([True, False]), [])
        == f"{tmp_path}/kept.csv, separated by tabs"
    )
    assert (tmp_path / "kept.csv").read_text() == f"image\tcaption\tid\n{image}\tNA\t007\n"


def test_shards_are_read_with_their_problems(tmp_path):
    pattern = write_shards(tmp_path / "shards", 3)
    cut = tmp_path / "shards/000000.tar"
    with tarfile.open(cut) as tar:
        image = [member for member in tar if member.name.endswith(".png")][8]
    os.truncate(cut, image.offset_data + image.size // 2)
    (tmp_path / "shards/000001.tar").unlink()
    broken = [{"png": b"none", "txt": "a cat"}, {"png": b"none", "txt": " "}, {"txt": "alone"}]
    write_tar(tmp_path / "shards/000002.tar", broken)
    data = open_data(pattern, COLUMNS)
    (read,) = read_in_batches(data.pairs(), lambda image: image.load(), 99, 1)
    assert [pair.place for pair in read] == sorted(pair.place for pair in read)
    of_cut = [*[""] * 8, "no caption in .txt", "broken tar file"]
    others = ["no such file", "no readable image", "no caption in .txt", "no image"]
    assert [pair.problem.partition(" (")[0] for pair in read] == of_cut + others
    assert data.num_pairs is None  # without sizes.json
    write_kept(tmp_path / "out", data, None, [(0, 8)])
    with tarfile.open(tmp_path / "out/kept/000000.tar") as tar:
        assert not tar.getnames()  # the image was cut


def test_two_calls_do_not_write_the_same_scores(tmp_path):
    part = tmp_path / "scores.jsonl.part"
    with open(part, "ab") as first, open(part, "ab") as second:
        _lock(first, part)
        with input_error("another call is writing"):
            _lock(second, part)
