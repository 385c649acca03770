"""The tables of the studies, computed from their records alone: `python studies/verdicts.py`.

It writes verdicts.csv (one row per comparison and measure) and the tables between the markers in
studies/README.md and in the README.md of each study. It reads the runs in study.json, which
study.csv repeats with two decimals, audit/train_again.csv, and the files study.csv of
held_out_words and classes_and_samples, whose measures are their own. README.md states the rule of
correction and what the verdicts mean.
"""

import csv
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.stats import nct, t

HERE = Path(__file__).parent
AUDIT = "audit"
TUNING_SEEDS = 1000  # the first seed of trials, which no result uses
EARLIER, EARLIER_FLIP, EARLIER_BATCH = "vit/earlier", "flip/earlier", "batch_size/earlier"
AFTER_REVIEW = "added after the results were known"
CANNOT_ANSWER = {  # why, by study, and by measure if only one is concerned
    EARLIER: "unequal rates",
    EARLIER_FLIP: "unequal rates",
    "flip_longer": "unequal rates",
    EARLIER_BATCH: "wrong contrast",
    ("vit_dense", "mIoU"): "scores near chance",
}
HELD_OUT = "held_out_words"
TUNED_LONGER = "longer_fine_tuning"
TWO_FACTORS, OBJECTS = "captions_and_frequencies", "classes_and_samples"
OWN_FAMILY = (  # by their protocols
    "transfer",
    "stamps",
    "natural_towers",
    "natural_towers_equal",
    "natural_idf",
    TWO_FACTORS,
    OBJECTS,
    HELD_OUT,
    TUNED_LONGER,
)
LOWER_IS_BETTER = ("depth_RMSE",)
SMALLEST_EFFECT = defaultdict(lambda: 2.0, stamps=3.0)  # that matters, in points, by study
# comparisons whose arms have different rates, chosen on at most two trial seeds
UNEQUAL_TUNING = {
    ("natural_towers", "SuperCLIP − CLIP"),
    ("natural_towers", "pooled − CLIP"),
    ("natural_idf", "IDF off − CLIP"),
    ("natural", "SuperCLIP − CLIP"),
    ("natural", "pooled − CLIP"),
    ("vit", "SuperCLIP − CLIP"),
    ("vit", "pooled − CLIP"),
    ("vit", "pooled − SuperCLIP at CLIP's rate"),
    ("vit_dense", "SuperCLIP − CLIP"),
    ("vit_dense", "pooled − CLIP"),
    ("vit_dense", "both − CLIP"),
    ("vit_head", "both − CLIP"),
}
TITLES = {
    "zero_shot": "zero-shot",
    "image_to_text_R@1": "image→text R@1",
    "text_to_image_R@1": "text→image R@1",
    "tagging": "tagging",
    "linear_probe": "linear probe",
    "mIoU": "mIoU",
    "depth_RMSE": "depth RMSE, cm",
    "new_combinations": "new combinations",
    "image_to_long_text_R@1": "image→long text R@1",
    "long_text_to_image_R@1": "long text→image R@1",
    "seen_zero_shot": "seen: zero-shot",
    "seen_image_to_text_R@1": "seen: image→text R@1",
    "seen_text_to_image_R@1": "seen: text→image R@1",
    "seen_tagging": "seen: tagging",
    "seen_linear_probe": "seen: linear probe",
    "seen_held_out": "seen: held-out objects",
    "seen_kept": "seen: kept objects",
    "unseen_held_out": "unseen: held-out objects",
    "unseen_kept": "unseen: kept objects",
    "seen_probe_held_out": "linear probe: held-out objects",
    "seen_probe_kept": "linear probe: kept objects",
    "seen_among_held_out": "seen: held-out objects among held-out names",
}


@dataclass(frozen=True)
class Factor:
    """Two levels in which versions of a study's training scenes differ; the claim is that the
    second one reduces the gain."""

    names: tuple[str, str]  # of the levels
    noun: str
    mark: str  # of the second level, in the names of versions

    def sign(self, version: str) -> int:
        """Returns -1 for a version of the first level, 1 for one of the second."""
        return 1 if self.mark in version else -1

    def level(self, version: str) -> str:
        return f"{self.names[1] if self.sign(version) > 0 else self.names[0]} {self.noun}"

    @property
    def effect(self) -> str:
        first, second = self.names
        return f"{second} − {first} {self.noun}"


FACTORS = {  # by study
    TWO_FACTORS: (
        Factor(("clean", "careless"), "captions", "careless"),
        Factor(("equal", "Zipf's"), "frequencies", "zipf"),
    ),
    OBJECTS: (
        Factor(("25", "100"), "objects", "100 objects"),
        Factor(("512", "128"), "scenes of each", "128 scenes"),
    ),
}
TUNED_LONGER_MEASURES = (  # by its protocol, the primary one first
    "zero_shot",
    "seen_zero_shot",
    "image_to_text_R@1",
    "text_to_image_R@1",
    "tagging",
    "linear_probe",
    "new_combinations",
)
HELD_OUT_HEADS = {head: f"{head}, half the words" for head in ("SuperCLIP", "pooled")}


