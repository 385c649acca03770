"""The verdicts of the studies, computed from their scores: `python studies/verdicts.py`.

Writes verdicts.csv, with a row per comparison and measure, and the tables between the markers of
README.md and of the studies' pages. README.md has the rule of correction and what the words mean.
"""

import csv
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scipy.stats import t

HERE = Path(__file__).parent
# Holm families of a comparison by the primary measure, as the study's protocol states them
ALONE = "alone"  # not corrected
OWN = "own"
ALL = "all studies"
NO_PROTOCOL = "without a protocol"
SECONDARY = "secondary"  # of the study
TITLES = {
    "zero_shot": "zero-shot",
    "mean_R@1": "mean of both R@1",
    "image_to_text_R@1": "image→text R@1",
    "text_to_image_R@1": "text→image R@1",
    "seen_zero_shot": "seen: zero-shot",
    "linear_probe": "linear probe",
    "seen_held_out": "held-out objects",
    "seen_kept": "kept objects",
}
ARMS = {"clip": "CLIP", "superclip": "SuperCLIP"}  # as runs name them, and their names here
Weights = dict[tuple[str, str], float]  # of the scores of an arm in a version, in a contrast


def pairs(*names: str) -> dict[str, Weights]:
    """Contrasts of arms, by their names: "arm − baseline"."""
    contrasts = {}
    for name in names:
        arm, baseline = name.split(" − ")
        contrasts[name] = {(arm, ""): 1.0, (baseline, ""): -1.0}
    return contrasts


def gain(versions: Sequence[str], weights: Sequence[float] = ()) -> Weights:
    """The gain of SuperCLIP over CLIP: the mean over versions, or another weighted sum."""
    weights = weights or [1 / len(versions)] * len(versions)
    contrast = {}
    for version, weight in zip(versions, weights, strict=True):
        contrast["SuperCLIP", version] = weight
        contrast["CLIP", version] = -weight
    return contrast


def two_factors(versions: Sequence[str], first: str, second: str) -> dict[str, Weights]:
    """Contrasts of four versions: the gain in each, their mean, what each factor changes in the
    gain, and the interaction. The first factor alternates faster."""
    contrasts = {f"SuperCLIP − CLIP, {version}": gain([version]) for version in versions}
    contrasts["SuperCLIP − CLIP, mean of all four"] = gain(versions)
    contrasts[f"change of the gain: {first}"] = gain(versions, [-0.5, 0.5, -0.5, 0.5])
    contrasts[f"change of the gain: {second}"] = gain(versions, [-0.5, -0.5, 0.5, 0.5])
    contrasts["change of the gain: interaction"] = gain(versions, [1, -1, -1, 1])
    return contrasts


@dataclass
class Study:
    """What a study compares. Contrasts of the primary measure that `families` does not name, and
    all other measures, are one secondary family."""

    name: str
    contrasts: dict[str, Weights]
    families: dict[str, str]
    primary: str = "zero_shot"
    measures: Sequence[str] = ()  # all of the records if empty
    described: set[str] = field(default_factory=set)  # contrasts that were not planned
    primary_only: set[str] = field(default_factory=set)
    shown: Sequence[str] = ()  # measures in the table of its page, besides the primary one
    no_answer: set[str] = field(default_factory=set)  # a condition of the protocol is not met
    smallest_effect: float = 2.0  # that matters, in points


def one_family(name: str, family: str, *names: str, **options) -> Study:
    return Study(name, pairs(*names), dict.fromkeys(names, family), **options)


