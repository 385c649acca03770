"""The tables of a report: scores with differences, the paper's scores, words being learned, and the runs."""

from typing import NamedTuple

from ..errors import InputError
from ..pages import csv_text, markdown_table
from ..runs.recipe import METHODS
from ..words.learning import KNOWN, NUM_LOOKED_AT, WordCourse, band_summaries, find_course, word_course
from .comparison import Comparison, number
from .finished_runs import MISSING, ReportedRun
from .scores import format_score, in_order, label
from .statistics import PairedDifference, Spread

HARMLESS = ("seed", "shards", "data_samples", "slices", "workers")  # fields that do not change a score's mean
NOTHING = "–"
MORE_NUMBERS = ("standard deviation", "95 % interval from", "95 % interval to")  # of a cell, after the first


class Numeric(NamedTuple):
    """A cell with a number: its text, and the number and MORE_NUMBERS as far as there are any."""

    text: str = NOTHING
    numbers: tuple[float | None, ...] = ()

    def __str__(self) -> str:
        return self.text


Cell = str | Numeric


def numeric(value: float | None, format: str = ",") -> Numeric:
    return Numeric() if value is None else Numeric(f"{value:{format}}", (value,))


def mean(spread: Spread | None) -> Numeric:
    """Returns a mean with its standard deviation."""
    return Numeric(str(spread), (spread.mean, spread.std)) if spread else Numeric()


def paired(difference: PairedDifference | None) -> Numeric:
    """Returns the mean of differences by seed, with their deviation and the mean's interval."""
    if difference is None:
        return Numeric()
    return Numeric(str(difference), (difference.mean, difference.std, *(difference.interval or (None, None))))


class ReportTable(NamedTuple):
    """Cells under their heads, with a note on how to read them."""

    title: str
    heads: list[str]
    rows: list[list[Cell]]
    note: str = ""

    def markdown(self) -> str:
        rows = [[str(cell) for cell in row] for row in self.rows]
        return "\n\n".join(filter(None, [f"**{self.title}**", markdown_table(self.heads, rows), self.note]))

    def csv(self) -> str:
        """Returns the table as CSV, with columns of their own for standard deviations and intervals."""
        columns = []
        for place, head in enumerate(self.heads):
            cells = [row[place] for row in self.rows]
            values = [cell.numbers if isinstance(cell, Numeric) else (cell,) for cell in cells]
            for part in range(max(map(len, values), default=1) or 1):
                numbers = [one[part] if part < len(one) else None for one in values]
                numbers = [round(value, 6) if isinstance(value, float) else value for value in numbers]
                columns.append([f"{head}, {MORE_NUMBERS[part - 1]}" if part else head, *numbers])
        return csv_text(zip(*columns, strict=True))


def scores_table(comparison: Comparison) -> ReportTable:
    """Returns a row for each method and batch size, and for each difference, with a column for each score."""
    keys, rows = comparison.score_keys, []
    for batch_size in comparison.batch_sizes:
        for series in comparison.series:
            runs = comparison.group(series, batch_size)
            seeds = [str(run.seed) for run in runs if run.is_whole]
            finished = f"0 of {len(runs)} finished" if runs else MISSING
            found = f"{len(seeds)} (seed {', '.join(seeds)})" if seeds else finished
            means = [mean(comparison.score(series, batch_size, key)) for key in keys]
            rows.append([comparison.title(series, batch_size), numeric(batch_size), found, *means])
        for series in comparison.series:
            for baseline in comparison.baselines(series, batch_size):
                differences = [comparison.difference(series, baseline, batch_size, key) for key in keys]
                pairs = max(len(difference.values) for difference in differences if difference)
                name = " − ".join(comparison.title(one, batch_size) for one in (series, baseline))
                rows.append([name, numeric(batch_size), f"{pairs} pair(s)", *map(paired, differences)])
    note = (
        "Mean ± standard deviation over the seeds of finished runs, in percent. Differences are paired by seed, with "
        "their 95 % interval (Student's t); except for what the names say, the training is equal."
    )
    if not keys:
        note = "No finished run was evaluated: superclip evaluate RUN/checkpoints/epoch_N.pt --data DIR."
    return ReportTable("Scores", ["method", "batch", "seeds", *map(label, keys)], rows, note)


