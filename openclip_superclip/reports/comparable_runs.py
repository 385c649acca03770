"""Comparable runs: of one model, data set and number of samples, by method and batch size, with
the paper's scores."""

from collections import defaultdict
from dataclasses import dataclass

from ..errors import InputError
from ..plans.recipe import CONFIG_FIELDS, METHODS
from .paired_differences import PairedDifference, Spread
from .paper_scores import PaperPoint, paper_points
from .reported_run import ReportedRun, Variant
from .run_scores import in_order


@dataclass(frozen=True)
class Series:
    """A method, its settings that are not the default, and the training that differs at its
    batch size."""

    method: str
    variant: Variant
    training: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        method = METHODS[self.method]
        settings = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in self.variant + self.training
        )
        return f"{method} ({settings})" if settings else method

    @property
    def settings_without_head(self) -> tuple:
        """What differs from the default, except for the head and the captions."""
        variant = [setting for setting in self.variant if setting[0] not in CONFIG_FIELDS]
        return variant, self.training


@dataclass(frozen=True)
class Group:
    """Runs that differ only by the seed."""

    series: Series
    batch_size: int
    runs: list[ReportedRun]

    def score(self, key: str) -> Spread:
        """Returns a score over the seeds of the finished runs; empty if none has it."""
        return Spread(self._by_seed(key).values())

    def difference(self, baseline: "Group", key: str) -> PairedDifference:
        """Returns a score's differences at the seeds that finished runs of both have; empty if
        there is none."""
        return PairedDifference.by_seed(self._by_seed(key), baseline._by_seed(key))

    def _by_seed(self, key: str) -> dict[int, float]:
        """Returns a score of the finished runs that have it, by seed."""
        finished = (run for run in self.runs if run.is_finished)
        return {run.seed: run.scores[key] for run in finished if key in run.scores}


@dataclass
class Comparison:
    """The runs of one model, data set and number of samples."""

    name: str
    groups: list[Group]  # in the order of tables: by batch size, method and name
    paper: dict[tuple[str, Variant], list[PaperPoint]]  # by method and variant

    @property
    def series(self) -> list[Series]:
        return list(dict.fromkeys(group.series for group in self.groups))

    @property
    def runs(self) -> list[ReportedRun]:
        return [run for group in self.groups for run in group.runs]

    @property
    def score_keys(self) -> list[str]:
        """The scores of finished runs."""
        return in_order(key for run in self.runs if run.is_finished for key in run.scores)

    def baselines(self, group: Group) -> list[Group]:
        """Returns the groups without the head with which one that has it is compared.

        They are equal in everything except the head and the captions; if there is none, the only
        one without the head at that batch size.
        """
        comparable = [
            other
            for other in self.groups
            if other.batch_size == group.batch_size
            and f"super{other.series.method}" == group.series.method
            and any(group.difference(other, key) for key in self.score_keys)
        ]
        settings = group.series.settings_without_head
        equal = [other for other in comparable if other.series.settings_without_head == settings]
        return equal or (comparable if len(comparable) == 1 else [])

    def paper_of(self, series: Series) -> list[PaperPoint]:
        """Returns the paper's scores of a series."""
        return self.paper[series.method, series.variant]


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
        Comparison(
            f"{model}, {data}, {samples:,} samples",
            _groups(same),
            paper_points(model, data, samples),
        )
        for (model, data, samples), same in comparable.items()
    ]


def _groups(runs: list[ReportedRun]) -> list[Group]:
    """Returns the runs by series and batch size, in the order of tables.

    If the training of two runs of one batch size differs (a learning rate), they are not seeds of
    each other: the difference becomes part of the series.
    """
    groups = {}
    for run in runs:
        series = _series(run, [other for other in runs if other.batch_size == run.batch_size])
        group = groups.setdefault((series, run.batch_size), Group(series, run.batch_size, []))
        for other in group.runs:
            if other.seed == run.seed and other.is_finished and run.is_finished:
                raise InputError(
                    f"RUN: {other.path} and {run.path} have equal settings and seeds: give one "
                    "of them"
                )
        group.runs.append(run)
    methods = list(METHODS)

    def order(group: Group) -> tuple:
        return group.batch_size, methods.index(group.series.method), group.series.name

    return sorted(groups.values(), key=order)


def _series(run: ReportedRun, same_size: list[ReportedRun]) -> Series:
    """Returns the series of a run, with the training in which runs of its batch size differ."""
    names = set().union(*(other.training for other in same_size))
    training = []
    for name in sorted(names):
        values = {str(other.training.get(name, "default")) for other in same_size}
        if len(values) > 1:
            training.append((name, str(run.training.get(name, "default"))))
    return Series(run.method, run.variant, tuple(training))