CAPTIONS = [
    f"{captions} captions, {frequencies} frequencies"
    for frequencies in ("equal", "Zipf's")
    for captions in ("clean", "careless")
]
OBJECTS = [
    f"{objects} objects, {scenes} scenes of each" for scenes in (512, 128) for objects in (25, 100)
]
BATCHES = ["16", "64", "256"]
STUDIES = [
    one_family(
        "placebos",
        NO_PROTOCOL,
        "SuperCLIP − CLIP",
        "captions shuffled − CLIP",
        "head detached − CLIP",
        "SuperCLIP − captions shuffled",
    ),
    one_family("one_batch", NO_PROTOCOL, "SuperCLIP − CLIP", "SuperCLIP − CLIP, equal time"),
    one_family("unseen_drawings", NO_PROTOCOL, "SuperCLIP − CLIP", "SuperCLIP − CLIP, equal time"),
    Study(
        "captions_and_frequencies",
        two_factors(CAPTIONS, "careless − clean captions", "Zipf's − equal frequencies"),
        {
            "change of the gain: careless − clean captions": OWN,
            "change of the gain: Zipf's − equal frequencies": OWN,
        },
        described={"SuperCLIP − CLIP, mean of all four"},
        shown=["seen_zero_shot"],
    ),
    Study(
        "classes_and_samples",
        two_factors(OBJECTS, "100 − 25 objects", "128 − 512 scenes of each"),
        {
            "change of the gain: 100 − 25 objects": OWN,
            "change of the gain: 128 − 512 scenes of each": OWN,
        },
        described={"SuperCLIP − CLIP, mean of all four"},
        shown=["seen_zero_shot"],
    ),
    Study(
        "batch_size",
        batches := {f"SuperCLIP − CLIP, batch {batch}": gain([batch]) for batch in BATCHES}
        | {
            "SuperCLIP − CLIP, mean": gain(BATCHES),
            "change of the gain: per doubling of the batch": gain(BATCHES, [-0.25, 0, 0.25]),
        },
        dict.fromkeys(batches, ALL),
        primary="image_to_text_R@1",
        shown=["zero_shot"],
    ),
    Study(
        "vit",
        pairs(
            "SuperCLIP at CLIP's rate − CLIP",
            "SuperCLIP − CLIP",
            "pooled − SuperCLIP",
            "pooled − CLIP",
            "pooled − SuperCLIP at CLIP's rate",
        ),
        dict.fromkeys(
            ("SuperCLIP at CLIP's rate − CLIP", "SuperCLIP − CLIP", "pooled − SuperCLIP"), ALONE
        ),
        described={"pooled − CLIP", "pooled − SuperCLIP at CLIP's rate"},
        shown=["image_to_text_R@1"],
    ),
    one_family(
        "transfer",
        OWN,
        "SuperCLIP − CLIP",
        "pooled − CLIP",
        "pooled − SuperCLIP",
        shown=["seen_zero_shot"],
    ),
    Study(
        "natural",
        pairs("SuperCLIP − CLIP", "pooled − CLIP", "pooled − SuperCLIP"),
        {"SuperCLIP − CLIP": ALONE, "pooled − CLIP": ALL, "pooled − SuperCLIP": ALL},
    ),
    one_family(
        "vit_controls",
        ALL,
        "constant target − CLIP",
        "second contrastive − CLIP",
        "class loss alone − CLIP",
        "SuperCLIP − constant target",
        "SuperCLIP − second contrastive",
        "SuperCLIP − class loss alone",
        shown=["linear_probe"],
    ),
    Study(
        "held_out_words",
        pairs(
            "SuperCLIP, half the words − CLIP",
            "pooled, half the words − CLIP",
            "SuperCLIP − CLIP",
            "pooled − CLIP",
            "SuperCLIP − SuperCLIP, half the words",
            "pooled − pooled, half the words",
        ),
        dict.fromkeys(("SuperCLIP, half the words − CLIP", "pooled, half the words − CLIP"), OWN),
        primary="seen_held_out",
        no_answer={"SuperCLIP, half the words − CLIP"},
        shown=["seen_kept"],
    ),
    one_family(
        "stamps",
        OWN,
        "SuperCLIP − CLIP",
        "pooled − CLIP",
        "pooled − SuperCLIP",
        primary="image_to_text_R@1",
        smallest_effect=3.0,
        shown=["text_to_image_R@1"],
    ),
    one_family(
        "natural_towers",
        OWN,
        "SuperCLIP − CLIP",
        "pooled − CLIP",
        "pooled − SuperCLIP",
        shown=["linear_probe"],
    ),
    one_family("natural_towers_equal", OWN, "SuperCLIP − CLIP", "pooled − CLIP"),
    Study(
        "longer_fine_tuning",
        {
            "SuperCLIP − CLIP, both at 3e-4": gain(["3e-4"]),
            "SuperCLIP − CLIP, both at 1e-3": gain(["1e-3"]),
            "SuperCLIP at 1e-3 − CLIP at 3e-4": {("SuperCLIP", "1e-3"): 1, ("CLIP", "3e-4"): -1},
            "SuperCLIP − CLIP, mean of both rates": gain(["3e-4", "1e-3"]),
            "change of the gain: 1e-3 − 3e-4": gain(["3e-4", "1e-3"], [-1, 1]),
        },
        {"SuperCLIP − CLIP, mean of both rates": ALONE},
        measures=(
            "zero_shot",
            "seen_zero_shot",
            "image_to_text_R@1",
            "text_to_image_R@1",
            "tagging",
            "linear_probe",
            "new_combinations",
        ),
        described={
            "SuperCLIP − CLIP, both at 3e-4",
            "SuperCLIP − CLIP, both at 1e-3",
            "SuperCLIP at 1e-3 − CLIP at 3e-4",
        },
        primary_only={"change of the gain: 1e-3 − 3e-4"},
        shown=["linear_probe"],
    ),
    Study(
        "head_rate",  # part B
        {"SuperCLIP − CLIP, each at its chosen rate": gain(["chosen"])}
        | {f"SuperCLIP − CLIP, both at {rate}": gain([rate]) for rate in ("1e-4", "3e-4", "1e-3")},
        {"SuperCLIP − CLIP, each at its chosen rate": ALONE},
        primary="mean_R@1",
        measures=["mean_R@1", "image_to_text_R@1", "text_to_image_R@1"],
        described={f"SuperCLIP − CLIP, both at {rate}" for rate in ("1e-4", "3e-4", "1e-3")},
        shown=["image_to_text_R@1", "text_to_image_R@1"],
    ),
]


