"""Runs that may be compared: of one model, data set and number of samples, by method and batch size."""

import csv
import functools
import io
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import InputError
from ..pages import markdown_table
from ..runs.recipe import CONFIG_FIELDS, METHODS, Recipe, read_recipe, shipped_recipes
from ..words.learning import KNOWN, NUM_LOOKED_AT, WordCourse, band_summaries, find_course, missing_told, word_course
from .finished_runs import MISSING, ReportedRun, method_variant
from .scores import format_score, in_order, label
from .statistics import PairedDifference, Spread

HELD = {  # what the tables and figures hold of which a recipe names several
    "Table 2": re.compile(r"imagenet_(v2_)?zero_shot|(coco|flickr30k)_.*_r1"),
    "Table 5": re.compile(r"(coco|flickr30k)_.*_r1|average_of_38"),
    "Table 7": re.compile(r"imagenet_linear_probe|(pascal|ade20k)_miou|nyuv2_rmse"),
    "Table 8": re.compile(r"llava_.*"),
    "Table 9": re.compile(r"imagenet_zero_shot|.*_r1_average"),
    "Table 10": re.compile(r"imagenet_zero_shot|(coco|flickr30k)_.*_r1"),
    "Figure 4": re.compile(r"imagenet_(zero_shot|linear_probe)"),
}


class PaperPoint(NamedTuple):
    """A score of the paper's, in its unit (see run_scores), and where it stands."""

    method: str
    variant: dict
    batch_size: int
    key: str
    value: float
    source: str
    read_off: bool  # off a figure, not printed


def paper_points(model: str, data: str, samples: int) -> list[PaperPoint]:
    """Returns what the paper tells of runs of that model, data set and number of samples."""
    return [
        PaperPoint(
            recipe.method, method_variant(recipe), recipe.global_batch_size, key, value,
            _source(recipe.paper["source"], key), bool(recipe.paper.get("read_off")),
        )
        for recipe in _recipes_of_the_paper()
        if (recipe.model, recipe.data, recipe.samples) == (model, data, samples)
        for key, value in recipe.paper["values"].items()
    ]  # fmt: skip


def _source(sources: str, key: str) -> str:
    """Returns the first of a recipe's sources that holds a score: its value is from there."""
    holding = (source for source in sources.split(", ") if source not in HELD or HELD[source].fullmatch(key))
    return next(holding, sources)


@functools.cache
def _recipes_of_the_paper() -> list[Recipe]:
    recipes = [read_recipe(name) for name in shipped_recipes()]
    return [recipe for recipe in recipes if (recipe.paper or {}).get("values")]


@dataclass(frozen=True)
class Series:
    """What one line of a figure shows: a method, what of it is no default, and training that tells it from others."""

    method: str
    variant: tuple[tuple[str, object], ...] = ()
    training: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.variant + self.training)
        return METHODS.get(self.method, self.method) + (f" ({told})" if told else "")


