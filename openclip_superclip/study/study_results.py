"""The results of a study: each arm's scores, the paired differences with their intervals, and
sentences on them."""

import math
import statistics
from collections import defaultdict
from itertools import product

from ..errors import InputError
from ..rendering import csv_text, markdown_table
from .paired_differences import VERDICTS, PairedDifference, Spread
from .study_file import Study

NEAR_CHANCE = 3.0  # percent: below it a primary score is close to guessing among a hundred or more


def check_measures(study: Study, records: list[dict]) -> None:
    """Raises InputError unless each record has finite numbers of the primary measure and of all
    that the first has."""
    for record in records:
        for measure in (study.primary, *records[0]["measures"]):
            if not math.isfinite(record["measures"].get(measure, math.nan)):
                raise InputError(
                    f"{record['run']} was measured without a finite {measure}: correct --val-data "
                    "or the flags of validation, and remove the run's folder to train it again"
                )


class StudyResults:
    """The records of a study's runs, which `check_measures` has accepted, compared arm by arm at
    equal seeds."""

    def __init__(self, study: Study, records: list[dict]):
        self.study = study
        self.records = records
        self.measures = list(dict.fromkeys([study.primary, *records[0]["measures"]]))

    def spread(self, arm: str, cell, measure: str) -> Spread:
        return Spread(self._scores(arm, cell, measure).values())

    def differences(self, arm: str, baseline: str, cell) -> dict[str, PairedDifference]:
        """Returns the differences of two arms in a cell, by measure."""
        return {
            measure: PairedDifference.by_seed(
                self._scores(arm, cell, measure), self._scores(baseline, cell, measure)
            )
            for measure in self.measures
        }

    def over_cells(self, arm: str, baseline: str) -> dict[str, dict[str, PairedDifference]]:
        """Returns by measure the mean of each seed's differences over the cells; {} without cells.

        If the cells are numbers above 0, also the slope of each seed's differences over their
        binary logarithm.
        """
        cells = self.study.cell_values
        by_cell = [self.differences(arm, baseline, cell) for cell in cells]
        are_numbers = all(isinstance(cell, (int, float)) and cell > 0 for cell in cells)
        over = defaultdict(dict)
        for measure in self.measures if self.study.cells else ():
            of_cells = [differences[measure] for differences in by_cell]
            by_seed = list(zip(*of_cells, strict=True))
            over["mean"][measure] = PairedDifference(map(statistics.mean, by_seed))
            if len(cells) > 1 and are_numbers:
                logarithms = list(map(math.log2, cells))
                slopes = [statistics.linear_regression(logarithms, row).slope for row in by_seed]
                over["per doubling"][measure] = PairedDifference(slopes)
        return over

    def _scores(self, arm: str, cell, measure: str) -> dict[int, float]:
        """Returns an arm's scores in a cell, or its "cpu_seconds", by seed."""
        return {
            record["seed"]: (record | record["measures"])[measure]
            for record in self.records
            if (record["arm"], record["cell"]) == (arm, cell)
        }

    def tables(self) -> str:
        """Returns a table for each cell and one over the cells in Markdown, and what excludes
        zero in words."""
        study = self.study
        parts = [f"**{self.study.question}**"]
        for cell in study.cell_values:
            if cell is not None:
                parts.append(f"{study.cell_field} {cell}:")
            parts.append(self._cell_table(cell))
        if study.cells:
            parts += [f"Over all {study.cell_field}:", self._table_over_cells()]
        num_seeds = len({record["seed"] for record in self.records})
        parts.append(
            f"Mean ± standard deviation over {num_seeds} seed(s); differences are paired by "
            "seed, with their 95 % interval (Student's t)."
        )
        return "\n\n".join([*parts, *self.sentences()])

    def _cell_table(self, cell) -> str:
        """Returns a table with a row for each measure, and a column for each arm and comparison."""
        study = self.study
        columns = {}
        for arm in study.arms:
            columns[arm] = {measure: self.spread(arm, cell, measure) for measure in self.measures}
        for arm, baseline in study.pairs:
            columns[f"{arm} − {baseline}"] = self.differences(arm, baseline, cell)
        rows = self._rows(columns)
        if all(record["cpu_seconds"] is not None for record in self.records):  # unknown for jobs
            row = ["CPU seconds"]
            for arm in study.arms:
                seconds = self._scores(arm, cell, "cpu_seconds").values()
                row.append(f"{statistics.median(seconds):.0f}")
            rows.append(row + [""] * len(study.pairs))
        return markdown_table(["%", *columns], rows)

    def _table_over_cells(self) -> str:
        """Returns a table with a row for each measure, and a column for each comparison and kind
        of summary over the cells."""
        columns = {}
        for arm, baseline in self.study.pairs:
            for kind, differences in self.over_cells(arm, baseline).items():
                columns[f"{arm} − {baseline}, {kind}"] = differences
        return markdown_table(["points", *columns], self._rows(columns))

    def _rows(self, columns: dict[str, dict[str, Spread]]) -> list[list[str]]:
        """Returns a row for each measure, from columns with their values by measure."""
        rows = []
        for measure in self.measures:
            values = [str(column[measure]) for column in columns.values()]
            rows.append([self.title(measure), *values])
        return rows

    def title(self, measure: str) -> str:
        """Returns a measure's name for readers."""
        name = _spaced(measure)
        return f"{name} (primary)" if measure == self.study.primary else name

    def sentences(self) -> list[str]:
        """Returns which differences are above or below zero, for each comparison, in each cell and
        over the cells; then notes on scores near chance and best epochs."""
        study = self.study
        sentences = []
        for arm, baseline in study.pairs:
            name = f"{arm} − {baseline}"
            for cell in study.cell_values:
                at_cell = "" if cell is None else f" at {study.cell_field} {cell}"
                differences = self.differences(arm, baseline, cell)
                sentences.append(f"{name}{at_cell}: {_sides_of_zero(differences)}.")
            for kind, differences in self.over_cells(arm, baseline).items():
                sentences.append(
                    f"{name}, {kind} over {study.cell_field}: {_sides_of_zero(differences)}."
                )
        return [*sentences, *self._near_chance(), *self._best_epochs()]

    def _near_chance(self) -> list[str]:
        """Returns a warning if no arm is clearly better than guessing in the primary measure."""
        study = self.study
        means = [
            self.spread(arm, cell, study.primary).mean
            for arm in study.arms
            for cell in study.cell_values
        ]
        if max(means) >= NEAR_CHANCE:
            return []
        return [
            f"No arm reaches {NEAR_CHANCE:g} % in {study.primary.replace('_', ' ')}: scores near "
            "chance do not compare the methods. Train longer, on more data, or from released "
            "weights (--set flags.pretrained=…)."
        ]

    def _best_epochs(self) -> list[str]:
        """Returns a sentence on the epochs with the best validation scores, if the runs of all
        arms have such scores."""
        parts = []
        for arm in self.study.arms:
            records = [
                record
                for record in self.records
                if record["arm"] == arm and record.get("best_epoch")
            ]
            if not records:
                return []
            epochs = [record["best_epoch"] for record in records]
            median = statistics.median_low(epochs)
            last = max(record["epochs"] for record in records)
            parts.append(f"{arm} {median} of {last} ({min(epochs)} to {max(epochs)})")
        return [
            f"Best epoch on the validation data, the median over the runs: {', '.join(parts)}. "
            "superclip export RUN --best --out FOLDER exports it; the scores above are those of "
            "the last epoch."
        ]

    def comparisons(self) -> dict[str, list[dict]]:
        """Returns the differences in each cell and over the cells, as study.json contains them."""
        study = self.study
        lists = {"differences": [], "over_cells": []}
        for (arm, baseline), measure in product(study.pairs, self.measures):
            compared = {"arm": arm, "baseline": baseline, "measure": measure}
            for cell in study.cell_values:
                difference = self.differences(arm, baseline, cell)[measure]
                lists["differences"].append(compared | {"cell": cell} | difference.record())
            for kind, differences in self.over_cells(arm, baseline).items():
                record = compared | {"over": kind} | differences[measure].record()
                lists["over_cells"].append(record)
        return lists

    def csv(self) -> str:
        """Returns a row for each run, with numbers as numbers."""
        cell_field = list(self.study.cells)
        rows = [["arm", *cell_field, "seed", *self.measures, "cpu_seconds", "checkpoint"]]
        for record in self.records:
            cell = [record["cell"]] if cell_field else []
            scores = [f"{record['measures'][measure]:.2f}" for measure in self.measures]
            seconds = record["cpu_seconds"]
            seconds = None if seconds is None else f"{seconds:.1f}"
            rows.append(
                [record["arm"], *cell, record["seed"], *scores, seconds, record["checkpoint"]]
            )
        return csv_text(rows)


def _sides_of_zero(differences: dict[str, PairedDifference]) -> str:
    """Returns on which side of zero the differences of the measures are, in words."""
    if len(next(iter(differences.values()))) < 2:
        return "one seed shows nothing"
    parts = []
    for verdict in VERDICTS:
        names = [_spaced(name) for name in differences if differences[name].verdict == verdict]
        if names:
            parts.append(f"{verdict} in {', '.join(names)}")
    return "; ".join(parts)


def _spaced(measure: str) -> str:
    return measure.replace("_", " ")
