"""Prints the results of head_rate as protocol.md defines them, and writes them to results.md,
results.png and runs.csv.

A part with a missing or incomplete run is unfinished: no score of it is read, and it has no
verdict.
"""

import argparse
import collections
import csv
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from run_study import ARMS, HERE, RATES, SEEDS, Run, is_complete, study_runs
from scipy.stats import ttest_1samp

MATTERS = 2.0  # points: the smallest effect that matters
PRIMARY = {
    "A": {"zero-shot, unseen designer": "zero_shot", "linear probe": "linear_probe"},
    "B": {"mean of both R@1": "mean_R@1"},
}
SECONDARY = {
    "A": {
        "zero-shot, training designers": "seen_zero_shot",
        "image→text R@1": "image_to_text_R@1",
        "text→image R@1": "text_to_image_R@1",
        "tagging": "tagging",
        "new combinations": "new_combinations",
    },
    "B": {"image→text R@1": "image_to_text_R@1", "text→image R@1": "text_to_image_R@1"},
}
TITLES = {"A": "scenes", "B": "captions by people"}
IMAGES_OF_WORDS = {"A": "several_seen", "B": "test"}
SUBJECTS_WITH_WORDS = 2  # comparisons of a family of part C: one in A, one in B
TABLE = ["| points | mean [95 %] | p | Holm | |", "|---|---|---|---|---|"]
Results = dict[Run, dict]


@dataclass
class Effect:
    """Differences in points, one for each seed, with their t interval of 95 % and p-value."""

    name: str
    values: list[float]
    corrected: float | None = None  # p-value by Holm's method; None: no verdict

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        if len({*self.values}) == 1:
            return self.mean, self.mean
        low, high = ttest_1samp(self.values, 0).confidence_interval(0.95)
        return float(low), float(high)

    @property
    def p(self) -> float:
        if len({*self.values}) == 1:
            return 0.0 if self.mean else 1.0
        return float(ttest_1samp(self.values, 0).pvalue)

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if (low > 0 or high < 0) and self.corrected <= 0.05:
            is_small = -MATTERS < low and high < MATTERS
            return ("gain" if low > 0 else "loss") + (", too small to matter" if is_small else "")
        return f"no gain (more than {high:+.2f} is excluded)" if high < MATTERS else "open"

    @property
    def row(self) -> str:
        corrected = "" if self.corrected is None else p_text(self.corrected)
        verdict = "" if self.corrected is None else self.verdict
        return f"| {self.name} | {self.text(2)} | {p_text(self.p)} | {corrected} | {verdict} |"

    def text(self, digits: int) -> str:
        numbers = [f"{number:+.{digits}f}" for number in (self.mean, *self.interval)]
        return "{} [{}, {}]".format(*numbers).replace("-", "−")


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def holm(effects: list[Effect], size: int | None = None) -> list[Effect]:
    """Sets the p-values of a family, corrected by Holm's method, and returns it.

    `size` is the number of its comparisons, if some are still unknown: each of these counts as if
    its p-value was the larger one.
    """
    size = size or len(effects)
    largest = 0.0
    for place, effect in enumerate(sorted(effects, key=lambda effect: effect.p)):
        largest = max(largest, min(1.0, effect.p * (size - place)))
        effect.corrected = largest
    return effects


