"""How well `superclip audit` finds errors that were planted into captions of the demo's scenes,
seed by seed.

`python docs/audit/measure.py OUT RUNS` measures the last checkpoints of the finished runs
RUNS/clip_seedN and RUNS/superclip_lr-0.001_seedN of the study one_batch, and writes planted.csv,
planted.json, planted.md and planted.png into OUT. Results that are in OUT/measured.json are not
measured again.
"""

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from openclip_superclip.audit.audit_page import most_doubtful
from openclip_superclip.audit.pair_scores import (
    ModelOutputs,
    PairScore,
    PairScorer,
    WordSupport,
    words_of,
)
from openclip_superclip.audit.score_file import mean_of_ranks
from openclip_superclip.demo.scenes import DESIGNERS, NAMES, UNSEEN_DESIGNERS, Scene, make_scene
from openclip_superclip.environment import versions
from openclip_superclip.rendering import markdown_table
from openclip_superclip.reports.paired_differences import PairedDifference, Spread
from openclip_superclip.words.open_checkpoint import open_checkpoint, read_model

# each at its own learning rate, which the study chose
ARMS = {"CLIP": "clip", "SuperCLIP": "superclip_lr-0.001"}
DRAWINGS = {"drawings as in training": DESIGNERS, "drawings by another designer": UNSEEN_DESIGNERS}
SCORES = (
    "CLIP score",
    "class loss",
    "support",
    "class loss and CLIP score",
    "support and CLIP score",
)
PLANTED = {
    "swapped": "a fifth of the captions swapped",
    "replaced": "one object wrong in a fifth of the captions",
}
COMPARED = [  # (arm, score) with (arm, score)
    (("SuperCLIP", "class loss"), ("CLIP", "CLIP score")),
    (("SuperCLIP", "class loss"), ("SuperCLIP", "CLIP score")),
    (("SuperCLIP", "support"), ("SuperCLIP", "class loss")),
    (("SuperCLIP", "support and CLIP score"), ("SuperCLIP", "CLIP score")),
    (("SuperCLIP", "support and CLIP score"), ("CLIP", "CLIP score")),
]

SWAPPED, REPLACED = 0.2, 0.2  # of the captions
MISLABELLED = (0.1, 0.01)  # of the images
NUM_WORDS = 20  # that are mislabelled, one at a time
BATCH_SIZE = 250


class Planted(NamedTuple):
    """Captions of scenes, and the wrong words in them."""

    captions: list[str]
    wrong: list[frozenset[str]]  # of each caption the words that its scene does not show


def plant_swaps(shown: Sequence[Scene], rng: np.random.Generator) -> Planted:
    """Exchanges a fifth of the captions, so that each of them names another scene's objects."""
    names = [list(scene.captions["long"].split(", ")) for scene in shown]
    chosen = rng.permutation(len(shown))[: round(SWAPPED * len(shown))]
    for place, other in zip(chosen, np.roll(chosen, 1), strict=True):
        names[place] = shown[other].captions["long"].split(", ")
    return _planted(shown, names)


def plant_words(shown: Sequence[Scene], rng: np.random.Generator, share: float) -> Planted:
    """Replaces one object by another in a fraction of the captions."""
    names = [scene.captions["long"].split(", ") for scene in shown]
    for place in rng.permutation(len(shown))[: round(share * len(shown))]:
        names[place][rng.integers(len(names[place]))] = _other(shown[place], rng)
    return _planted(shown, names)


def plant_one_word(
    shown: Sequence[Scene], rng: np.random.Generator, share: float, name: str
) -> Planted:
    """Replaces one object by the object `name` in a fraction of the captions, whose scenes do
    not show it."""
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
    wrong = [
        frozenset(words_of(caption)) - words for caption, words in zip(captions, true, strict=True)
    ]
    return Planted(captions, wrong)


def measure(
    scorer: PairScorer,
    preprocess: Callable,
    seed: int,
    num_scenes: int = 1000,
    designers: Sequence[str] = DESIGNERS,
) -> dict[str, float]:
    """Returns how well a model's scores find planted errors in held-out scenes, in percent.

    swapped, NAME: the AUROC of each pair score if a fifth of the captions are exchanged.
    replaced, NAME: the same if a fifth of the captions name one object that the scene does not
    show. replaced, …: how often the marked word, the one of lowest support, is wrong if every
    caption of two objects or more has one wrong object; and precision and recall of the marks
    (support below 0) if a fifth of the captions have one. mislabelled N %, …: how often one of 20
    words, written into N % of the captions that it is wrong for, comes first in the table of the
    words that are doubted most often.

    Args:
        seed: of the scenes and the errors, the same for all models of one seed.
    """
    numbers = range(seed * num_scenes, (seed + 1) * num_scenes)
    shown = [make_scene(0, number, "test", designers=designers) for number in numbers]
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