def paper_table(comparison: Comparison) -> ReportTable | None:
    """Returns our scores beside the paper's; None if the paper has none of what was trained."""
    rows = []
    for batch_size in comparison.batch_sizes:
        for series in comparison.series:
            changed = {
                f"{key}={value}"
                for run in comparison.group(series, batch_size)
                for key, value in run.set.items()
                if key not in HARMLESS
            }
            for key in in_order([point.key for point in comparison.paper]):
                curve = comparison.paper_curve(series, key)
                paper = next((point for point in curve if point.batch_size == batch_size), None)
                if paper is None:
                    continue
                source = paper.source + (", read off ±0.05" if paper.read_off else "")
                source += f"; here with --set {' '.join(sorted(changed))}" if changed else ""
                here, difference = Numeric(MISSING), Numeric()
                if ours := comparison.score(series, batch_size, key):
                    here = numeric(ours.mean, ".3f") if key.endswith("_rmse") else mean(ours)
                    difference = Numeric(format_score(key, ours.mean - paper.value, "+"), (ours.mean - paper.value,))
                theirs = Numeric(format_score(key, paper.value), (paper.value,))
                rows.append([series.name, numeric(batch_size), label(key), here, theirs, difference, source])
    heads = ["method", "batch", "score, %", "here", "the paper", "difference", "source"]
    return ReportTable("Beside the paper", heads, rows) if rows else None


def runs_table(runs: list[ReportedRun]) -> ReportTable:
    """Returns a row for every run that was named, found or not."""
    rows = []
    for run in runs:
        what = [NOTHING] * 3 + [Numeric()] * 5
        if run.state != MISSING:
            what = [
                METHODS.get(run.method, run.method), run.model, run.data,
                Numeric(number(run.samples), (run.samples,)), numeric(run.batch_size), numeric(run.seed, ""),
                numeric(run.training.get("lr"), "g"), numeric(run.samples_per_second, ",.0f"),
            ]  # fmt: skip
        rows.append([run.name, run.state, run.note, *what])
    heads = ["run", "state", "note", "method", "model", "data", "samples", "batch", "seed", "lr", "samples/s"]
    return ReportTable("All runs", heads, rows)


def read_courses(runs: list[ReportedRun]) -> tuple[list[WordCourse], list[str]]:
    """Returns the word courses that the runs have recorded, without copies, and what is unreadable or missing."""
    courses, notes = [], []
    for run in runs:
        try:
            files = find_course(run.path) if run.copy_of is None else None
            if files is not None:
                courses.append(word_course(run.name, files))
                notes += filter(None, [courses[-1].warning])
        except InputError as error:
            notes.append(str(error))
    return courses, notes


def words_table(courses: list[WordCourse]) -> ReportTable:
    """Returns a row for each run and band of words, from frequent to rare."""
    rows = [
        [
            course.name, summary.band, numeric(summary.words), numeric(summary.half_known_after),
            numeric(summary.learned), numeric(summary.not_yet), numeric(summary.forgotten),
        ]
        for course in courses
        for summary in band_summaries(course)
    ]  # fmt: skip
    heads = ["run", "in … of captions", "words", "half known after", "learned", "not yet", "forgotten"]
    note = (
        f"A word (a vocabulary token) is known if the head gives it {KNOWN:g} times the probability that it has for "
        f"other images, over {NUM_LOOKED_AT} captions or more. “Half known after” is the number of captions until half "
        "of a band's words are known."
    )
    return ReportTable("Words by how many captions hold them", heads, rows, note)
