"""Prints the results of clip_art_fine_tuning as protocol.md defines them, and writes runs.csv.
Refuses while one of the 32 results is missing or incomplete."""

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path

from train import HERE, MEASURES, SEEDS, is_complete  # longer_fine_tuning is on the path then

from analyse import Effect, check_equal, holm  # noqa: I001
from run_study import ARMS, RATES, Run, study_runs

PRIMARY = "mean R@1"
Results = dict[Run, dict[str, float]]


def effect(results: Results, name: str, measure: str, weights: dict[str, float]) -> Effect:
    """Returns SuperCLIP − CLIP, weighted over the rates, of each seed."""

    def difference(seed: int, rate: str) -> float:
        clip, superclip = (results[Run(seed, rate, arm)][measure] for arm in ARMS)
        return superclip - clip

    values = [sum(weights[rate] * difference(seed, rate) for rate in RATES) for seed in SEEDS]
    return Effect(name, values)


def report(results: Results) -> str:
    low, high = RATES
    both = {low: 0.5, high: 0.5}
    lines = ["| points | mean [95 %] | p | Holm | |", "|---|---|---|---|---|"]
    lines.append(effect(results, f"{PRIMARY} (primary)", PRIMARY, both).row)
    interaction = {low: -1.0, high: 1.0}
    secondary = [effect(results, f"interaction: {high} minus {low}", PRIMARY, interaction)]
    secondary += [effect(results, name, name, both) for name in MEASURES]
    lines += [one.row for one in holm(secondary)]
    for rate in RATES:
        alone = {other: float(other == rate) for other in RATES}
        row = effect(results, f"{PRIMARY} at {rate}, without a verdict", PRIMARY, alone).row
        lines.append(row.rsplit("|", 2)[0] + "| |")
    lines += ["", "| % | mean ± standard deviation |", "|---|---|"]
    for rate in RATES:
        for arm in ARMS:
            scores = [results[Run(seed, rate, arm)][PRIMARY] for seed in SEEDS]
            text = f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"
            lines.append(f"| {arm} {rate}, {PRIMARY} | {text} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "runs")
    parser.add_argument("--csv", type=Path, default=HERE / "runs.csv")
    options = parser.parse_args()
    files = {run: options.results / f"{run.name}.json" for run in study_runs(SEEDS)}
    missing = [run.name for run, file in files.items() if not is_complete(file, run)]
    if missing:
        sys.exit(
            f"{len(missing)} of {len(files)} runs are missing or incomplete: the study is "
            "unfinished and has no verdict"
        )
    contents = {run: json.loads(file.read_text()) for run, file in files.items()}
    check_equal(contents.values(), ("commit", "versions", "data"))
    results = {run: content["measures"] for run, content in contents.items()}
    with open(options.csv, "w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["arm", "lr", "seed", *MEASURES])
        for run, scores in results.items():
            scores[PRIMARY] = statistics.mean(scores[name] for name in MEASURES)
            writer.writerow([run.arm, run.rate, run.seed, *(f"{scores[n]:.2f}" for n in MEASURES)])
    print(report(results))


if __name__ == "__main__":
    main()