@dataclass(kw_only=True)
class Comparison:
    """A measure's differences of two arms, paired by seed."""

    measure: str
    seeds: list[int]
    differences: list[float]
    study: str = ""
    arm: str = ""
    baseline: str = ""
    # a value of the swept field, "mean …", "per doubling" or an effect; empty if the study sweeps
    # nothing
    where: str = ""
    is_primary: bool = False
    means: tuple[float, float] | None = None  # of the baseline and of the arm
    note: str = ""
    holm: float = 1.0  # the corrected p-value in the study's family
    holm_of_all: float | None = None  # in the family of the primary comparisons of all studies

    @property
    def flaw(self) -> str:
        """Why the numbers of the study cannot answer; empty if they can."""
        return CANNOT_ANSWER.get(self.study, "") or CANNOT_ANSWER.get(
            (self.study, self.measure), ""
        )

    @property
    def is_unequally_tuned(self) -> bool:
        return (self.study, self.name) in UNEQUAL_TUNING

    @property
    def depends_on_family(self) -> bool:
        """Whether it is significant in only one of the two families."""
        return self.holm_of_all is not None and (self.holm <= 0.05) != (self.holm_of_all <= 0.05)

    @property
    def name(self) -> str:
        return f"{self.arm} − {self.baseline}" + (f", {self.where}" if self.where else "")

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return statistics.mean(self.differences)

    @property
    def std(self) -> float:
        return statistics.stdev(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean, by Student's t over the seeds."""
        half = t.ppf(0.975, self.n - 1) * self.std / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """The two-sided p-value of the paired t-test; 1 if all differences are equal."""
        if self.std == 0:
            return 1.0
        return float(2 * t.sf(abs(self.mean) / (self.std / math.sqrt(self.n)), self.n - 1))

    def __str__(self) -> str:
        return interval_text(self.mean, *self.interval)

    @property
    def verdict(self) -> str:
        """ "gain", "loss", "no gain" or "open" of the first arm; "equal" if the runs are."""
        if self.flaw or self.is_unequally_tuned:
            return "open"
        if not any(self.differences):
            return "equal"
        sign = -1 if self.measure in LOWER_IS_BETTER else 1
        if self.holm <= 0.05:
            return "gain" if sign * self.mean > 0 else "loss"
        is_gain = self.where in ("", "mean") or self.means is not None  # not an effect or a slope
        is_excluded = max(sign * end for end in self.interval) < SMALLEST_EFFECT[self.study]
        in_points = self.measure not in LOWER_IS_BETTER
        return "no gain" if is_gain and is_excluded and in_points else "open"


def interval_text(mean: float, low: float, high: float) -> str:
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's step-down correction for their number, in their order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def power(effect: float, std: float, n: int) -> float:
    """The probability that the 95 % interval of n paired differences excludes zero."""
    edge, shift = t.ppf(0.975, n - 1), effect / std * math.sqrt(n)
    return float(nct.sf(edge, n - 1, shift) + nct.cdf(-edge, n - 1, shift))


def read_study(folder: Path) -> list[Comparison]:
    """The comparisons of a recorded study, of every measure, without Holm's correction."""
    record = json.loads((folder / "study.json").read_text())
    name, primary, runs = folder.relative_to(HERE).as_posix(), record["primary"], record["runs"]
    swept = next(iter(record["study"]["cells"]), None)
    measures = [primary, *(measure for measure in runs[0]["measures"] if measure != primary)]
    values = list(dict.fromkeys(run["cell"] for run in runs))
    comparisons = []
    for (arm, baseline), note in _pairs(record["differences"], name):
        for measure in measures:
            paired = {value: _paired(runs, arm, baseline, value, measure) for value in values}
            common = {
                "study": name,
                "arm": arm,
                "baseline": baseline,
                "measure": measure,
                "is_primary": measure == primary,
            }
            if name in FACTORS:
                comparisons += _two_factors(paired, common, *FACTORS[name])
                continue
            for value in values:
                where = f"{swept} {value}" if swept else ""
                means = tuple(map(statistics.mean, zip(*paired[value].values(), strict=True)))
                of_value = _over([paired[value]], statistics.mean)
                comparisons.append(
                    Comparison(**common, where=where, means=means, note=note, **of_value)
                )
            of_values = list(paired.values())
            if swept:
                mean, slope = _over(of_values, statistics.mean), _over(of_values, _slope(values))
                comparisons.append(Comparison(**common, where="mean", note=note, **mean))
                comparisons.append(Comparison(**common, where="per doubling", note=note, **slope))
            if name == "learning_rate":
                where, mean = "mean up to CLIP's best rate", _over(of_values[:2], statistics.mean)
                comparisons.append(Comparison(**common, where=where, note=AFTER_REVIEW, **mean))
    return comparisons


def _paired(
    runs: Sequence[dict], arm: str, baseline: str, value, measure: str
) -> dict[int, tuple[float, float]]:
    """The scores of the baseline and of the arm by seed, for a value of the swept field."""
    scores = {
        (run["arm"], run["seed"]): run["measures"][measure] for run in runs if run["cell"] == value
    }
    return {
        seed: (scores[baseline, seed], score)
        for (name, seed), score in sorted(scores.items())
        if name == arm and (baseline, seed) in scores
    }


def _over(paired: Sequence[dict], combine: Callable) -> dict[str, list]:
    """The seeds that all values of the swept field have, and their combined differences."""
    seeds = sorted(set.intersection(*map(set, paired)))
    differences = [
        combine([scores[seed][1] - scores[seed][0] for scores in paired]) for seed in seeds
    ]
    return {"seeds": seeds, "differences": differences}


def _two_factors(
    paired: dict[str, dict], common: dict, first: Factor, second: Factor
) -> Iterator[Comparison]:
    """The gains in four versions of the training scenes, the two main effects on the gain, which
    alone are primary, and the interaction: what the first factor changes more at the second one's
    second level than at its first."""
    secondary = common | {"is_primary": False}
    for version, scores in paired.items():
        where = f"{first.level(version)}, {second.level(version)}"
        means = tuple(map(statistics.mean, zip(*scores.values(), strict=True)))
        gain = _over([scores], statistics.mean)
        yield Comparison(**secondary, where=where, means=means, **gain)
    versions = list(paired.values())
    for factor in (first, second):
        main_effect = _contrast([factor.sign(version) / 2 for version in paired])
        yield Comparison(**common, where=factor.effect, **_over(versions, main_effect))
    both = _contrast([first.sign(version) * second.sign(version) for version in paired])
    yield Comparison(**secondary, where="interaction", **_over(versions, both))


def _contrast(weights: Sequence[float]) -> Callable[[list[float]], float]:
    """A function that returns the weighted sum of differences."""

    def contrast(differences: list[float]) -> float:
        terms = zip(weights, differences, strict=True)
        return sum(weight * difference for weight, difference in terms)

    return contrast


def _slope(values: Sequence[float]) -> Callable[[list[float]], float]:
    """A function that returns the slope of differences over the binary logarithm of the values."""
    logarithms = [math.log2(value) for value in values]

    def slope(differences: list[float]) -> float:
        return statistics.linear_regression(logarithms, differences).slope

    return slope


def _pairs(recorded: list[dict], name: str) -> list[tuple[tuple[str, str], str]]:
    pairs = dict.fromkeys(
        ((comparison["arm"], comparison["baseline"]) for comparison in recorded), ""
    )
    if name == "vit":
        pairs["pooled", "SuperCLIP at CLIP's rate"] = AFTER_REVIEW
    if name == "captions":
        pairs["SuperCLIP, dual", "SuperCLIP, short"] = AFTER_REVIEW
    return list(pairs.items())


def read_audit(file: Path) -> list[Comparison]:
    """The comparisons of training again on the pairs that an audit keeps."""
    rows = list(csv.DictReader(file.read_text().splitlines()))
    scores = {
        (row["method"], row["trained on"], row["measure"], int(row["seed"])): float(row["percent"])
        for row in rows
    }
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    seeds = sorted({int(row["seed"]) for row in rows})
    clip = "kept by CLIP score of CLIP"
    loss = "kept by class loss of SuperCLIP"
    both = "kept by CLIP score and support of SuperCLIP"
    pairs = [(kept, "all pairs") for kept in (clip, loss, both)]
    pairs += [(loss, clip), (both, clip)]
    pairs += [(loss, "the pairs left alone"), (both, "the pairs left alone")]
    comparisons = []
    for method, (kept, other), measure in itertools.product(("CLIP", "SuperCLIP"), pairs, measures):
        ours = [scores[method, kept, measure, seed] for seed in seeds]
        theirs = [scores[method, other, measure, seed] for seed in seeds]
        comparisons.append(
            Comparison(
                study=AUDIT,
                arm=kept,
                baseline=other,
                where=method,
                measure=measure,
                is_primary=measure == "zero_shot",
                seeds=seeds,
                differences=[our - their for our, their in zip(ours, theirs, strict=True)],
                means=(statistics.mean(theirs), statistics.mean(ours)),
            )
        )
    return comparisons


def _runs(file: Path) -> list[dict]:
    """The runs of a study whose measures are its own, as study.json has them; a version of its
    training scenes is the cell."""
    rows = list(csv.DictReader(file.read_text().splitlines()))
    run_fields = ("arm", "version", "seed", "checkpoint")
    measures = [name for name in rows[0] if name not in run_fields]
    return [
        {
            "arm": row["arm"],
            "seed": int(row["seed"]),
            "cell": row.get("version"),
            "measures": {measure: float(row[measure]) for measure in measures},
        }
        for row in rows
    ]


def read_objects(file: Path) -> Iterator[Comparison]:
    """The comparisons of the study that varies the number of objects and the scenes of each; none
    without its file."""
    if not file.exists():
        return
    runs = _runs(file)
    versions = dict.fromkeys(run["cell"] for run in runs)
    for measure in runs[0]["measures"]:
        paired = {
            version: _paired(runs, "SuperCLIP", "CLIP", version, measure) for version in versions
        }
        common = {
            "study": OBJECTS,
            "arm": "SuperCLIP",
            "baseline": "CLIP",
            "measure": measure,
            "is_primary": measure == "zero_shot",
        }
        yield from _two_factors(paired, common, *FACTORS[OBJECTS])


def read_longer_fine_tuning(folder: Path) -> Iterator[Comparison]:
    """The effects of the class loss, averaged over both learning rates, and what the higher rate
    changes in the primary one."""
    runs = [json.loads(file.read_text()) for file in folder.glob("runs/*.json")]
    scores = {(run["arm"], run["rate"], run["seed"]): run["measures"] for run in runs}
    seeds = sorted({seed for _, _, seed in scores})

    def compared(measure: str, where: str, combine: Callable) -> Comparison:
        paired = [
            {seed: tuple(scores[arm, rate, seed][measure] for arm in ("clip", "superclip"))
             for seed in seeds}
            for rate in ("3e-4", "1e-3")
        ]  # fmt: skip
        return Comparison(
            study=TUNED_LONGER,
            arm="SuperCLIP",
            baseline="CLIP",
            where=where,
            measure=measure,
            is_primary=(measure, where) == ("zero_shot", "mean"),
            **_over(paired, combine),
        )

    for measure in TUNED_LONGER_MEASURES:
        yield compared(measure, "mean", statistics.mean)
    yield compared("zero_shot", "1e-3 − 3e-4", _contrast([-1, 1]))


def read_held_out_words(file: Path) -> list[Comparison]:
    """The comparisons of the study that scores held-out objects separately; none without its
    file."""
    if not file.exists():
        return []
    runs = _runs(file)
    primary_pairs = [(half, "CLIP") for half in HELD_OUT_HEADS.values()]
    pairs = [*primary_pairs, *((head, "CLIP") for head in HELD_OUT_HEADS), *HELD_OUT_HEADS.items()]
    comparisons = []
    for (arm, baseline), measure in itertools.product(pairs, runs[0]["measures"]):
        paired = _paired(runs, arm, baseline, None, measure)
        comparisons.append(
            Comparison(
                study=HELD_OUT,
                arm=arm,
                baseline=baseline,
                measure=measure,
                is_primary=measure == "seen_held_out" and (arm, baseline) in primary_pairs,
                means=tuple(map(statistics.mean, zip(*paired.values(), strict=True))),
                **_over([paired], statistics.mean),
            )
        )
    return comparisons


def read_comparisons() -> list[Comparison]:
    """All comparisons of all records, with Holm's correction."""
    comparisons = []
    for file in sorted(HERE.rglob("study.json")):
        comparisons += read_study(file.parent)
    comparisons += read_audit(HERE / AUDIT / "train_again.csv")
    comparisons += read_held_out_words(HERE / HELD_OUT / "study.csv")
    comparisons += read_objects(HERE / OBJECTS / "study.csv")
    comparisons += read_longer_fine_tuning(HERE / TUNED_LONGER)
    by_study, of_all = defaultdict(list), []
    for comparison in comparisons:
        if not any(comparison.differences):  # equal runs are no test
            continue
        if not comparison.flaw:
            by_study[comparison.study, comparison.is_primary].append(comparison)
        if comparison.is_primary and comparison.study not in OWN_FAMILY:
            of_all.append(comparison)
    for family in by_study.values():
        for comparison, p in corrected(family):
            comparison.holm = p
    for comparison, p in corrected(of_all):
        comparison.holm_of_all = p
    return comparisons


def corrected(family: Sequence[Comparison]) -> Iterator[tuple[Comparison, float]]:
    """Yields the comparisons of a family with their corrected p-values; those of the same runs
    count once."""
    p_values = {tuple(comparison.differences): comparison.p for comparison in family}
    by_differences = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for comparison in family:
        yield comparison, by_differences[tuple(comparison.differences)]


@dataclass(frozen=True)
class Row:
    """A study in the table of README.md: its question, and the comparison that answers it."""

    study: str
    question: str
    comparison: str
    note: str = ""

    def text(self, comparisons: Sequence[Comparison]) -> str:
        comparison = find(comparisons, self.study, self.comparison)
        answer = f"{comparison.verdict}{self.note}"
        link = f"[{self.study}]({self.study}/README.md)"
        return f"| {link} | {self.question} | {answer} | {comparison.n} |"


INDEX = [
    Row(
        "one_batch",
        "small ResNet, from scratch: is SuperCLIP better than CLIP?",
        "SuperCLIP − CLIP",
    ),
    Row(
        "placebos",
        "… at CLIP's best rate, and with captions of other images?",
        "SuperCLIP − CLIP",
        "; loss with captions of other images",
    ),
    Row("demo", "… in the four seeds of `superclip demo`?", "SuperCLIP − CLIP"),
    Row("second_draw", "… with another 100 objects?", "SuperCLIP − CLIP"),
    Row("learning_rate", "… over four learning rates?", "SuperCLIP − CLIP, mean"),
    Row("unseen_drawings", "… on drawings by an unseen designer?", "SuperCLIP − CLIP"),
    Row(
        "captions_and_frequencies",
        "… do careless captions or a long tail reduce that gain?",
        "SuperCLIP − CLIP, careless − clean captions",
        " for both",
    ),
    Row(
        "classes_and_samples",
        "… do more objects or fewer scenes reduce it?",
        "SuperCLIP − CLIP, 100 − 25 objects",
        " for both",
    ),
    Row(
        "batch_size",
        "… is it larger at small batches?",
        "SuperCLIP − CLIP, per doubling",
    ),
    Row(
        "captions",
        "… with short, long and mixed captions?",
        "SuperCLIP, long − CLIP, long",
        " with long captions; open with short and mixed ones",
    ),
    Row("weight", "… is λ = 1 better than λ = 0.4?", "λ 1 − λ 0.4"),
    Row("idf", "… do IDF weights help?", "IDF online − IDF off"),
    Row("dense", "… are its frozen patch tokens better (mIoU)?", "SuperCLIP − CLIP"),
    Row("siglip", "… is SuperSigLIP better than SigLIP?", "SuperSigLIP − SigLIP"),
    Row(
        "vit",
        "small ViT, from scratch: is SuperCLIP better than CLIP?",
        "SuperCLIP at CLIP's rate − CLIP",
    ),
    Row("vit_samples", "… with four times the samples?", "SuperCLIP − CLIP"),
    Row(
        "vit_deep",
        "… with eight layers?",
        "SuperCLIP − CLIP",
        "; gain with the head on the class token",
    ),
    Row("vit_average", "… with average pooling?", "SuperCLIP − CLIP"),
    Row("vit_head", "… is a head on both inputs better than the paper's?", "both − SuperCLIP"),
    Row("vit_weight", "… is λ = 0.25 better than λ = 1?", "λ 0.25 − λ 1"),
    Row(
        "vit_controls",
        "… is a class loss with a constant target better than none?",
        "constant target − CLIP",
    ),
    Row(
        "vit_dense",
        "… are its frozen patch tokens better (mIoU)?",
        "SuperCLIP − CLIP",
        ": scores near chance",
    ),
    Row("flip", "… is SuperFLIP better than FLIP?", "SuperFLIP − FLIP"),
    Row("flip_head", "… with the head on the class token?", "class token − FLIP"),
    Row("flip_longer", "… with twice the samples?", "SuperFLIP − FLIP", ": unequal rates"),
    Row(
        "transfer",
        "… on drawings by an unseen designer?",
        "SuperCLIP − CLIP",
        "; open with the head on the class token",
    ),
    Row(
        "held_out_words",
        "… for objects whose words are not labels?",
        "pooled, half the words − CLIP",
    ),
    Row(
        "natural",
        "… with a long tail and careless captions?",
        "SuperCLIP − CLIP",
        ": unequal rates",
    ),
    Row("ideas", "… is any of ten changes of the class loss better?", "equal gradients − pooled"),
    Row(
        "stamps",
        "two joined towers, fine-tuned on 512 images: is SuperCLIP better?",
        "SuperCLIP − CLIP",
        " in image→text R@1",
    ),
    Row(
        "natural_towers",
        "… on 6,144 scenes, each method at its own rate?",
        "SuperCLIP − CLIP",
        ": unequal rates",
    ),
    Row("natural_towers_equal", "… at equal rates?", "SuperCLIP − CLIP"),
    Row("natural_idf", "… do IDF weights help?", "SuperCLIP − IDF off"),
    Row(
        TUNED_LONGER,
        "… four passes over 10,240 scenes, mean of two rates: is SuperCLIP better?",
        "SuperCLIP − CLIP, mean",
        "; the head's words: no gain",
    ),
    Row(
        "audit",
        "wrong captions: does the class loss select pairs better than CLIP's score?",
        "kept by class loss of SuperCLIP − kept by CLIP score of CLIP, CLIP",
    ),
    Row(
        "vit/earlier",
        "small ViT, earlier: is SuperCLIP better than CLIP?",
        "SuperCLIP − CLIP",
        ": unequal rates",
    ),
    Row(
        "flip/earlier",
        "small ViT, earlier: is SuperFLIP better than FLIP?",
        "SuperFLIP − FLIP",
        ": unequal rates",
    ),
    Row(
        "batch_size/earlier",
        "small ResNet, earlier: is the gain larger at small batches?",
        "SuperCLIP − CLIP, per doubling",
    ),
]


@dataclass(frozen=True)
class Case:
    """A row of the figure of docs/results.md."""

    group: str
    text: str
    study: str
    comparison: str

    def of(self, comparisons: Sequence[Comparison]) -> Comparison:
        """Its comparison by zero-shot accuracy, or by the primary measure of `stamps`."""
        measure = "" if self.study == "stamps" else "zero_shot"
        return find(comparisons, self.study, self.comparison, measure)


FAMILIAR = "From scratch, test images like the training images"
NEW = "From scratch, new kinds of test images"
TUNED = "Fine-tuning of two joined towers"
CONTROLS = "Controls, from scratch"
CASES = [
    Case(FAMILIAR, "small ResNet", "placebos", "SuperCLIP − CLIP"),
    Case(FAMILIAR, "small ViT", "vit", "SuperCLIP at CLIP's rate − CLIP"),
    Case(FAMILIAR, "small ViT, four times the samples", "vit_samples", "SuperCLIP − CLIP"),
    Case(FAMILIAR, "small ViT, head on the class token", "vit_deep", "pooled − CLIP"),
    Case(NEW, "small ResNet", "unseen_drawings", "SuperCLIP − CLIP"),
    Case(
        NEW,
        "small ResNet, other scenes for each seed",
        TWO_FACTORS,
        "SuperCLIP − CLIP, clean captions, equal frequencies",
    ),
    Case(
        NEW,
        "small ResNet, careless captions and long tail",
        TWO_FACTORS,
        "SuperCLIP − CLIP, careless captions, Zipf's frequencies",
    ),
    Case(
        NEW,
        "small ResNet, among 25 names",
        OBJECTS,
        "SuperCLIP − CLIP, 100 objects, 512 scenes of each",
    ),
    Case(NEW, "small ResNet, batch sizes 16 to 256", "batch_size", "SuperCLIP − CLIP, mean"),
    Case(NEW, "small ViT", "transfer", "SuperCLIP − CLIP"),
    Case(NEW, "small ViT, head on the class token", "transfer", "pooled − CLIP"),
    Case(NEW, "small ViT, careless captions and long tail", "natural", "SuperCLIP − CLIP"),
    Case(TUNED, "10,240 scenes, mean of two rates", TUNED_LONGER, "SuperCLIP − CLIP, mean"),
    Case(TUNED, "512 images with captions by people", "stamps", "SuperCLIP − CLIP"),
    Case(TUNED, "6,144 scenes, equal rates", "natural_towers_equal", "SuperCLIP − CLIP"),
    Case(TUNED, "6,144 scenes, each at its own rate", "natural_towers", "SuperCLIP − CLIP"),
    Case(CONTROLS, "captions of other images", "placebos", "captions shuffled − CLIP"),
    Case(CONTROLS, "a constant target", "vit_controls", "constant target − CLIP"),
]


def cases(comparisons: Sequence[Comparison]) -> list[tuple[Case, Comparison]]:
    """The rows of the figure, corrected as one family, so that one rule decides all of them."""
    rows = [(case, replace(case.of(comparisons))) for case in CASES]
    p_values = holm([comparison.p for _, comparison in rows])
    for (_, comparison), p in zip(rows, p_values, strict=True):
        comparison.holm = p
    return rows


def find(comparisons: Sequence[Comparison], study: str, name: str, measure: str = "") -> Comparison:
    """The comparison of a study by a measure, or by its primary one."""
    for comparison in comparisons:
        is_measure = comparison.measure == measure if measure else comparison.is_primary
        if is_measure and (comparison.study, comparison.name) == (study, name):
            return comparison
    raise ValueError(f"expected a comparison {name} of {study}")


def index_table(comparisons: Sequence[Comparison]) -> str:
    rows = [row.text(comparisons) for row in INDEX]
    return "\n".join(["| study | question | answer | n |", "|---|---|---|---|", *rows])


def study_table(comparisons: Sequence[Comparison]) -> str:
    """A row per comparison, a column per measure: bold after Holm's correction, † only before
    it."""
    measures = list(dict.fromkeys(comparison.measure for comparison in comparisons))
    primary = {comparison.measure for comparison in comparisons if comparison.is_primary}
    heads = [TITLES[measure] + (" (primary)" if measure in primary else "") for measure in measures]
    lines = [f"| points | {' | '.join(heads)} | n |", "|---|" + "---|" * len(heads) + "---|"]
    for name in dict.fromkeys(comparison.name for comparison in comparisons):
        row = {
            comparison.measure: comparison for comparison in comparisons if comparison.name == name
        }
        cells = [_marked(row[measure]) if measure in row else "" for measure in measures]
        lines.append(
            f"| {name}{' ‡' if row[measures[0]].note else ''} | {' | '.join(cells)} | "
            f"{row[measures[0]].n} |"
        )
    note = "Bold: significant after [correction](../README.md#methods). †: before it alone."
    if comparisons[0].study.endswith("/earlier"):
        note = note.replace("../", "../../")
    if all(comparison.flaw for comparison in comparisons):
        note = f"Open: {comparisons[0].flaw}."
    elif comparisons[0].flaw:
        note = f"The primary measure is open: {comparisons[0].flaw}. {note}"
    if any(comparison.is_unequally_tuned for comparison in comparisons):
        note += " ◦: open, at unequal rates that were chosen on few seeds."
    if any(comparison.depends_on_family for comparison in comparisons):
        note += " §: not significant if the primary comparisons of all studies are one family."
    if any(comparison.note for comparison in comparisons):
        note += f" ‡: {AFTER_REVIEW}."
    return "\n".join([*lines, "", note])


def _marked(comparison: Comparison) -> str:
    if comparison.flaw:
        return f"{comparison}"
    if comparison.is_unequally_tuned:
        return f"{comparison} ◦"
    if comparison.holm <= 0.05:
        return f"**{comparison}** §" if comparison.depends_on_family else f"**{comparison}**"
    return f"{comparison} †" if comparison.p <= 0.05 else f"{comparison}"


@dataclass(frozen=True)
class Welch:
    """The difference of two studies' mean differences, with other seeds, and its 95 % interval
    (Welch's t)."""

    first: Comparison
    other: Comparison

    def __str__(self) -> str:
        errors = [comparison.std**2 / comparison.n for comparison in (self.first, self.other)]
        freedom = sum(errors) ** 2 / (
            errors[0] ** 2 / (self.first.n - 1) + errors[1] ** 2 / (self.other.n - 1)
        )
        half = t.ppf(0.975, freedom) * math.sqrt(sum(errors))
        mean = self.first.mean - self.other.mean
        return interval_text(mean, mean - half, mean + half)


def zero_shot(comparisons: Sequence[Comparison], study: str, name: str) -> Comparison:
    """The comparison of a study by zero-shot accuracy."""
    return next(
        comparison
        for comparison in comparisons
        if (comparison.study, comparison.name, comparison.measure) == (study, name, "zero_shot")
    )


def average_table(comparisons: Sequence[Comparison]) -> str:
    """The gain with average pooling beside those with a class token."""
    average = zero_shot(comparisons, "vit_average", "SuperCLIP − CLIP")
    patches = zero_shot(comparisons, "vit", "SuperCLIP at CLIP's rate − CLIP")
    token = zero_shot(comparisons, "vit", "pooled − CLIP")
    rows = [
        ("mean patch token", "mean patch token", "5e-4", average, ""),
        ("class token", "mean patch token", "1e-3", patches, Welch(average, patches)),
        ("class token", "class token", "2e-3", token, Welch(average, token)),
    ]
    heads = (
        "the contrastive loss reads | the head reads | learning rate | − CLIP, zero-shot | "
        "this study's gain − it | n"
    )
    lines = [f"| {heads} |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {read} | {head} | {lr} | {comparison} | {change} | {comparison.n} |"
        for read, head, lr, comparison, change in rows
    ]
    return "\n".join(lines)


def share_that_remains(half: Comparison, whole: Comparison) -> tuple[float, float, float]:
    """The mean gain without labels over that with labels, and its 95 % interval by Fieller's
    theorem; infinite if the gain with labels is not significant."""
    ours, theirs = half.differences, whole.differences
    factor = t.ppf(0.975, half.n - 1) ** 2 / half.n
    covariance = statistics.covariance(ours, theirs)
    # the shares r for which the mean of ours - r * theirs does not differ from zero:
    # a r^2 - 2 b r + c <= 0
    a = whole.mean**2 - factor * whole.std**2
    b = half.mean * whole.mean - factor * covariance
    c = half.mean**2 - factor * half.std**2
    share = half.mean / whole.mean
    if a <= 0:
        return share, -math.inf, math.inf
    root = math.sqrt(b**2 - a * c)
    return share, (b - root) / a, (b + root) / a


def shares_table(comparisons: Sequence[Comparison]) -> str:
    """The share of the gain of held-out objects that remains without their labels."""
    gains = {
        comparison.name: comparison
        for comparison in comparisons
        if (comparison.study, comparison.measure) == (HELD_OUT, "seen_held_out")
    }
    lines = [
        "| held-out objects, seen drawings: − CLIP | all words | half of the words | share |",
        "|---|---|---|---|",
    ]
    for head, half in HELD_OUT_HEADS.items():
        whole, without = gains[f"{head} − CLIP"], gains[f"{half} − CLIP"]
        share, low, high = share_that_remains(without, whole)
        shown = "undetermined"
        if math.isfinite(low):
            shown = f"{share:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")
        lines.append(f"| {head} | {whole} | {without} | {shown} |")
    return "\n".join(lines)


