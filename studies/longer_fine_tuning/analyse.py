"""Prints the results of longer_fine_tuning as protocol.md defines them, and writes them to
results.md, results.png and runs.csv. Refuses while one of the 32 results is missing or incomplete."""

import argparse
import csv
import json
import math
import statistics
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from run_study import ARMS, HERE, IMAGES, RATES, SEEDS, Run, is_complete, study_runs
from scipy.stats import t

MATTERS = 2.0  # points: the smallest effect that matters
SECONDARY = {
    "seen designers": "seen_zero_shot",
    "image→text R@1": "image_to_text_R@1",
    "text→image R@1": "text_to_image_R@1",
    "tagging": "tagging",
    "linear probe": "linear_probe",
    "new combinations": "new_combinations",
}
DESCRIBED = {
    "zero-shot, unseen designer": "zero_shot",
    **SECONDARY,
    "image→long text R@1": "image_to_long_text_R@1",
    "long text→image R@1": "long_text_to_image_R@1",
}
Results = dict[Run, dict]


@dataclass
class Effect:
    """Differences in points, one for each seed, with their t interval of 95 % and p-value."""

    name: str
    values: list[float]
    corrected: float | None = None  # p-value by Holm's method; None: a comparison of its own

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def error(self) -> float:
        return statistics.stdev(self.values) / math.sqrt(len(self.values))

    @property
    def interval(self) -> tuple[float, float]:
        half = t.ppf(0.975, len(self.values) - 1) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        if not self.error:
            return 1.0 if not self.mean else 0.0
        return float(2 * t.sf(abs(self.mean / self.error), len(self.values) - 1))

    @property
    def is_significant(self) -> bool:
        low, high = self.interval
        return (low > 0 or high < 0) and (self.corrected is None or self.corrected <= 0.05)

    @property
    def is_small(self) -> bool:
        low, high = self.interval
        return -MATTERS < low and high < MATTERS

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if self.is_significant:
            small = ", too small to matter" if self.is_small else ""
            return ("gain" if low > 0 else "loss") + small
        return f"no gain (more than {high:+.2f} is excluded)" if high < MATTERS else "open"

    @property
    def row(self) -> str:
        corrected = "" if self.corrected is None else p_text(self.corrected)
        cells = [self.name, self.text(2), p_text(self.p), corrected, self.verdict]
        return f"| {' | '.join(cells)} |"

    def text(self, digits: int) -> str:
        numbers = [f"{number:+.{digits}f}" for number in (self.mean, *self.interval)]
        return "{} [{}, {}]".format(*numbers).replace("-", "−")


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def holm(effects: list[Effect]) -> list[Effect]:
    """Sets the p-values of a family, corrected by Holm's method, and returns it."""
    least = 0.0
    for place, effect in enumerate(sorted(effects, key=lambda effect: effect.p)):
        least = max(least, min(1.0, effect.p * (len(effects) - place)))
        effect.corrected = least
    return effects


def score(results: Results, seed: int, rate: str, arm: str, measure: str) -> float:
    return results[Run(seed, rate, arm)]["measures"][measure]


def mean_ap(results: Results, seed: int, rate: str, arm: str, images: str, kind: str) -> float:
    return results[Run(seed, rate, arm)]["words"][images][kind]["mAP"]


def class_loss(results: Results, seed: int, rate: str, measure: str) -> float:
    """Returns SuperCLIP − CLIP in one seed at one rate."""
    clip, superclip = (score(results, seed, rate, arm, measure) for arm in ARMS)
    return superclip - clip


def averaged(results: Results, name: str, measure: str) -> Effect:
    """Returns the effect of the class loss, averaged over both rates."""
    values = [
        statistics.mean(class_loss(results, seed, rate, measure) for rate in RATES)
        for seed in SEEDS
    ]
    return Effect(name, values)


