"""The tables of a report."""

import statistics
from collections import defaultdict

from ..planning.recipe_rules import METHODS
from .comparison import Comparison, number
from .report_table import ABSENT, NOTHING, Cell, Numeric, ReportTable, count, decimal, mean, no_number, paired
from .reported_run import MISSING, ReportedRun
from .run_scores import in_order, label, shown

HARMLESS = ("seed", "shards", "data_samples", "slices", "workers")


def scores_table(comparison: Comparison) -> ReportTable:
    """Returns a row a method and batch size, a column a score; what nobody has run is missing."""
    keys = comparison.score_keys
    rows = []
    for batch_size in comparison.batch_sizes:
        for series in comparison.series:
            runs = comparison.cells.get((series, batch_size), [])
            whole = [run for run in runs if run.is_whole]
            seeds = ", ".join(str(run.seed) for run in whole) or (f"{len(runs)} not whole" if runs else ABSENT)
            spreads = [comparison.score(series, batch_size, key) for key in keys]
            name = comparison.told(series, batch_size)
            rows.append([name, count(batch_size), seeds, *map(mean, spreads)])
        rows += _difference_rows(comparison, batch_size, keys)
    note = (
        "Mean ± standard deviation over the seeds of finished runs, in percent; differences are of equal seeds, "
        "with their 95 % interval (Student's t), and of equal training but for what the names tell."
    )
    if not keys:
        note = "No finished run was evaluated: superclip evaluate RUN/checkpoints/epoch_N.pt --data DIR."
    return ReportTable("Scores", ["method", "batch", "seeds", *map(label, keys)], rows, note)


def _difference_rows(comparison: Comparison, batch_size: int, keys: list[str]) -> list[list[Cell]]:
    """Returns a row for what each series with a head is ahead of one without, at the seeds that both have."""
    rows = []
    for series in comparison.series:
        for plain in comparison.plain(series, batch_size):
            ahead = [comparison.difference(series, plain, batch_size, key) for key in keys]
            most = max((difference for difference in ahead if difference), key=lambda one: len(one.values))
            name = " − ".join(comparison.told(one, batch_size) for one in (series, plain))
            rows.append([name, count(batch_size), f"{len(most.values)} pair(s)", *map(paired, ahead)])
    return rows


def paper_table(comparison: Comparison) -> ReportTable | None:
    """Returns ours beside the paper's with the difference, None where the paper has none of what was trained."""
    rows = []
    for batch_size in comparison.batch_sizes:
        for series in comparison.series:
            for key in in_order([point.key for point in comparison.paper]):
                paper, ours = comparison.paper_value(series, batch_size, key), comparison.score(series, batch_size, key)
                if paper is None:
                    continue
                source = f"{paper.source}, read off ±0.05" if paper.read_off else paper.source
                source += _changes(comparison.cells.get((series, batch_size), []))
                here = mean(ours) if ours else no_number(ABSENT)
                if ours and key.endswith("_rmse"):
                    here = Numeric(shown(key, ours.mean), (ours.mean,))
                ahead = ours.mean - paper.value if ours else None
                difference = no_number() if ahead is None else Numeric(shown(key, ahead, "+"), (ahead,))
                told = [here, Numeric(shown(key, paper.value), (paper.value,)), difference]
                rows.append([series.name, count(batch_size), label(key), *told, source])
    heads = ["method", "batch", "score, %", "here", "the paper", "difference", "source"]
    return ReportTable("Beside the paper", heads, rows) if rows else None


def _changes(runs: list[ReportedRun]) -> str:
    """Returns what --set has changed of the recipe, "" where that cannot move a score's mean."""
    changed = {f"{key}={value}" for run in runs for key, value in run.set.items() if key not in HARMLESS}
    return f"; here with --set {' '.join(sorted(changed))}" if changed else ""


def cost_table(comparison: Comparison) -> ReportTable | None:
    """Returns samples a second with the head and without, and what it costs, at equal batch, ranks and precision."""
    rows = []
    for batch_size in comparison.batch_sizes:
        for series in comparison.series:
            with_head = _speeds(comparison.cells.get((series, batch_size), []))
            without = _speeds([
                run for run in comparison.runs
                if f"super{run.method}" == series.method and run.batch_size == batch_size and not run.variant
            ])  # fmt: skip
            for (split, precision, hosts), fast in with_head.items():
                equal = [key for key in without if key[:2] == (split, precision)]
                if not equal:
                    continue
                key = min(equal, key=lambda key: (key[2] != hosts, key[2]))
                same = "not recorded" if not (hosts and key[2]) else ", ".join(hosts)
                machine = same if key[2] == hosts or not (hosts and key[2]) else "two different ones"
                rows.append([
                    series.name, count(batch_size), split, precision, decimal(fast, ",.1f"),
                    decimal(without[key], ",.1f"), decimal(without[key] / fast, ".3f"), machine,
                ])  # fmt: skip
    heads = [
        "method", "batch", "ranks", "precision", "samples/s", "without the head", "time with / without", "machine",
    ]  # fmt: skip
    note = "Medians of out.log's samples/s, and of these over the seeds; above 1 the head slows a step."
    return ReportTable("What the head costs", heads, rows, note) if rows else None


def _speeds(runs: list[ReportedRun]) -> dict[tuple[str, str, tuple[str, ...]], float]:
    """Returns the median samples a second by what they depend on: ranks, precision, machines."""
    found = defaultdict(list)
    for run in runs:
        if run.samples_per_second:
            found[run.split, str(run.training.get("precision")), run.hosts].append(run.samples_per_second)
    return {key: statistics.median(speeds) for key, speeds in found.items()}


def runs_table(runs: list[ReportedRun]) -> ReportTable:
    """Returns a row for every run that was asked for, whatever became of it."""
    rows = []
    for run in runs:
        if run.state == MISSING:
            rows.append([run.name, MISSING, run.note, *[NOTHING] * 3, *[no_number()] * 5])
            continue
        learning_rate, speed = run.training.get("lr"), run.samples_per_second
        rows.append([
            run.name, run.state, run.note, METHODS.get(run.method, run.method), run.model, run.data,
            Numeric(number(run.samples), (run.samples,)), count(run.batch_size),
            no_number() if run.seed is None else Numeric(str(run.seed), (run.seed,)),
            decimal(learning_rate, "g") if learning_rate else no_number(),
            decimal(speed, ",.0f") if speed else no_number(),
        ])  # fmt: skip
    heads = ["run", "state", "note", "method", "model", "data", "samples", "batch", "seed", "lr", "samples/s"]
    return ReportTable("All that were asked for", heads, rows)
