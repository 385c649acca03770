"""Runs that may be compared: of one model, data set and number of samples, by method and batch size."""

from collections import defaultdict
from dataclasses import dataclass, replace

from ..planning.recipe_rules import CONFIG_FIELDS, METHODS
from ..seed_statistics import PairedDifference, Spread
from .paper_scores import PaperPoint, paper_points
from .reported_run import ReportedRun
from .run_scores import in_order


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