@dataclass(kw_only=True)
class Comparison:
    """A contrast's values of a measure, in points, one for each seed."""

    study: str
    name: str
    measure: str
    seeds: list[int]
    differences: list[float]
    family: str = ""  # empty: not planned, so it has no verdict
    has_answer: bool = True
    smallest_effect: float = 2.0
    corrected: float = 1.0  # p-value after Holm's correction in its family

    @property
    def is_primary(self) -> bool:
        return self.family not in ("", SECONDARY)

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return statistics.mean(self.differences)

    @property
    def error(self) -> float:
        return statistics.stdev(self.differences) / math.sqrt(self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean, by Student's t over the seeds."""
        half = t.ppf(0.975, self.n - 1) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """The two-sided p-value of the paired t-test; 1 if all differences are equal."""
        return float(2 * t.sf(abs(self.mean) / self.error, self.n - 1)) if self.error else 1.0

    @property
    def verdict(self) -> str:
        if not self.family:
            return "no verdict"
        if not any(self.differences):
            return "equal"
        if not self.has_answer:
            return "open"
        if self.name.startswith("change of the gain: "):
            if self.corrected > 0.05:
                return "open"
            return "larger" if self.mean > 0 else "smaller"
        return verdict(self.mean, self.interval[1], self.corrected, self.smallest_effect)

    def __str__(self) -> str:
        numbers = [f"{number:+.1f}" for number in (self.mean, *self.interval)]
        return "{} [{}, {}]".format(*numbers).replace("-", "−")


@dataclass
class Past:
    """A primary comparison of a study whose records are in the repository's history."""

    study: str
    name: str
    family: str
    n: int
    mean: float
    high: float
    p: float
    is_answer: bool
    is_primary: bool = True
    corrected: float = 1.0

    @property
    def verdict(self) -> str:
        return verdict(self.mean, self.high, self.corrected)


def verdict(mean: float, high: float, corrected: float, smallest_effect: float = 2.0) -> str:
    if corrected <= 0.05:
        return "gain" if mean > 0 else "loss"
    return "no gain" if high < smallest_effect else "open"


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's step-down correction for their number, in their order."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def read_scores(study: str) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """The measures of each arm and version of a study by seed."""
    folder = HERE / study
    scores = defaultdict(dict)
    if study == "head_rate":
        return read_chosen_scores(folder / "runs.csv")
    if (folder / "runs").exists():
        for file in sorted(folder.glob("runs/*.json")):
            run = json.loads(file.read_text())
            scores[ARMS[run["arm"]], run["rate"]][run["seed"]] = run["measures"]
    elif (folder / "study.json").exists():
        runs = json.loads((folder / "study.json").read_text())["runs"]
        versions = {cell: str(cell or "") for cell in dict.fromkeys(run["cell"] for run in runs)}
        if study == "captions_and_frequencies":  # whose cells are files
            versions = dict(zip(versions, CAPTIONS, strict=True))
        for run in runs:
            scores[run["arm"], versions[run["cell"]]][run["seed"]] = run["measures"]
    else:
        with open(folder / "study.csv", newline="") as file:
            for row in csv.DictReader(file):
                del row["checkpoint"]
                arm, version, seed = row.pop("arm"), row.pop("version", ""), int(row.pop("seed"))
                scores[arm, version][seed] = {name: float(score) for name, score in row.items()}
    return scores


def read_chosen_scores(file: Path) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """The measures of part B of head_rate at each rate, and at the rate that the arm chooses in the
    seed."""
    scores = defaultdict(dict)
    best = {}
    for row in csv.DictReader(file.read_text().splitlines()):
        if row["part"] != "B":
            continue
        arm, seed = ARMS[row["arm"]], int(row["seed"])
        measures = {name: float(row[name]) for name in row if name.endswith("_R@1")}
        measures["mean_R@1"] = statistics.mean(measures.values())
        scores[arm, row["lr"]][seed] = measures
        if float(row["choice"]) > best.get((arm, seed), 0.0):  # of equal rates, the lowest
            best[arm, seed] = float(row["choice"])
            scores[arm, "chosen"][seed] = measures
    return scores


def compare(study: Study) -> Iterable[Comparison]:
    """The comparisons of a study, without Holm's correction; the primary measure comes first."""
    scores = read_scores(study.name)
    first = next(iter(next(iter(scores.values())).values()))
    measures = study.measures or sorted(first, key=lambda measure: measure != study.primary)
    for measure in measures:
        for name, weights in study.contrasts.items():
            is_primary = measure == study.primary
            if name in study.primary_only and not is_primary:
                continue
            family = study.families.get(name, SECONDARY) if is_primary else SECONDARY
            seeds = sorted(set.intersection(*(set(scores[cell]) for cell in weights)))
            yield Comparison(
                study=study.name,
                name=name,
                measure=measure,
                seeds=seeds,
                differences=[
                    sum(weight * scores[cell][seed][measure] for cell, weight in weights.items())
                    for seed in seeds
                ],
                family="" if name in study.described else family,
                has_answer=not (is_primary and name in study.no_answer),
                smallest_effect=study.smallest_effect,
            )


def read_history() -> list[Past]:
    with open(HERE / "history.csv", newline="") as file:
        return [
            Past(
                study=row["study"],
                name=row["comparison"],
                family=row["family"],
                n=int(row["n"]),
                mean=float(row["mean"]),
                high=float(row["high"]),
                p=float(row["p"]),
                is_answer=row["answers"] == "yes",
            )
            for row in csv.DictReader(file)
        ]


def read_comparisons() -> tuple[list[Comparison], list[Past]]:
    """All comparisons of the records and of the history, with Holm's correction."""
    comparisons = [comparison for study in STUDIES for comparison in compare(study)]
    history = read_history()
    tests = [*history, *(comparison for comparison in comparisons if is_test(comparison))]
    families = defaultdict(list)
    for test in tests:
        family = test.family
        families[family if family == NO_PROTOCOL else (family, test.study)].append(test)
        test.corrected = test.p
    every_primary = [test for test in tests if test.is_primary]
    for name, family in families.items():
        if ALONE in name:
            continue
        family_of_all = every_primary if ALL in name else family
        p_values = holm([test.p for test in family_of_all])
        corrected = {id(test): p for test, p in zip(family_of_all, p_values, strict=True)}
        for test in family:
            test.corrected = corrected[id(test)]
    return comparisons, history


def is_test(comparison: Comparison) -> bool:
    return comparison.family != "" and any(comparison.differences)


def find(comparisons: Sequence[Comparison], study: str, name: str, measure: str = "") -> Comparison:
    """The comparison of a study by a measure, or by its primary one."""
    for comparison in comparisons:
        of_study = [one.measure for one in comparisons if one.study == study]
        wanted = (study, name, measure or of_study[0])
        if (comparison.study, comparison.name, comparison.measure) == wanted:
            return comparison
    raise ValueError(f"expected a comparison {name} of {study}")


# by study: its question, and the comparisons that answer it
INDEX = {
    "one_batch": ("small ResNet, each method at its best rate?", {"": "SuperCLIP − CLIP"}),
    "placebos": (
        "… both at CLIP's rate?",
        {"": "SuperCLIP − CLIP", "captions of other images: ": "captions shuffled − CLIP"},
    ),
    "unseen_drawings": ("… on drawings by an unseen designer?", {"": "SuperCLIP − CLIP"}),
    "captions_and_frequencies": (
        "… do careless captions or a long tail change that gain?",
        {
            "captions: ": "change of the gain: careless − clean captions",
            "long tail: ": "change of the gain: Zipf's − equal frequencies",
        },
    ),
    "classes_and_samples": (
        "… do more objects or fewer scenes change it?",
        {
            "objects: ": "change of the gain: 100 − 25 objects",
            "scenes: ": "change of the gain: 128 − 512 scenes of each",
        },
    ),
    "batch_size": (
        "… does the batch size change the gain in image→text R@1?",
        {"": "change of the gain: per doubling of the batch"},
    ),
    "vit": ("small ViT, both at CLIP's rate?", {"": "SuperCLIP at CLIP's rate − CLIP"}),
    "transfer": (
        "… on drawings by an unseen designer?",
        {"": "SuperCLIP − CLIP", "head on the class token: ": "pooled − CLIP"},
    ),
    "natural": ("… and with careless captions and a long tail?", {"": "SuperCLIP − CLIP"}),
    "vit_controls": (
        "… does a class loss with a constant target help?",
        {"": "constant target − CLIP"},
    ),
    "held_out_words": (
        "… for objects whose names are not labels?",
        {"": "pooled, half the words − CLIP"},
    ),
    "stamps": (
        "two joined towers, fine-tuned on 512 images: image→text R@1?",
        {"": "SuperCLIP − CLIP"},
    ),
    "natural_towers": (
        "… on 6,144 scenes, CLIP at 1e-3 and SuperCLIP at 3e-4?",
        {"": "SuperCLIP − CLIP"},
    ),
    "natural_towers_equal": ("… both at 3e-4?", {"": "SuperCLIP − CLIP"}),
    "longer_fine_tuning": (
        "… four passes over 10,240 scenes, mean of opposite effects at 3e-4 and 1e-3?",
        {"": "SuperCLIP − CLIP, mean of both rates"},
    ),
    "head_rate": (
        "… 2,129 captions by people, head at 3e-3, each method at its best rate: R@1?",
        {"": "SuperCLIP − CLIP, each at its chosen rate"},
    ),
}


@dataclass
class Case:
    """A row of the figure of docs/results.md."""

    group: str
    text: str
    study: str
    comparison: str = "SuperCLIP − CLIP"
    measure: str = "zero_shot"


FAMILIAR = "From scratch, test images like the training images"
NEW = "From scratch, drawings by an unseen designer"
TUNED = "Fine-tuning of two joined towers"
CONTROLS = "Controls, from scratch"
ALL_FOUR = "SuperCLIP − CLIP, mean of all four"
CASES = [
    Case(FAMILIAR, "small ResNet", "placebos"),
    Case(FAMILIAR, "small ViT", "vit", "SuperCLIP at CLIP's rate − CLIP"),
    Case(
        FAMILIAR,
        "small ViT, head on the class token",
        "transfer",
        "pooled − CLIP",
        "seen_zero_shot",
    ),
    Case(NEW, "small ResNet", "unseen_drawings"),
    Case(NEW, "small ResNet, four kinds of captions", "captions_and_frequencies", ALL_FOUR),
    Case(NEW, "small ResNet, 25 or 100 objects", "classes_and_samples", ALL_FOUR),
    Case(NEW, "small ResNet, batch 16 to 256", "batch_size", "SuperCLIP − CLIP, mean"),
    Case(NEW, "small ViT", "transfer"),
    Case(NEW, "small ViT, head on the class token", "transfer", "pooled − CLIP"),
    Case(NEW, "small ViT, careless captions and long tail", "natural"),
    Case(
        TUNED,
        "10,240 scenes, both at 3e-4",
        "longer_fine_tuning",
        "SuperCLIP − CLIP, both at 3e-4",
    ),
    Case(
        TUNED,
        "10,240 scenes, both at 1e-3",
        "longer_fine_tuning",
        "SuperCLIP − CLIP, both at 1e-3",
    ),
    Case(TUNED, "6,144 scenes, both at 3e-4", "natural_towers_equal"),
    Case(TUNED, "6,144 scenes, CLIP at 1e-3, SuperCLIP at 3e-4", "natural_towers"),
    Case(
        TUNED,
        "512 images with captions by people, R@1",
        "stamps",
        measure="image_to_text_R@1",
    ),
    Case(
        TUNED,
        "2,129 drawings with captions by people, head at 3e-3, R@1",
        "head_rate",
        "SuperCLIP − CLIP, each at its chosen rate",
        "mean_R@1",
    ),
    Case(CONTROLS, "captions of other images", "placebos", "captions shuffled − CLIP"),
    Case(CONTROLS, "a constant target", "vit_controls", "constant target − CLIP"),
]
START = "<!-- verdicts -->\n"
END = "\n<!-- end of verdicts -->"


def index_table(comparisons: Sequence[Comparison]) -> str:
    lines = ["| study | does the class loss help? | answer | n |", "|---|---|---|---|"]
    for study, (question, answers) in INDEX.items():
        found = {label: find(comparisons, study, name) for label, name in answers.items()}
        answer = "; ".join(f"{label}{comparison.verdict}" for label, comparison in found.items())
        n = next(iter(found.values())).n
        lines.append(f"| [{study}]({study}/README.md) | {question} | {answer} | {n} |")
    return "\n".join(lines)


def study_table(study: Study, comparisons: Sequence[Comparison]) -> str:
    """A row per comparison; the difference and the verdict of each measure."""
    measures = [study.primary, *study.shown]
    heads = ["points", *(f"{TITLES[measure]} | verdict" for measure in measures), "n"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---|---|" * len(measures) + "---|"]
    of_study = [comparison for comparison in comparisons if comparison.study == study.name]
    for name in study.contrasts:
        row = {comparison.measure: comparison for comparison in of_study if comparison.name == name}
        cells = [name]
        for measure in measures:
            cells += [str(row[measure]), row[measure].verdict] if measure in row else ["", ""]
        lines.append(f"| {' | '.join(cells)} | {row[study.primary].n} |")
    return "\n".join(lines)


def verdict_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    heads = "study,comparison,measure,family,n,mean,low,high,p,corrected p,verdict"
    rows = [heads.split(",")]
    for comparison in comparisons:
        numbers = [f"{value:.3f}" for value in (comparison.mean, *comparison.interval)]
        corrected = f"{comparison.corrected:.3g}" if comparison.family else ""
        rows.append(
            [
                comparison.study,
                comparison.name,
                comparison.measure,
                comparison.family,
                str(comparison.n),
                *numbers,
                f"{comparison.p:.3g}",
                corrected,
                comparison.verdict,
            ]
        )
    return rows


def tables(comparisons: Sequence[Comparison]) -> dict[Path, str]:
    """The generated table of each page."""
    of_pages = {HERE / "README.md": index_table(comparisons)}
    for study in STUDIES:
        of_pages[HERE / study.name / "README.md"] = study_table(study, comparisons)
    return of_pages


def main() -> None:
    comparisons, _ = read_comparisons()
    for page, table in tables(comparisons).items():
        before, rest = page.read_text().split(START)
        _, after = rest.split(END)
        page.write_text(before + START + table + END + after)
    with open(HERE / "verdicts.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(verdict_rows(comparisons))


if __name__ == "__main__":
    main()