class Part:
    """The complete results of a part, with the rate that each arm chooses in each seed."""

    def __init__(self, name: str, results: Results):
        self.name = name
        self.results = results
        self.chosen = {
            (seed, arm): max(RATES, key=lambda rate: self.score(seed, rate, arm, "choice"))
            for seed in SEEDS[name]
            for arm in ARMS
        }  # of equal rates, max takes the first, which is the lowest

    def score(self, seed: int, rate: str, arm: str, measure: str) -> float:
        measures = self.results[Run(self.name, seed, rate, arm)]["measures"]
        if measure == "mean_R@1":
            return (measures["image_to_text_R@1"] + measures["text_to_image_R@1"]) / 2
        return measures[measure]

    def mean_ap(self, seed: int, arm: str, kind: str) -> float:
        """Returns the mean average precision of the words at the arm's chosen rate."""
        run = Run(self.name, seed, self.chosen[seed, arm], arm)
        return self.results[run]["words"][IMAGES_OF_WORDS[self.name]][kind]["mAP"]

    def at_chosen_rates(self, name: str, measure: str) -> Effect:
        """Returns SuperCLIP − CLIP, each arm at its chosen rate."""
        return self._difference(name, measure, lambda seed, arm: self.chosen[seed, arm])

    def at_rate(self, name: str, measure: str, rate: str) -> Effect:
        """Returns SuperCLIP − CLIP, both at one rate."""
        return self._difference(name, measure, lambda seed, arm: rate)

    def _difference(
        self, name: str, measure: str, rate_of: Callable[[int, str], str]
    ) -> Effect:
        values = []
        for seed in SEEDS[self.name]:
            clip, superclip = (
                self.score(seed, rate_of(seed, arm), arm, measure) for arm in ARMS
            )
            values.append(superclip - clip)
        return Effect(name, values)

    def words(self, name: str, softmax_of: str) -> Effect:
        """Returns the head's mean average precision − that of an arm's softmax."""
        values = [
            self.mean_ap(seed, "superclip", "head") - self.mean_ap(seed, softmax_of, "softmax")
            for seed in SEEDS[self.name]
        ]
        return Effect(name, values)

    def primary(self) -> list[Effect]:
        return holm([self.at_chosen_rates(*names) for names in PRIMARY[self.name].items()])

    def secondary(self) -> list[Effect]:
        return holm([self.at_chosen_rates(*names) for names in SECONDARY[self.name].items()])


def rates_text(part: Part) -> str:
    """Returns how often each arm chooses each rate."""
    texts = []
    for arm in ARMS:
        counts = collections.Counter(part.chosen[seed, arm] for seed in SEEDS[part.name])
        texts.append(f"{arm} " + ", ".join(f"{rate}: {counts[rate]}" for rate in RATES))
    return f"Chosen rates, in {len(SEEDS[part.name])} seeds: {'; '.join(texts)}."