def _see(scorer: PairScorer, preprocess: Callable, shown: Sequence[Scene]) -> ModelOutputs:
    batches = [
        scorer.see(
            torch.stack([preprocess(scene.image) for scene in shown[start : start + BATCH_SIZE]])
        )
        for start in range(0, len(shown), BATCH_SIZE)
    ]
    features, log_probabilities = zip(*batches, strict=True)
    return ModelOutputs(
        torch.cat(features), torch.cat(log_probabilities) if scorer.has_head else None
    )


def _score(scorer: PairScorer, seen: ModelOutputs, captions: Sequence[str]) -> list[PairScore]:
    found = []
    for start in range(0, len(captions), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        log_probabilities = seen.log_probabilities[rows] if scorer.has_head else None
        found += scorer.score(
            ModelOutputs(seen.image_features[rows], log_probabilities), captions[rows]
        )
    return found


def _of_pairs(
    scorer: PairScorer, seen: ModelOutputs, planted: Planted, title: str
) -> dict[str, float]:
    found, bad = _score(scorer, seen, planted.captions), np.array([bool(w) for w in planted.wrong])
    scores = {"CLIP score": np.array([one.clip_score for one in found])}
    if scorer.has_head:
        loss, support = (
            np.array([getattr(one, name) for one in found]) for name in ("class_loss", "support")
        )
        scores |= {"class loss": -loss, "support": support}
        scores["class loss and CLIP score"] = mean_of_ranks([-loss, scores["CLIP score"]])
        scores["support and CLIP score"] = mean_of_ranks([support, scores["CLIP score"]])
    return {f"{title}, {name}": 100 * roc_auc_score(~bad, score) for name, score in scores.items()}


def _of_words(
    scorer: PairScorer, seen: ModelOutputs, shown: Sequence[Scene], rng: np.random.Generator
) -> dict[str, float]:
    planted = plant_words(shown, rng, 1.0)
    several = [len(caption.split(", ")) > 1 for caption in planted.captions]
    found = [
        (one.words, wrong)
        for one, wrong, more in zip(
            _score(scorer, seen, planted.captions), planted.wrong, several, strict=True
        )
        if more
    ]
    hits = {
        "marked word is wrong": [
            min(words, key=lambda word: word.support).word in wrong for words, wrong in found
        ],
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
    scorer: PairScorer,
    seen: ModelOutputs,
    shown: Sequence[Scene],
    rng: np.random.Generator,
    share: float,
) -> dict[str, float]:
    true = [scene.captions["long"] for scene in shown]
    of_true, places = _words(scorer, seen, true), []
    for name in rng.choice(NAMES, NUM_WORDS, replace=False).tolist():
        captions = plant_one_word(shown, rng, share, name).captions
        changed = [place for place, caption in enumerate(captions) if caption != true[place]]
        found = _words(scorer, _rows(seen, changed), [captions[place] for place in changed])
        counts, doubted = Counter(), Counter()
        for words in (of_true | dict(zip(changed, found.values(), strict=True))).values():
            counts.update(word.word for word in words)
            doubted.update(word.word for word in words if word.support < 0)
        ranked = [row.word for row in most_doubtful(counts, doubted)]
        places.append(min(ranked.index(word) for word in words_of(name)))
    title = f"mislabelled {share:.0%}"
    return {
        f"{title}, first": 100 * float(np.mean([place == 0 for place in places])),
        f"{title}, among the first three": 100 * float(np.mean([place < 3 for place in places])),
    }


def _rows(seen: ModelOutputs, places: Sequence[int]) -> ModelOutputs:
    return ModelOutputs(seen.image_features[places], seen.log_probabilities[places])


def _words(
    scorer: PairScorer, seen: ModelOutputs, captions: Sequence[str]
) -> dict[int, Sequence[WordSupport]]:
    """Returns the words of captions with their support, by place."""
    tokens = scorer.opened.tokenizer(list(captions)).to(scorer.device)
    return dict(enumerate(scorer.captions.words(seen.log_probabilities.exp(), captions, tokens)))


def measured(out: Path, runs: Path) -> dict[str, dict]:
    """Returns the measures by "arm|seed|drawings"; those that are new are kept as they come."""
    file = out / "measured.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for seed, arm, checkpoint in finished(runs):
        missing = [drawings for drawings in DRAWINGS if f"{arm}|{seed}|{drawings}" not in found]
        if not missing:
            continue
        opened = open_checkpoint(read_model(checkpoint))
        scorer = PairScorer(opened)
        for drawings in missing:
            measures = measure(
                scorer, opened.preprocess(), seed, designers=tuple(DRAWINGS[drawings])
            )
            found[f"{arm}|{seed}|{drawings}"] = measures
            file.write_text(json.dumps(found, indent=1))
            print(arm, seed, drawings, file=sys.stderr, flush=True)
    return found


def finished(runs: Path) -> list[tuple[int, str, Path]]:
    """Returns seed, arm and last checkpoint of the finished runs, seed by seed."""
    found = []
    for arm, prefix in ARMS.items():
        for run in runs.glob(f"{prefix}_seed*"):
            seed = re.fullmatch(rf"{re.escape(prefix)}_seed(\d+)", run.name)
            # those from 1000 on chose the rates
            if seed and int(seed[1]) < 1000 and (run / "demo-test.json").exists():
                epochs = {
                    int(path.stem.removeprefix("epoch_")): path
                    for path in run.glob("checkpoints/epoch_*.pt")
                }
                found.append((int(seed[1]), arm, epochs[max(epochs)]))
    return sorted(found)


def values(found: dict, arm: str, drawings: str, name: str) -> dict[int, float]:
    """Returns a measure by seed."""
    rows = {
        key.split("|")[1]: of
        for key, of in found.items()
        if key.startswith(f"{arm}|") and key.endswith(drawings)
    }
    return {int(seed): of[name] for seed, of in rows.items() if name in of}


def difference(found: dict, kind: str, drawings: str, *of: tuple[str, str]) -> PairedDifference:
    """Returns the differences between two scores, each with its arm, one a seed."""
    ours, theirs = (values(found, arm, drawings, f"{kind}, {score}") for arm, score in of)
    return PairedDifference(
        [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    )


def tables(found: dict) -> str:
    """Returns what was found, in Markdown."""
    parts = []
    for kind, title in PLANTED.items():
        rows = [
            [
                arm,
                score,
                *(
                    _spread(values(found, arm, drawings, f"{kind}, {score}"))
                    for drawings in DRAWINGS
                ),
            ]
            for arm in ARMS
            for score in SCORES
            if arm == "SuperCLIP" or score == "CLIP score"
        ]
        parts.append(
            f"AUROC in percent, {title}:\n\n" + markdown_table(["model", "score", *DRAWINGS], rows)
        )
        rows = [
            [
                f"{one[1]} of {one[0]} − {other[1]} of {other[0]}",
                *(
                    _interval(difference(found, kind, drawings, one, other))
                    for drawings in DRAWINGS
                ),
            ]
            for one, other in COMPARED
        ]
        parts.append(markdown_table(["difference, paired by seed", *DRAWINGS], rows))
    names = next(of for key, of in found.items() if key.startswith("SuperCLIP|"))
    names = [name for name in names if name.split(", ", 1)[1] not in SCORES]
    rows = [
        [name, *(_spread(values(found, "SuperCLIP", drawings, name)) for drawings in DRAWINGS)]
        for name in names
    ]
    parts.append("Words, in percent, SuperCLIP:\n\n" + markdown_table(["", *DRAWINGS], rows))
    seeds = {
        arm: len(values(found, arm, next(iter(DRAWINGS)), "swapped, CLIP score")) for arm in ARMS
    }
    numbers = " and ".join(f"{number} seeds of {arm}" for arm, number in seeds.items())
    parts.append(f"Mean ± standard deviation over {numbers}; 95 % intervals by Student's t.")
    return "\n\n".join(parts)


def _spread(by_seed: dict[int, float]) -> str:
    spread = Spread(list(by_seed.values()))
    return f"{spread.mean:.2f}" + (f" ± {spread.std:.2f}" if spread.std is not None else "")


def _interval(found: PairedDifference) -> str:
    low, high = found.interval or (found.mean, found.mean)
    return f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def draw(found: dict, path: Path) -> None:
    """Draws the AUROC of each score: a dot per seed, a bar at the mean."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 6), layout="constrained")
    shown = [("CLIP", "CLIP score")] + [("SuperCLIP", score) for score in SCORES]
    for row, (kind, title) in zip(grid, PLANTED.items(), strict=True):
        for axes, drawings in zip(row, DRAWINGS, strict=True):
            for place, (arm, score) in enumerate(shown):
                of = list(values(found, arm, drawings, f"{kind}, {score}").values())
                axes.plot(
                    of,
                    [place] * len(of),
                    ".",
                    color="#7d7d7d" if arm == "CLIP" else "#d1495b",
                    markersize=5,
                )
                axes.plot(
                    [sum(of) / len(of)] * 2,
                    [place - 0.3, place + 0.3],
                    color="black",
                    linewidth=1.5,
                )
            axes.set_yticks(
                range(len(shown)), [f"{arm}: {score}" for arm, score in shown], fontsize=8
            )
            axes.invert_yaxis()
            axes.set_title(f"{title}; {drawings}", fontsize=9)
            axes.set_xlabel("AUROC, %", fontsize=8)
            axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(out: Path, runs: Path) -> None:
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    found = measured(out, runs)
    with open(out / "planted.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "seed", "drawings", "measure", "percent"])
        for key, measures in sorted(found.items()):
            writer.writerows(
                [*key.split("|"), name, f"{value:.4f}"] for name, value in measures.items()
            )
    record = {
        "runs": ARMS,
        "versions": versions("python", "torch", "open_clip_torch", "openclip_superclip", "numpy"),
    }
    (out / "planted.json").write_text(json.dumps({**record, "measured": found}, indent=1) + "\n")
    (out / "planted.md").write_text(tables(found) + "\n")
    draw(found, out / "planted.png")
    print(tables(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
