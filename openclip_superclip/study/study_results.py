"""The results of a study: each arm's scores, the paired differences with their intervals, and
sentences on them."""

import math
from collections.abc import Sequence
from itertools import product

from ..errors import InputError
from ..rendering import markdown_table
from .paired_differences import PairedDifference, Spread, confidence_level, paired_difference
from .study_file import Study


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

    def __init__(self, study: Study, records: list[dict], planned_seeds: Sequence[int]):
        self.study = study
        self.records = records
        self.planned_seeds = planned_seeds  # at which the results were or will be read
        self.level = confidence_level(len(planned_seeds))
        self.measures = list(dict.fromkeys([study.primary, *records[0]["measures"]]))

    def spread(self, arm: str, cell, measure: str) -> Spread:
        return Spread(self._scores(arm, cell, measure).values())

    def differences(self, arm: str, baseline: str, cell) -> dict[str, PairedDifference]:
        """Returns the differences of two arms in a cell, by measure."""
        return {
            measure: paired_difference(
                self._scores(arm, cell, measure), self._scores(baseline, cell, measure), self.level
            )
            for measure in self.measures
        }

    def _scores(self, arm: str, cell, measure: str) -> dict[int, float]:
        """Returns an arm's scores in a cell by seed."""
        return {
            record["seed"]: record["measures"][measure]
            for record in self.records
            if (record["arm"], record["cell"]) == (arm, cell)
        }

    def tables(self) -> str:
        """Returns a table for each cell in Markdown, and the answer in words."""
        study = self.study
        parts = [f"**{self.study.question}**"]
        for cell in study.cell_values:
            if cell is not None:
                parts.append(f"{study.cell_field} {cell}:")
            parts.append(self._cell_table(cell))
        parts.append(
            f"Mean ± standard deviation over {self._seeds()}; differences are paired by "
            f"seed, with their {self.percent} interval (Student's t)."
        )
        if not study.is_of_scenes and "{seed}" not in str(study.first_settings):
            parts.append(
                "All seeds share one validation set: the intervals do not cover other data."
            )
        return "\n\n".join([*parts, *self.sentences()])

    @property
    def percent(self) -> str:
        """The level of the intervals."""
        return f"{100 * self.level:.3g} %"

    def _seeds(self) -> str:
        """Returns the number of seeds and at which other numbers the results are read."""
        number = len({record["seed"] for record in self.records})
        text = f"{number} seed{'s' if number > 1 else ''}"
        earlier = [str(planned) for planned in self.planned_seeds if planned < number]
        if earlier:
            text += f", extended after {' and '.join(earlier)} seeds"
        if number < self.planned_seeds[-1]:
            text += f" of {self.planned_seeds[-1]} planned"
        return text

    def _cell_table(self, cell) -> str:
        """Returns a table with a row for each measure, and a column for each arm and comparison."""
        study = self.study
        columns = {}
        for arm in study.arms:
            columns[arm] = {measure: self.spread(arm, cell, measure) for measure in self.measures}
        for arm, baseline in study.pairs:
            columns[f"{arm} − {baseline}"] = self.differences(arm, baseline, cell)
        rows = []
        for measure in self.measures:
            values = [str(column[measure]) for column in columns.values()]
            rows.append([self.title(measure), *values])
        return markdown_table(["%", *columns], rows)

    def title(self, measure: str) -> str:
        """Returns a measure's name for readers."""
        name = _spaced(measure)
        return f"{name} (primary)" if measure == self.study.primary else name

    def sentences(self) -> list[str]:
        """Returns the verdict of the primary measure, for each comparison in each cell."""
        study = self.study
        measure = _spaced(study.primary)
        sentences = []
        for arm, baseline in study.pairs:
            name = f"{arm} − {baseline}"
            for cell in study.cell_values:
                at_cell = "" if cell is None else f" at {study.cell_field} {cell}"
                difference = self.differences(arm, baseline, cell)[study.primary]
                answer = f"{difference.verdict} in {measure}, the primary measure"
                if len(difference.values) < 2:
                    answer = "one seed shows nothing"
                sentences.append(f"{name}{at_cell}: {answer}.")
        return sentences

    def comparisons(self) -> list[dict]:
        """Returns the differences in each cell, as study.json contains them."""
        study = self.study
        records = []
        for (arm, baseline), measure, cell in product(
            study.pairs, self.measures, study.cell_values
        ):
            compared = {"arm": arm, "baseline": baseline, "measure": measure, "cell": cell}
            records.append(compared | self.differences(arm, baseline, cell)[measure].record())
        return records


def _spaced(measure: str) -> str:
    return measure.replace("_", " ")