def secondary(results: Results) -> list[Effect]:
    low, high = RATES
    interaction = [
        class_loss(results, seed, high, "zero_shot") - class_loss(results, seed, low, "zero_shot")
        for seed in SEEDS
    ]
    others = [averaged(results, name, measure) for name, measure in SECONDARY.items()]
    return holm([Effect(f"interaction: {high} minus {low}", interaction), *others])


def of_words(results: Results, name: str, images: str, other: tuple[str, str]) -> Effect:
    """Returns head − another kind of score, (arm, kind), averaged over both rates."""
    values = [
        statistics.mean(
            mean_ap(results, seed, rate, "superclip", images, "head")
            - mean_ap(results, seed, rate, other[0], images, other[1])
            for rate in RATES
        )
        for seed in SEEDS
    ]
    return Effect(name, values)


def words(results: Results) -> tuple[list[Effect], str, list[Effect]]:
    """Returns both comparisons of the head's words, their verdict, and the secondary ones."""
    both = holm(
        [
            of_words(results, f"head − {kind}", "several_seen", ("superclip", kind))
            for kind in ("cosine", "softmax")
        ]
    )
    others = [
        of_words(results, f"head − {kind}, unseen designer", "several_unseen", ("superclip", kind))
        for kind in ("cosine", "softmax")
    ]
    others.append(
        of_words(results, "head − cosine of the CLIP run", "several_seen", ("clip", "cosine"))
    )
    if all(effect.interval[0] > 0 for effect in both):
        verdict = "gain"
    elif any(effect.is_significant and effect.interval[1] < 0 for effect in both):
        verdict = "loss"
    elif (least := min(both, key=lambda effect: effect.interval[1])).interval[1] < MATTERS:
        score = least.name.removeprefix("head − ")
        verdict = f"no gain (more than {least.interval[1]:+.2f} over {score} is excluded)"
    else:
        verdict = "open"
    if verdict in ("gain", "loss") and all(effect.is_small for effect in both):
        verdict += ", too small to matter"
    return both, verdict, holm(others)


def described(results: Results) -> list[str]:
    """Returns the table of each arm's means and of the effects at each rate."""
    head = [f"{arm} {rate}" for rate in RATES for arm in ARMS]
    lines = [
        f"| % | {' | '.join(head)} | effect at {RATES[0]} | effect at {RATES[1]} |",
        "|---" * (len(head) + 3) + "|",
    ]
    for name, measure in DESCRIBED.items():
        cells = []
        for rate in RATES:
            for arm in ARMS:
                scores = [score(results, seed, rate, arm, measure) for seed in SEEDS]
                cells.append(f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}")
        for rate in RATES:
            effect = Effect("", [class_loss(results, seed, rate, measure) for seed in SEEDS])
            cells.append(effect.text(1))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def described_words(results: Results) -> list[str]:
    """Returns the table of the means of each kind of score."""
    lines = ["| images | run | score | mAP, % | among the k highest, % |", "|---|---|---|---|---|"]
    for images in IMAGES:
        for rate in RATES:
            for arm, kind in (
                ("clip", "cosine"), ("clip", "softmax"), ("superclip", "cosine"),
                ("superclip", "softmax"), ("superclip", "head"),
            ):  # fmt: skip
                runs = [results[Run(seed, rate, arm)]["words"][images][kind] for seed in SEEDS]
                cells = [
                    f"{statistics.mean(run[name] for run in runs):.1f}" for name in ("mAP", "found")
                ]
                lines.append(f"| {images} | {arm} {rate} | {kind} | {' | '.join(cells)} |")
    return lines


