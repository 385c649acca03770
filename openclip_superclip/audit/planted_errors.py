"""Captions of the demo's scenes with errors that are known, and how well the scores of pairs find them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from ..demo.scenes import DESIGNERS, NAMES, Scene, scenes
from .scorer import PairScore, PairScorer, Seen, WordSupport, words_of
from .store import WordTable, mean_of_ranks

SWAPPED, REPLACED = 0.2, 0.2  # of the captions


MISLABELLED = (0.1, 0.01)  # of the pictures


NUM_WORDS = 20  # that are mislabelled, one at a time


BATCH_SIZE = 250


class Planted(NamedTuple):
    """Captions of scenes, and what is wrong in them."""

    captions: list[str]
    wrong: list[frozenset[str]]  # of each caption the words that its scene does not show


def plant_swaps(shown: Sequence[Scene], rng: np.random.Generator) -> Planted:
    """Exchanges a fifth of the captions among themselves, so that each names another set of objects than is shown."""
    names = [list(scene.captions["long"].split(", ")) for scene in shown]
    chosen = rng.permutation(len(shown))[: round(SWAPPED * len(shown))]
    for place, other in zip(chosen, np.roll(chosen, 1), strict=True):
        names[place] = shown[other].captions["long"].split(", ")
    return _planted(shown, names)


def plant_words(shown: Sequence[Scene], rng: np.random.Generator, share: float) -> Planted:
    """Replaces one object by another in a share of the captions."""
    names = [scene.captions["long"].split(", ") for scene in shown]
    for place in rng.permutation(len(shown))[: round(share * len(shown))]:
        names[place][rng.integers(len(names[place]))] = _other(shown[place], rng)
    return _planted(shown, names)


def plant_one_word(shown: Sequence[Scene], rng: np.random.Generator, share: float, name: str) -> Planted:
    """Replaces one object by the object `name` in a share of the captions, whose scenes do not show it."""
    names = [scene.captions["long"].split(", ") for scene in shown]
    others = [place for place, scene in enumerate(shown) if name not in scene.objects]
    for place in rng.permutation(others)[: max(1, round(share * len(shown)))]:
        names[place][rng.integers(len(names[place]))] = name
    return _planted(shown, names)


def _other(scene: Scene, rng: np.random.Generator) -> str:
    """Returns an object that is not shown and shares no word with what is."""
    words = {word for name in scene.objects for word in words_of(name)}
    while True:
        name = NAMES[rng.integers(len(NAMES))]
        if words.isdisjoint(words_of(name)):
            return name


def _planted(shown: Sequence[Scene], names: list[list[str]]) -> Planted:
    captions = [", ".join(of) for of in names]
    true = [{word for name in scene.objects for word in words_of(name)} for scene in shown]
    wrong = [frozenset(words_of(caption)) - words for caption, words in zip(captions, true, strict=True)]
    return Planted(captions, wrong)


def measure(
    scorer: PairScorer,
    preprocess: Callable,
    seed: int,
    num_scenes: int = 1000,
    designers: Sequence[str] = DESIGNERS,
) -> dict[str, float]:
    """Returns how well a model's scores find planted errors in held-out scenes, in percent.

    swapped, NAME: the AUROC of each pair score where a fifth of the captions are exchanged.
    replaced, NAME: the same where a fifth of the captions name one object that is not there.
    replaced, …: the marked word, the one of lowest support, where every caption of two objects or more has a wrong
    one; and precision and recall of the marks where a fifth has one, and a word is marked where its support is below 0.
    mislabelled N %, …: how often one of 20 words, written into N % of the captions that it is wrong for, comes first in
    the table of the words that are doubted most often.

    Args:
        seed: of the scenes and of the errors; models of one seed meet the same.
    """
    shown = list(scenes(num_scenes, 0, "test", first_index=seed * num_scenes, designers=designers))
    seen = _see(scorer, preprocess, shown)
    rng = np.random.default_rng((seed, num_scenes))
    found = _of_pairs(scorer, seen, plant_swaps(shown, rng), "swapped")
    found |= _of_pairs(scorer, seen, plant_words(shown, rng, REPLACED), "replaced")
    if not scorer.has_head:
        return found
    found |= _of_words(scorer, seen, shown, rng)
    for share in MISLABELLED:
        found |= _of_one_word(scorer, seen, shown, rng, share)
    return found


def _see(scorer: PairScorer, preprocess: Callable, shown: Sequence[Scene]) -> Seen:
    batches = [
        scorer.see(torch.stack([preprocess(scene.image) for scene in shown[start : start + BATCH_SIZE]]))
        for start in range(0, len(shown), BATCH_SIZE)
    ]
    features, log_probabilities = zip(*batches, strict=True)
    return Seen(torch.cat(features), torch.cat(log_probabilities) if scorer.has_head else None)


def _score(scorer: PairScorer, seen: Seen, captions: Sequence[str], clip_score: bool = False) -> list[PairScore]:
    found = []
    for start in range(0, len(captions), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        log_probabilities = seen.log_probabilities[rows] if scorer.has_head else None
        found += scorer.score(Seen(seen.image_features[rows], log_probabilities), captions[rows], clip_score)
    return found


def _of_pairs(scorer: PairScorer, seen: Seen, planted: Planted, title: str) -> dict[str, float]:
    found, bad = _score(scorer, seen, planted.captions, clip_score=True), np.array([bool(w) for w in planted.wrong])
    scores = {"CLIP score": np.array([one.clip_score for one in found])}
    if scorer.has_head:
        loss, support = (np.array([getattr(one, name) for one in found]) for name in ("class_loss", "support"))
        scores |= {"class loss": -loss, "support": support}
        scores["class loss and CLIP score"] = mean_of_ranks([-loss, scores["CLIP score"]])
        scores["support and CLIP score"] = mean_of_ranks([support, scores["CLIP score"]])
    return {f"{title}, {name}": 100 * roc_auc_score(~bad, score) for name, score in scores.items()}


def _of_words(scorer: PairScorer, seen: Seen, shown: Sequence[Scene], rng: np.random.Generator) -> dict[str, float]:
    planted = plant_words(shown, rng, 1.0)
    several = [len(caption.split(", ")) > 1 for caption in planted.captions]
    found = [
        (one.words, wrong)
        for one, wrong, more in zip(_score(scorer, seen, planted.captions), planted.wrong, several, strict=True)
        if more
    ]
    hits = {
        "marked word is wrong": [min(words, key=lambda word: word.support).word in wrong for words, wrong in found],
        "word of least share is wrong": [
            min(words, key=lambda word: word.share).word in wrong for words, wrong in found
        ],
        "any word is wrong": [len(wrong) / len(words) for words, wrong in found],
    }
    measures = {f"replaced, {name}": 100 * float(np.mean(of)) for name, of in hits.items()}
    planted = plant_words(shown, rng, REPLACED)
    marks = [
        (word.support < 0, word.word in wrong)
        for one, wrong in zip(_score(scorer, seen, planted.captions), planted.wrong, strict=True)
        for word in one.words
    ]
    marked, is_wrong = np.array(marks).T
    both = (marked & is_wrong).sum()
    measures["replaced, precision of the marks"] = 100 * float(both / max(1, marked.sum()))
    measures["replaced, recall of the marks"] = 100 * float(both / is_wrong.sum())
    return measures


def _of_one_word(
    scorer: PairScorer, seen: Seen, shown: Sequence[Scene], rng: np.random.Generator, share: float
) -> dict[str, float]:
    true = [scene.captions["long"] for scene in shown]
    of_true, places = _words(scorer, seen, true), []
    for name in rng.choice(NAMES, NUM_WORDS, replace=False).tolist():
        captions = plant_one_word(shown, rng, share, name).captions
        changed = [place for place, caption in enumerate(captions) if caption != true[place]]
        found = _words(scorer, _rows(seen, changed), [captions[place] for place in changed])
        table = WordTable()
        for words in (of_true | dict(zip(changed, found.values(), strict=True))).values():
            table.add((word.word, word.support) for word in words)
        ranked = [row.word for row in table.rows()]
        places.append(min(ranked.index(word) for word in words_of(name)))
    title = f"mislabelled {share:.0%}"
    return {
        f"{title}, first": 100 * float(np.mean([place == 0 for place in places])),
        f"{title}, among the first three": 100 * float(np.mean([place < 3 for place in places])),
    }


def _rows(seen: Seen, places: Sequence[int]) -> Seen:
    return Seen(seen.image_features[places], seen.log_probabilities[places])


def _words(scorer: PairScorer, seen: Seen, captions: Sequence[str]) -> dict[int, Sequence[WordSupport]]:
    """Returns the words of captions with their support, by place."""
    tokens = scorer.opened.tokenizer(list(captions)).to(scorer.device)
    return dict(enumerate(scorer.captions.words(seen.log_probabilities.exp(), captions, tokens)))