def described(part: Part) -> list[str]:
    """Returns the table of each arm's means at the chosen rates and the effects at each rate."""
    names = PRIMARY[part.name] | SECONDARY[part.name]
    effects = " | ".join(f"effect at {rate}" for rate in RATES)
    lines = [f"| % | CLIP | SuperCLIP | {effects} |", "|---" * (3 + len(RATES)) + "|"]
    for name, measure in names.items():
        cells = []
        for arm in ARMS:
            scores = [
                part.score(seed, part.chosen[seed, arm], arm, measure) for seed in SEEDS[part.name]
            ]
            cells.append(f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}")
        cells += [part.at_rate(name, measure, rate).text(1) for rate in RATES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def words(parts: list[Part]) -> tuple[list[Effect], list[Effect]]:
    """Returns the primary and the secondary comparisons of part C in the finished parts."""
    families = []
    for arm, of_run in (("clip", "softmax of the CLIP run"), ("superclip", "softmax of its run")):
        effects = [
            part.words(f"{TITLES[part.name]}: head − {of_run}", softmax_of=arm) for part in parts
        ]
        families.append(holm(effects, SUBJECTS_WITH_WORDS))
    return families[0], families[1]


def described_words(parts: list[Part]) -> list[str]:
    """Returns the table of the means of each kind of score at the chosen rates."""
    lines = ["| mAP, % | softmax, CLIP | softmax, SuperCLIP | head |", "|---|---|---|---|"]
    for part in parts:
        cells = []
        for arm, kind in (("clip", "softmax"), ("superclip", "softmax"), ("superclip", "head")):
            scores = [part.mean_ap(seed, arm, kind) for seed in SEEDS[part.name]]
            cells.append(f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}")
        lines.append(f"| {TITLES[part.name]} | {' | '.join(cells)} |")
    return lines


def report(parts: list[Part], missing: dict[str, int]) -> str:
    sections = [
        "# head_rate: results by the protocol",
        "Differences in points, SuperCLIP − CLIP, paired by seed (n = 8), each method at the rate "
        "that it chooses in the seed; `analyse.py` computes this page. ± is the standard deviation "
        "over the seeds; intervals are uncorrected. The effects at each rate have no verdict.",
    ]
    for name, number in missing.items():
        title = f"**{name}. {TITLES[name]}: unfinished, no verdict**"
        sections.append(f"{title} ({number} runs are missing or incomplete)")
    for part in parts:
        title = f"**{part.name}. {TITLES[part.name]}"
        sections += [
            f"{title}: primary**",
            "\n".join([*TABLE, *(effect.row for effect in part.primary())]),
            f"{title}: secondary**",
            "\n".join([*TABLE, *(effect.row for effect in part.secondary())]),
            f"{title}: described** {rates_text(part)}",
            "\n".join(described(part)),
        ]
    if parts:
        primary, secondary = words(parts)
        sections += [
            "**C. The head's words: primary**",
            "\n".join([*TABLE, *(effect.row for effect in primary)]),
            "**C. The head's words: secondary**",
            "\n".join([*TABLE, *(effect.row for effect in secondary)]),
            "**C. The head's words: described**",
            "\n".join(described_words(parts)),
        ]
    return "\n\n".join(sections) + "\n"


def draw(parts: list[Part], file: Path) -> None:
    """Draws all differences that have a verdict, with their intervals."""
    groups = {TITLES[part.name]: [*part.primary(), *part.secondary()] for part in parts}
    primary, secondary = words(parts)
    groups["the head's words, mAP"] = [*primary, *secondary]
    labels, effects = [], []
    for name, of_group in groups.items():
        labels += [name, *(effect.name for effect in of_group)]
        effects += [None, *of_group]
    figure, axes = plt.subplots(figsize=(7, 0.3 * len(labels) + 0.8), layout="constrained")
    for place, effect in enumerate(effects):
        if effect is not None:
            half = effect.mean - effect.interval[0]
            axes.errorbar(effect.mean, place, xerr=half, fmt="o", color="C0")
    axes.set_yticks(range(len(labels)), labels)
    for effect, label in zip(effects, axes.get_yticklabels(), strict=True):
        label.set_weight("bold" if effect is None else "normal")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvspan(-MATTERS, MATTERS, color="black", alpha=0.06)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    axes.set_xlabel("points (95 % interval)\ngrey: too small to matter")
    figure.savefig(file, dpi=130)
    plt.close(figure)


def write_csv(parts: list[Part], file: Path) -> None:
    """Writes one row for each run of the finished parts."""
    rows = []
    for part in parts:
        for run, result in part.results.items():
            row = {"part": run.part, "seed": run.seed, "arm": run.arm, "lr": run.rate}
            row |= {name: f"{value:.2f}" for name, value in result["measures"].items()}
            for images, kinds in result["words"].items():
                for kind in ("cosine", "softmax", "head"):
                    if kind in kinds:
                        row[f"{images}_{kind}_mAP"] = f"{kinds[kind]['mAP']:.2f}"
            row |= {name: result[name] for name in ("cpu_seconds", "processor", "weights")}
            rows.append(row)
    names = {name: None for row in rows for name in row}
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_equal(results: Iterable[dict], names: Iterable[str]) -> None:
    """Ends the command unless all runs of a part have the same values of the names."""
    results = list(results)
    for name in names:
        values = {json.dumps(result[name], sort_keys=True) for result in results}
        if len(values) > 1:
            sys.exit(f"the runs differ in {name}: {', '.join(sorted(values))}")


def read_parts(folder: Path) -> tuple[list[Part], dict[str, int]]:
    """Reads the finished parts, and returns them with the number of missing runs of the others.

    Ends the command if the runs of a part differ in how they were made.
    """
    parts, missing = [], {}
    for name in sorted(SEEDS):
        files = {run: folder / f"{run.name}.json" for run in study_runs() if run.part == name}
        incomplete = [run for run, file in files.items() if not is_complete(file, run)]
        if incomplete:
            missing[name] = len(incomplete)
            continue
        results = {run: json.loads(file.read_text()) for run, file in files.items()}
        check_equal(results.values(), ("commit", "versions"))
        heads = [result for result in results.values() if result["arm"] == "superclip"]
        check_equal(heads, ("head",))
        parts.append(Part(name, results))
    return parts, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the files")
    options = parser.parse_args()
    parts, missing = read_parts(options.results)
    text = report(parts, missing)
    if parts:
        write_csv(parts, options.out / "runs.csv")
        (options.out / "results.md").write_text(text)
        draw(parts, options.out / "results.png")
    print(text)


if __name__ == "__main__":
    main()