def fractions_table(comparisons: Sequence[Comparison], study: str) -> str:
    """The gain in each version of a study's training scenes, in points and as a fraction of CLIP's
    score."""
    title = ", ".join(factor.noun for factor in FACTORS[study])
    lines = [
        f"| {title} | CLIP | SuperCLIP | gain | gain / CLIP's score | n |",
        "|---|---|---|---|---|---|",
    ]
    for comparison in comparisons:
        measured = (comparison.study, comparison.measure)
        if comparison.means is None or measured != (study, "zero_shot"):
            continue
        clip, superclip = comparison.means
        row = [
            comparison.where,
            f"{clip:.1f}",
            f"{superclip:.1f}",
            f"{comparison}",
            f"{comparison.mean / clip:.2f}",
            f"{comparison.n}",
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


# comparisons of the paper's head with its baseline at one rate, on the small ViT, in short training
EQUAL_RATES = {
    "vit": "SuperCLIP at CLIP's rate − CLIP",
    "vit_average": "SuperCLIP − CLIP",
    "vit_deep": "SuperCLIP − CLIP",
    "vit_weight": "λ 1 − CLIP",
    "flip": "SuperFLIP − FLIP",
}


def equal_rates_table(comparisons: Sequence[Comparison]) -> str:
    """The paper's head at equal rates, in all measures: the mean over the paired seeds of five
    studies."""
    of_studies = [
        comparison
        for comparison in comparisons
        if EQUAL_RATES.get(comparison.study) == comparison.name
    ]
    measures = list(dict.fromkeys(comparison.measure for comparison in of_studies))
    pooled = []
    for measure in measures:
        same = [comparison for comparison in of_studies if comparison.measure == measure]
        seeds = [seed for comparison in same for seed in comparison.seeds]
        differences = [difference for comparison in same for difference in comparison.differences]
        pooled.append(Comparison(measure=measure, seeds=seeds, differences=differences))
    heads = [TITLES[measure] for measure in measures]
    return "\n".join(
        [
            f"| points | {' | '.join(heads)} | n |",
            "|---|" + "---|" * len(heads) + "---|",
            f"| the paper's head − CLIP or FLIP | {' | '.join(map(str, pooled))} | {pooled[0].n} |",
        ]
    )


def samples_table(comparisons: Sequence[Comparison]) -> str:
    """Scores and gains of the small ViT with two and with eight passes."""
    names = {"vit": "SuperCLIP at CLIP's rate − CLIP", "vit_samples": "SuperCLIP − CLIP"}
    titles = {"vit": "40,960 ([vit](../vit/README.md))", "vit_samples": "163,840"}
    lines = [
        "| samples | CLIP | SuperCLIP | pooled | SuperCLIP − CLIP | pooled − CLIP | n |",
        "|---|---|---|---|---|---|---|",
    ]
    heads = {study: zero_shot(comparisons, study, name) for study, name in names.items()}
    tokens = {study: zero_shot(comparisons, study, "pooled − CLIP") for study in names}
    for study, title in titles.items():
        head, token = heads[study], tokens[study]
        scores = [f"{score:.1f}" for score in (*head.means, token.means[1])]
        lines.append(f"| {title} | {' | '.join(scores)} | {head} | {token} | {head.n} |")
    changes = [Welch(gains["vit_samples"], gains["vit"]) for gains in (heads, tokens)]
    return "\n".join([*lines, f"| change (Welch's t) | | | | {changes[0]} | {changes[1]} | |"])


def power_table(std: float, effects: Sequence[float], numbers: Sequence[int]) -> str:
    """The half-width of the 95 % interval and the power for each number of seeds."""
    heads = [f"power for +{effect:g}" for effect in effects]
    lines = [f"| seeds | half-width | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for n in numbers:
        half = t.ppf(0.975, n - 1) * std / math.sqrt(n)
        lines.append(
            f"| {n} | ±{half:.1f} | {' | '.join(f'{power(e, std, n):.0%}' for e in effects)} |"
        )
    return "\n".join(lines)


def rates_table(trials: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The trials' mean scores by arm and learning rate; the best of each row is bold."""
    rows = {
        (arm, cell): {float(lr): statistics.mean(scores) for lr, scores in rates.items()}
        for arm, cells in trials.items()
        for cell, rates in cells.items()
    }
    rates = sorted({lr for row in rows.values() for lr in row})
    lines = [
        f"| learning rate | {' | '.join(f'{lr:g}' for lr in rates)} |",
        "|---|" + "---|" * len(rates),
    ]
    for (arm, cell), row in rows.items():
        shown = {lr: f"{mean:.1f}" for lr, mean in row.items()}
        shown[max(row, key=row.get)] = f"**{max(row.values()):.1f}**"
        title = arm if cell == "None" else f"{arm}, {cell}"
        lines.append(f"| {title} | {' | '.join(shown.get(lr, '') for lr in rates)} |")
    return "\n".join(lines)


def scores_table(trials: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The scores of trials at one learning rate by arm and seed, best mean first."""
    rows = {
        arm: scores
        for arm, cells in trials.items()
        for rates in cells.values()
        for scores in rates.values()
    }
    seeds = max(map(len, rows.values()))
    heads = [f"seed {TUNING_SEEDS + n}" for n in range(seeds)]
    lines = [f"| arm | {' | '.join(heads)} | mean |", "|---|" + "---|" * (seeds + 1)]
    for arm, scores in sorted(rows.items(), key=lambda row: -statistics.mean(row[1])):
        shown = [f"{score:.1f}" for score in scores] + [""] * (seeds - len(scores))
        lines.append(f"| {arm} | {' | '.join(shown)} | {statistics.mean(scores):.1f} |")
    return "\n".join(lines)


def trials_table(trials: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    tuned = {rate for cells in trials.values() for rates in cells.values() for rate in rates}
    return rates_table(trials) if len(tuned) > 1 else scores_table(trials)


def verdicts_csv(comparisons: Sequence[Comparison]) -> list[list[str]]:
    rows = [
        [
            "study",
            "comparison",
            "measure",
            "primary",
            "n",
            "mean",
            "std",
            "low",
            "high",
            "p",
            "holm_p",
            "all_holm_p",
            "verdict",
        ]
    ]
    for comparison in comparisons:
        numbers = [
            f"{value:.3f}" for value in (comparison.mean, comparison.std, *comparison.interval)
        ]
        primary = "yes" if comparison.is_primary else "no"
        p_values = [f"{comparison.p:.3g}", "" if comparison.flaw else f"{comparison.holm:.3g}"]
        p_values.append("" if comparison.holm_of_all is None else f"{comparison.holm_of_all:.3g}")
        rows.append(
            [
                comparison.study,
                comparison.name,
                comparison.measure,
                primary,
                str(comparison.n),
                *numbers,
                *p_values,
                comparison.verdict,
            ]
        )
    return rows


def blocks(comparisons: Sequence[Comparison]) -> dict[Path, dict[str, str]]:
    """The generated tables: by page, then by the name of the marker."""
    tables = {(HERE, "index"): index_table(comparisons)}
    for name in dict.fromkeys(comparison.study for comparison in comparisons):
        of_study = [comparison for comparison in comparisons if comparison.study == name]
        tables[HERE / name, "verdicts"] = study_table(of_study)
    for file in sorted(HERE.rglob("trials.json")):
        tables[file.parent, "trials"] = trials_table(json.loads(file.read_text()))
    for study in FACTORS:
        tables[HERE / study, "fractions"] = fractions_table(comparisons, study)
    tables[HERE / HELD_OUT, "shares"] = shares_table(comparisons)
    tables[HERE / "vit", "equal rates"] = equal_rates_table(comparisons)
    tables[HERE / "vit_average", "average"] = average_table(comparisons)
    tables[HERE / "vit_samples", "samples"] = samples_table(comparisons)
    flip = find(comparisons, EARLIER_FLIP, "SuperFLIP − FLIP")
    sizes = (5, 10, 20, 36)
    tables[HERE / EARLIER_FLIP, "power"] = power_table(flip.std, (2, 3.2), sizes)
    pages = defaultdict(dict)
    for (folder, name), content in tables.items():
        pages[_page_with(folder, name)][name] = content
    return pages


def _page_with(folder: Path, name: str) -> Path:
    """The page of a study that has the marker of a table: README.md or details.md."""
    details = folder / "details.md"
    if details.exists() and f"<!-- {name} -->" in details.read_text():
        return details
    return folder / "README.md"


def replaced(text: str, name: str, content: str) -> str:
    """The text with another content between a marker and its end."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    before, _, rest = text.partition(start)
    _, marker, after = rest.partition(end)
    if not marker:
        raise ValueError(f"expected the lines {start.strip()} and {end.strip()}")
    return before + start + content + end + after


def main() -> None:
    comparisons = read_comparisons()
    texts = {}
    for page, tables in blocks(comparisons).items():
        texts[page] = page.read_text()
        for name, content in tables.items():
            texts[page] = replaced(texts[page], name, content)
    for page, text in texts.items():
        page.write_text(text)
    with open(HERE / "verdicts.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(verdicts_csv(comparisons))


if __name__ == "__main__":
    main()
