"""Comparable runs: of one model, data set and number of samples, by method and batch size, with
the paper's scores."""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import InputError
from ...runs.recipe import CONFIG_FIELDS, METHODS, read_recipe, shipped_recipes
from .paired_differences import PairedDifference, Spread
from .reported_run import FINISHED, ReportedRun, method_variant
from .run_scores import in_order


class PaperPoint(NamedTuple):
    """A score in the paper, in the unit of `scores`, and its source."""

    method: str
    variant: dict
    batch_size: int
    key: str
    value: float
    source: str  # tables and figures


def paper_points(model: str, data: str, samples: int) -> list[PaperPoint]:
    """Returns the paper's scores of that model, data set and number of samples, from `paper:` of
    the recipes."""
    points = []
    for recipe in map(read_recipe, shipped_recipes()):
        if recipe.paper and (recipe.model, recipe.data, recipe.samples) == (model, data, samples):
            source = recipe.paper["source"] + (
                ", read off ±0.05" if recipe.paper["read_off"] else ""
            )
            variant = method_variant(recipe.method, recipe.superclip or {}, recipe.flags)
            what = recipe.method, variant, recipe.global_batch_size
            points += [
                PaperPoint(*what, key, value, source)
                for key, value in recipe.paper["values"].items()
            ]
    return points


@dataclass(frozen=True)
class Series:
    """A method, its settings that are not the default, and the training that differs at its
    batch size."""

    method: str
    variant: tuple[tuple[str, object], ...] = ()
    training: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        settings = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in self.variant + self.training
        )
        return METHODS.get(self.method, self.method) + (f" ({settings})" if settings else "")


@dataclass
class Comparison:
    """The runs of one model, data set and number of samples."""

    model: str
    data: str
    samples: int
    # runs that differ only by the seed, by series and batch size
    groups: dict[tuple[Series, int], list[ReportedRun]]
    paper: list[PaperPoint]

    @property
    def name(self) -> str:
        return f"{self.model}, {self.data}, {number(self.samples)} samples"

    @property
    def series(self) -> list[Series]:
        return list(dict.fromkeys(series for series, _ in self.groups))

    @property
    def batch_sizes(self) -> list[int]:
        return sorted({batch_size for _, batch_size in self.groups})

    @property
    def runs(self) -> list[ReportedRun]:
        return [run for group in self.groups.values() for run in group]

    @property
    def score_keys(self) -> list[str]:
        """The scores of finished runs."""
        return in_order([key for run in self.runs if run.state == FINISHED for key in run.scores])

    def score(self, series: Series, batch_size: int, key: str) -> Spread | None:
        """Returns a score over the seeds of a group's finished runs; None if none has it."""
        runs = self._scored(series, batch_size, key)
        return Spread([run.scores[key] for run in runs]) if runs else None

    def difference(
        self, series: Series, baseline: Series, batch_size: int, key: str
    ) -> PairedDifference | None:
        """Returns a score's differences at the seeds that finished runs of both have; None if
        there is none."""
        ours, theirs = (
            {run.seed: run.scores[key] for run in self._scored(one, batch_size, key)}
            for one in (series, baseline)
        )
        seeds = sorted(ours.keys() & theirs.keys())
        return PairedDifference([ours[seed] - theirs[seed] for seed in seeds]) if seeds else None

    def _scored(self, series: Series, batch_size: int, key: str) -> list[ReportedRun]:
        return [
            run
            for run in self.groups.get((series, batch_size), [])
            if run.state == FINISHED and key in run.scores
        ]

    def baselines(self, series: Series, batch_size: int) -> list[Series]:
        """Returns the series without the head with which one that has it is compared at a batch
        size.

        They are equal in everything except the head and the captions; if there is none, the only
        one without the head.
        """
        found = [
            other
            for other, size in self.groups
            if size == batch_size
            and f"super{other.method}" == series.method
            and any(self.difference(series, other, batch_size, key) for key in self.score_keys)
        ]

        def settings(one: Series) -> tuple[dict, tuple]:
            return {
                name: value for name, value in one.variant if name not in CONFIG_FIELDS
            }, one.training

        return [other for other in found if settings(other) == settings(series)] or (
            found if len(found) == 1 else []
        )

    def paper_curve(self, series: Series, key: str) -> list[PaperPoint]:
        """Returns the paper's scores of a series, by batch size."""
        wanted = series.method, dict(series.variant), key
        points = [
            point for point in self.paper if (point.method, point.variant, point.key) == wanted
        ]
        return sorted(points, key=lambda point: point.batch_size)


def find_comparisons(runs: list[ReportedRun]) -> list[Comparison]:
    """Returns the runs sorted into comparisons, which never mix models, data sets or numbers of
    samples.

    Raises InputError for two finished runs that have the same seed and do not differ.
    """
    comparable = defaultdict(list)
    for run in runs:
        if run.method:
            comparable[run.model, run.data, run.samples].append(run)
    return [
        Comparison(*key, _groups(found), paper_points(*key)) for key, found in comparable.items()
    ]


def _groups(runs: list[ReportedRun]) -> dict[tuple[Series, int], list[ReportedRun]]:
    """Returns the runs by series and batch size, in the order of tables.

    If the training of two runs of one batch size differs (a learning rate), they are not seeds of
    each other: the difference becomes part of the series.
    """
    groups = defaultdict(list)
    for run in runs:
        others = [other.training for other in runs if other.batch_size == run.batch_size]
        names = sorted({name for training in others for name in training})
        differ = [
            name
            for name in names
            if len({str(training.get(name, "default")) for training in others}) > 1
        ]
        training = tuple((name, str(run.training.get(name, "default"))) for name in differ)
        group = groups[
            Series(run.method, tuple(sorted(run.variant.items())), training), run.batch_size
        ]
        for other in group:
            if other.seed == run.seed and other.state == run.state == FINISHED:
                raise InputError(
                    f"RUN: {other.path} and {run.path} have equal settings and seeds: give one "
                    "of them"
                )
        group.append(run)
    order = [*METHODS, *(series.method for series, _ in groups)]
    return dict(
        sorted(
            groups.items(),
            key=lambda one: (one[0][1], order.index(one[0][0].method), one[0][0].name),
        )
    )


def number(value: int) -> str:
    """Returns 512M for 512,000,000 and so on; numbers that are not round stay as they are."""
    for factor, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= factor and value * 10 % factor == 0:
            return f"{value / factor:.4g}{letter}"
    return f"{value:,}"