def report(results: Results) -> str:
    title = ["| points | mean [95 %] | p | Holm | |", "|---|---|---|---|---|"]
    both, verdict, others = words(results)
    parts = [
        "# longer_fine_tuning: results by the protocol",
        "Differences in points, paired by seed (n = 8); `analyse.py` computes this page. ± is the "
        "standard deviation over the seeds; intervals are uncorrected. several and single: scenes "
        "of two or three objects, and of one; seen and unseen: drawn by the training designers, "
        "and by the unseen designer. A gain of the interaction is a larger effect at 1e-3.",
        "**The class loss, averaged over both rates (primary)**",
        [*title, averaged(results, "zero-shot, unseen designer", "zero_shot").row],
        "**Secondary**",
        [*title, *(effect.row for effect in secondary(results))],
        "**Described, without a verdict**",
        described(results),
        f"**The head's words: {verdict}**",
        [*title, *(effect.row.rsplit("|", 2)[0] + "| |" for effect in both)],
        "**Secondary**",
        [*title, *(effect.row for effect in others)],
        "**Described, without a verdict**",
        described_words(results),
    ]
    return "\n\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts) + "\n"


def draw(results: Results, file: Path) -> None:
    """Draws all differences with their intervals."""
    both, _, others = words(results)
    groups = {
        "SuperCLIP − CLIP, mean of both rates": [
            averaged(results, "zero-shot, unseen designer (primary)", "zero_shot"),
            *secondary(results)[1:],
        ],
        "interaction with the rate": secondary(results)[:1],
        "the head's words, mAP": [*both, *others],
    }
    rows = [row for name, effects in groups.items() for row in (name, *effects)]
    figure, axes = plt.subplots(figsize=(6, 0.3 * len(rows) + 0.8), layout="constrained")
    for place, row in enumerate(rows):
        if isinstance(row, Effect):
            axes.errorbar(row.mean, place, xerr=row.mean - row.interval[0], fmt="o", color="C0")
    axes.set_yticks(range(len(rows)), [getattr(row, "name", row) for row in rows])
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_weight("normal" if isinstance(row, Effect) else "bold")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvspan(-MATTERS, MATTERS, color="black", alpha=0.06)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    axes.set_xlabel("points (95 % interval)\ngrey: too small to matter")
    figure.savefig(file, dpi=130)
    plt.close(figure)


def check_equal(results: Collection[dict], names: Collection[str]) -> None:
    """Ends the command unless all runs have the same values of the names."""
    for name in names:
        values = {json.dumps(result[name], sort_keys=True) for result in results}
        if len(values) > 1:
            sys.exit(f"the runs differ in {name}: {', '.join(sorted(values))}")


def write_csv(results: Results, file: Path) -> None:
    """Writes one row for each run."""
    rows = []
    for run, result in results.items():
        row = {"arm": run.arm, "lr": run.rate, "seed": run.seed}
        row |= {name: f"{value:.2f}" for name, value in result["measures"].items()}
        for images in IMAGES:
            for kind in ("cosine", "softmax", "head"):
                scores = result["words"][images].get(kind, {})
                for name in ("mAP", "found"):
                    row[f"{images}_{kind}_{name}"] = f"{scores[name]:.2f}" if scores else ""
        row |= {name: result[name] for name in ("cpu_seconds", "processor", "weights")}
        rows.append(row)
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_results(folder: Path) -> Results:
    """Reads the results of all runs; ends the command if one is missing or differs in how it was
    made."""
    files = {run: folder / f"{run.name}.json" for run in study_runs()}
    missing = [run.name for run, file in files.items() if not is_complete(file, run)]
    if missing:
        sys.exit(
            f"{len(missing)} of {len(files)} runs are missing or incomplete: the study is "
            "unfinished and has no verdict"
        )
    results = {run: json.loads(file.read_text()) for run, file in files.items()}
    check_equal(results.values(), ("commit", "versions", "samples", "steps"))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the files")
    options = parser.parse_args()
    results = read_results(options.results)
    write_csv(results, options.out / "runs.csv")
    (options.out / "results.md").write_text(report(results))
    draw(results, options.out / "results.png")
    print(report(results))


if __name__ == "__main__":
    main()