@dataclass
class Comparison:
    """The runs of one model, data set and number of samples."""

    model: str
    data: str
    samples: int
    cells: dict[tuple[Series, int], list[ReportedRun]]  # runs that differ by the seed alone, by series and batch size
    paper: list[PaperPoint]

    @property
    def name(self) -> str:
        return f"{self.model}, {self.data}, {number(self.samples)} samples"

    @property
    def series(self) -> list[Series]:
        order = {method: place for place, method in enumerate(METHODS)}
        found = {series for series, _ in self.cells}
        return sorted(found, key=lambda series: (order.get(series.method, len(order)), series.name))

    @property
    def batch_sizes(self) -> list[int]:
        return sorted({batch_size for _, batch_size in self.cells})

    @property
    def runs(self) -> list[ReportedRun]:
        return [
            run for series in self.series for size in self.batch_sizes for run in self.cells.get((series, size), [])
        ]

    @property
    def score_keys(self) -> list[str]:
        """The scores of finished runs."""
        return in_order([key for run in self.runs if run.is_whole for key in run.scores])

    def score(self, series: Series, batch_size: int, key: str) -> Spread | None:
        """Returns a score over the seeds of a cell's finished runs, None where none has it."""
        runs = self._scored(series, batch_size, key)
        return Spread([run.scores[key] for run in runs]) if runs else None

    def told(self, series: Series, batch_size: int | None = None) -> str:
        """Returns a series' name with what of its training other series have otherwise, at a batch size or at any."""
        sizes = self.batch_sizes if batch_size is None else [batch_size]
        values = defaultdict(dict)
        for size in sizes:
            names = _differing([run for run in self.runs if run.batch_size == size])
            for run in self.cells.get((series, size), []):
                for name in names - dict(series.training).keys():
                    values[name][str(run.training.get(name))] = None
        more = tuple((name, " or ".join(found)) for name, found in sorted(values.items()))
        return replace(series, training=series.training + more).name

    def plain(self, series: Series, batch_size: int) -> list[Series]:
        """Returns the series without the head that one with it is held against at a batch size.

        They are equal in all but the head, in the captions too where there are such; or else the only one there is.
        """
        found = [
            other for other in self.series
            if f"super{other.method}" == series.method
            and any(self.difference(series, other, batch_size, key) for key in self.score_keys)
        ]  # fmt: skip
        equal = [other for other in found if self._asked(other, batch_size) == self._asked(series, batch_size)]
        captions = dict(series.variant).get("captions")
        return (
            [other for other in equal if dict(other.variant).get("captions") == captions]
            or equal or (found if len(found) == 1 else [])
        )  # fmt: skip

    def _asked(self, series: Series, batch_size: int) -> tuple[dict, str]:
        """Returns what a cell was asked to train, but for the method and the fields of the head."""
        variant = {name: value for name, value in series.variant if name not in CONFIG_FIELDS}
        return variant, str(self.cells[series, batch_size][0].training)

    def difference(self, series: Series, plain: Series, batch_size: int, key: str) -> PairedDifference | None:
        """Returns a score's differences at the seeds that finished runs of both have, None where there is none."""
        ours, theirs = (
            {run.seed: run.scores[key] for run in self._scored(one, batch_size, key)} for one in (series, plain)
        )
        seeds = sorted(ours.keys() & theirs.keys())
        return PairedDifference([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None

    def _scored(self, series: Series, batch_size: int, key: str) -> list[ReportedRun]:
        """Returns a cell's finished runs that have a score."""
        return [run for run in self.cells.get((series, batch_size), []) if run.is_whole and key in run.scores]

    def paper_value(self, series: Series, batch_size: int, key: str) -> PaperPoint | None:
        """Returns the paper's score of what a cell trained."""
        wanted = series.method, dict(series.variant), batch_size, key
        return next((p for p in self.paper if (p.method, p.variant, p.batch_size, p.key) == wanted), None)


def find_comparisons(runs: list[ReportedRun]) -> list[Comparison]:
    """Returns the runs sorted into comparisons, which never mix models, data sets or numbers of samples."""
    groups = defaultdict(list)
    for run in runs:
        if run.has_trained and run.copy_of is None:
            groups[run.model, run.data, run.samples].append(run)
    return [Comparison(*key, _cells(group), paper_points(*key)) for key, group in groups.items()]


def number(value: int) -> str:
    """Returns 512M for 512,000,000 and so on; numbers that are not round stay as they are."""
    for factor, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= factor and value * 10 % factor == 0:
            return f"{value / factor:.4g}{letter}"
    return f"{value:,}"


def _cells(runs: list[ReportedRun]) -> dict[tuple[Series, int], list[ReportedRun]]:
    """Returns the runs by series and batch size.

    Runs of one method and batch size that differ in their training (a learning rate) are no seeds of each other: what
    differs becomes part of the series.
    """
    cells = defaultdict(list)
    for run in runs:
        cells[Series(run.method, tuple(sorted(run.variant.items()))), run.batch_size].append(run)
    differing = defaultdict(set)
    for (series, _), found in cells.items():
        differing[series] |= _differing(found)
    split = defaultdict(list)
    for (series, batch_size), found in cells.items():
        for run in found:
            told = tuple((name, run.training.get(name)) for name in sorted(differing[series]))
            split[replace(series, training=told), batch_size].append(run)
    return dict(split)


def _differing(runs: list[ReportedRun]) -> set[str]:
    """Returns what of the training is not the same for all runs."""
    names = {name for run in runs for name in run.training}
    return {name for name in names if len({str(run.training.get(name)) for run in runs}) > 1}


HARMLESS = ("seed", "shards", "data_samples", "slices", "workers")


class Numeric(NamedTuple):
    """A cell that is about a number: as people read it, and its numbers, none where there is nothing."""

    text: str
    numbers: tuple[float | None, ...] = ()  # with what of ALSO it has

    def __str__(self) -> str:
        return self.text


Cell = str | Numeric


class ReportTable(NamedTuple):
    """Cells under their heads; the note says how to read them."""

    title: str
    heads: list[str]
    rows: list[list[Cell]]
    note: str = ""

    def markdown(self) -> str:
        """Returns the table in Markdown."""
        rows = [[str(cell) for cell in row] for row in self.rows]
        return "\n\n".join(filter(None, [f"**{self.title}**", markdown_table(self.heads, rows), self.note]))

    def csv(self) -> str:
        """Returns heads and rows as CSV, with columns of their own for standard deviations and intervals."""
        columns = [*zip(*self.rows, strict=True)] or [()] * len(self.heads)
        widths = [max((len(_values(cell)) for cell in column), default=1) or 1 for column in columns]
        heads = [
            [head, *(f"{head}, {one}" for one in ALSO)][:width] for head, width in zip(self.heads, widths, strict=True)
        ]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_flat(heads))
        for row in self.rows:
            values = map(_values, row)
            writer.writerow(_flat([*cell, *[None] * (n - len(cell))] for cell, n in zip(values, widths, strict=True)))
        return file.getvalue()


def scores_table(comparison: Comparison) -> ReportTable:
    """Returns a row a method and batch size, a column a score; what nobody has run is missing."""
    keys = comparison.score_keys
    rows = []
    for batch_size in comparison.batch_sizes:
        for series in comparison.series:
            runs = comparison.cells.get((series, batch_size), [])
            whole = [run for run in runs if run.is_whole]
            numbers = ", ".join(str(run.seed) for run in whole)
            seeds = f"{len(whole)} (seed {numbers})" if whole else f"0 of {len(runs)} finished" if runs else ABSENT
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
                    here = Numeric(format_score(key, ours.mean), (ours.mean,))
                ahead = ours.mean - paper.value if ours else None
                difference = no_number() if ahead is None else Numeric(format_score(key, ahead, "+"), (ahead,))
                told = [here, Numeric(format_score(key, paper.value), (paper.value,)), difference]
                rows.append([series.name, count(batch_size), label(key), *told, source])
    heads = ["method", "batch", "score, %", "here", "the paper", "difference", "source"]
    return ReportTable("Beside the paper", heads, rows) if rows else None


def _changes(runs: list[ReportedRun]) -> str:
    """Returns what --set has changed of the recipe, "" where that cannot move a score's mean."""
    changed = {f"{key}={value}" for run in runs for key, value in run.set.items() if key not in HARMLESS}
    return f"; here with --set {' '.join(sorted(changed))}" if changed else ""


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


ABSENT = "missing"


NOTHING = "–"


ALSO = ("standard deviation", "95 % interval from", "95 % interval to")  # the numbers of a cell after its first


def no_number(text: str = NOTHING) -> Numeric:
    """Returns a cell where a number might have been."""
    return Numeric(text)


def count(value: int) -> Numeric:
    """Returns a whole number."""
    return Numeric(f"{value:,}", (value,))


def decimal(value: float, format: str) -> Numeric:
    """Returns a number that people read in `format`."""
    return Numeric(f"{value:{format}}", (value,))


def mean(spread: Spread | None) -> Numeric:
    """Returns a mean with its standard deviation."""
    return Numeric(str(spread), (spread.mean, spread.std)) if spread else no_number()


def paired(difference: PairedDifference | None) -> Numeric:
    """Returns the mean of differences by seed, with their deviation and the mean's interval."""
    if difference is None:
        return no_number()
    return Numeric(str(difference), (difference.mean, difference.std, *(difference.interval or (None, None))))


def _values(cell: Cell) -> tuple:
    if isinstance(cell, str):
        return (cell,)
    return tuple(round(number, 6) if isinstance(number, float) else number for number in cell.numbers)


def _flat(parts: Iterable[Iterable]) -> list:
    return [value for part in parts for value in part]


def read_courses(runs: list[ReportedRun]) -> tuple[list[WordCourse], list[str]]:
    """Returns the courses of the runs that have recorded one, each once, and what cannot be read or is not there."""
    courses, notes = [], []
    for run in runs:
        if run.copy_of is not None:
            continue
        try:
            files = find_course(run.path)
            if files is not None:
                courses.append(word_course(run.name, files))
                notes += filter(None, [missing_told(courses[-1])])
        except InputError as error:
            notes.append(str(error))
    return courses, notes


def words_table(courses: list[WordCourse]) -> ReportTable:
    """Returns a row a run and band of words, from frequent to rare."""
    rows = [
        [
            course.name, summary.band, count(summary.words),
            no_number() if summary.half_known_after is None else count(summary.half_known_after),
            count(summary.learned), count(summary.not_yet), count(summary.forgotten),
        ]
        for course in courses
        for summary in band_summaries(course)
    ]  # fmt: skip
    heads = ["run", "in … of captions", "words", "half known after", "learned", "not yet", "forgotten"]
    note = (
        f"A word (a token of the vocabulary) is known where the head gives it {KNOWN:g} times the share that it has in "
        f"other pictures, over {NUM_LOOKED_AT} captions or more; after so many captions half of a band's words are."
    )
    return ReportTable("Words by how many captions hold them", heads, rows, note)
