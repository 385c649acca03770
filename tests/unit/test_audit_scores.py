"""Parts of superclip audit: scores against slow plain formulas, data, and the page."""

import math
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg
from PIL import Image
from support.data import write_shards
from support.models import LIST_OF_WORDS, SPECIAL_TOKENS, write_tokenizer
from webdataset import TarWriter

import openclip_superclip as superclip
from openclip_superclip.data.tables import Columns
from openclip_superclip.errors import InputError
from openclip_superclip.lab.audit import audit as audit_module
from openclip_superclip.lab.audit.audit import _lock, select, write_kept
from openclip_superclip.lab.audit.page import most_doubtful
from openclip_superclip.lab.audit.reading import open_data, read_in_batches
from openclip_superclip.lab.audit.scores import CaptionSupport, PairScorer, mean_of_ranks
from openclip_superclip.lab.words.tagger import Opened
from openclip_superclip.method.head_input import encode_image

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
def scorer(tiny_model) -> PairScorer:
    """Of a model with an untrained class head and counts of captions."""
    torch.manual_seed(0)
    model, _, _ = superclip.create_model_and_transforms(tiny_model)
    tokenizer = open_clip.get_tokenizer(tiny_model)
    model.statistics.update(tokenizer(LEARNED))
    model.class_head.weight.data *= 3
    return PairScorer(
        Opened(model.eval(), tokenizer, PreprocessCfg(size=(32, 32)), model.statistics.idf())
    )


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
        images, texts = (
            model.encode_image(images, normalize=True),
            model.encode_text(tokens, normalize=True),
        )
    for one, caption, loss, cosine in zip(
        scorer.score(found, CAPTIONS),
        CAPTIONS,
        losses,
        (images * texts).sum(dim=1).tolist(),
        strict=True,
    ):
        assert one.clip_score == pytest.approx(cosine, abs=1e-5)
        assert one.class_loss == (pytest.approx(loss, rel=1e-5) if caption else None)


def test_support_equals_a_slow_plain_version_and_a_learned_word_has_it_once(scorer, seen):
    scores = scorer.score(seen[1], CAPTIONS)
    words = [[word.word for word in one.words] for one in scores]
    assert words == [["a", "red", "cat"], ["dog", "house", "a"], ["tree"], [], ["a", "tree", "and"]]
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
            assert one.support is None
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
            assert word.share == pytest.approx(p[token], rel=1e-4)
            assert word.expected == pytest.approx(df[token] * idf[token] / mass, rel=1e-4)
            assert word.support == pytest.approx(
                math.log2(p[token] * mass / (df[token] * idf[token])), abs=1e-3
            )


def test_suggested_words_are_learned_missing_and_clearly_more_probable_than_expected(scorer, seen):
    probabilities = torch.full_like(seen[1].log_probabilities, 1e-6)
    # "moon" was not learned
    for word, share in (("dog", 0.3), ("moon", 0.3), ("cat", 0.25), ("tree", 0.17)):
        probabilities[:, scorer.opened.tokenizer.encode(word)] = share
    found = scorer.score(seen[1]._replace(log_probabilities=probabilities.log()), CAPTIONS)
    # "tree" is hardly more probable
    words = [["dog"], ["cat"], ["dog", "cat"], ["dog", "cat"], ["dog", "cat"]]
    assert [[word.word for word in one.offered] for one in found] == words
    assert all(word.support > 0.5 for one in found for word in one.offered)


@pytest.mark.parametrize("mark", "Ġ▁")
def test_the_first_word_has_the_support_of_its_own_token_and_is_not_suggested(mark, tmp_path):
    write_tokenizer(
        tmp_path,
        [*LIST_OF_WORDS[:5], "dog", *(mark + word for word in ("a", "dog", "cat", "sees"))],
        mark,
    )
    tokenizer, captions = HFTokenizer(str(tmp_path), context_length=8), ["dog sees a cat", "a dog"]
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


def test_words_are_sorted_by_the_lower_bound_of_their_doubts():
    rows = most_doubtful(
        Counter(once=1, often=40, seldom=40, the=9), Counter(once=1, often=30, seldom=2, the=9)
    )
    assert [row.word for row in rows] == ["often", "once", "seldom"]
    row = rows[0]
    assert (row.num_captions, row.num_doubted) == (40, 30)
    assert row.fraction.low == pytest.approx(0.598, abs=1e-3)  # Wilson's bound for 30 of 40


def test_a_fraction_of_the_scored_pairs_is_kept():
    assert select(np.array([1, -np.inf, 3, 2, 3, 0]), 0.4).tolist() == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]
    assert select(np.array([2, 1, -np.inf]), 0.1).tolist() == [True, False, False]  # at least one


# Data and files


@pytest.fixture
def pairs(tmp_path) -> Path:
    """A table with commas, quotes, a line break, blank lines, an empty caption and invalid
    images."""
    Image.effect_noise((32, 32), 9).convert("RGB").save(tmp_path / "0.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:300])
    rows = [
        '{p}/0.png,"a cat, a dog"',
        '{p}/0.png,"two\nlines"',
        "",
        "  ",
        "{p}/nix.png,a dog",
        "{p}/cut.png,a tree",
    ]
    rows += ["{p}/0.png,", '{p}/0.png,"a ""moon"""']
    (tmp_path / "pairs.csv").write_text(
        "image,caption\n" + "\n".join(rows).replace("{p}", str(tmp_path))
    )
    return tmp_path / "pairs.csv"


def test_a_table_is_read_in_order_with_its_problems(pairs):
    data = open_data(str(pairs), COLUMNS)
    whole = list(data.pairs())
    assert [pair.caption for pair in whole] == [
        "a cat, a dog",
        "two\nlines",
        "a dog",
        "a tree",
        "",
        'a "moon"',
    ]
    assert data.num_pairs == len(whole)
    # a gigabyte after resizing for a model
    Image.new("RGB", (1, 20_000)).save(pairs.with_name("nix.png"))
    read = [
        one
        for batch in read_in_batches(iter(whole), lambda image: image.load(), 4, 2)
        for one in batch
    ]
    problems = ["", "", "no readable image", "no readable image", "no caption", ""]
    assert [one.problem.partition(" (")[0] for one in read] == problems


def test_the_kept_rows_of_a_table_are_unchanged(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_module, "ROWS_AT_ONCE", 4)
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
    pattern = write_shards(tmp_path / "shards", 4)
    with tarfile.open(tmp_path / "shards/000001.tar") as tar:
        image = [member for member in tar if member.name.endswith(".png")][8]
    os.truncate(tmp_path / "shards/000001.tar", image.offset_data + image.size // 2)
    (tmp_path / "shards/000002.tar").unlink()
    with TarWriter(str(tmp_path / "shards/000003.tar")) as tar:
        tar.write({"__key__": "a", "png": b"none", "txt": "a cat"})
        tar.write({"__key__": "b", "png": b"none", "txt": " "})
        tar.write({"__key__": "c", "txt": "alone"})
    data = open_data(pattern, COLUMNS)
    found = list(data.pairs())
    assert [pair.place for pair in found] == sorted(pair.place for pair in found)
    problems: dict[int, list[str]] = {}
    for pair in found:
        problems.setdefault(pair.place[0], []).append(pair.problem.partition(" (")[0])
    assert problems[0] == [""] * 16
    # of the pair that is cut
    assert problems[1] == [*[""] * 8, "no caption in .txt", "broken tar file"]
    assert problems[2] == ["no such file"]
    (read,) = read_in_batches(iter(found[-3:]), lambda image: image.load(), 3, 1)
    assert [pair.problem.partition(" (")[0] for pair in read] == [
        "no readable image",
        "no caption in .txt",
        "no image",
    ]
    assert data.num_pairs is None  # without sizes.json


def test_two_calls_do_not_write_the_same_scores(tmp_path):
    part = tmp_path / "scores.jsonl.part"
    with open(part, "ab") as first, open(part, "ab") as second:
        _lock(first, part)
        with pytest.raises(InputError, match="another call is writing"):
            _lock(second, part)
