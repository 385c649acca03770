"""The results of a study: each arm's scores, the paired differences with their intervals, and
sentences on them."""

import math
import statistics
from pathlib import Path

from ...errors import InputError
from ...files import write_bytes, write_json, write_text
from ...rendering import csv_text, markdown_table
from .run_scores import PairedDifference, Spread
from .study_file import Study

NEAR_CHANCE = 3.0  # percent: below it a primary score is close to guessing among a hundred or more
UNITS = {"depth_RMSE": "cm, less is better"}  # of measures that are not in percent


def check_measures(study: Study, records: list[dict]) -> None:
    """Raises InputError unless each record has finite numbers of the primary measure and of all
    that the first has."""
    for record in records:
        for measure in (study.primary, *records[0]["measures"]):
            if not math.isfinite(record["measures"].get(measure, math.nan)):
                raise InputError(
                    f"{record['run']} was measured without a finite {measure}: correct "
                    "--val-data or the flags of validation, and remove the run's folder to "
                    "train it again"
                )


class StudyResults:
    """The records of a study's runs, which `check_measures` has accepted, compared arm by arm at
    equal seeds."""

    def __init__(self, study: Study, records: list[dict], chosen: dict | None = None):
        self.study, self.records, self.chosen = study, records, chosen or {}
        self.measures = list(dict.fromkeys([study.primary, *records[0]["measures"]]))

    def spread(self, arm: str, cell, measure: str) -> Spread:
        return Spread(list(self._scores(arm, cell, measure).values()))

    def difference(self, arm: str, baseline: str, cell, measure: str) -> PairedDifference:
        """Returns the differences at the seeds that both arms have."""
        return PairedDifference(list(self._differences(arm, baseline, cell, measure).values()))

    def over_cells(self, arm: str, baseline: str, measure: str) -> dict[str, PairedDifference]:
        """Returns, at the seeds that all cells have, the mean of each seed's differences over the
        cells.

        If the cells are numbers above 0, also the slope of each seed's differences over their
        binary logarithm.
        """
        cells = self.study.cell_values
        by_cell = [self._differences(arm, baseline, cell, measure) for cell in cells]
        rows = [
            [found[seed] for found in by_cell]
            for seed in sorted(set.intersection(*map(set, by_cell)))
        ]
        over = {"mean": PairedDifference([statistics.mean(row) for row in rows])}
        if len(cells) > 1 and all(isinstance(cell, (int, float)) and cell > 0 for cell in cells):
            places = [math.log2(cell) for cell in cells]
            slopes = [statistics.linear_regression(places, row).slope for row in rows]
            over["per doubling"] = PairedDifference(slopes)
        return over

    def tables(self) -> str:
        """Returns a table for each cell and one over the cells in Markdown, and what excludes
        zero in words."""
        study, parts = self.study, [f"**{self.study.question}**"]
        for cell in study.cell_values:
            if cell is not None:
                parts.append(f"{study.cell_field} {cell}:")
            heads = ["%", *study.arms, *(f"{arm} − {baseline}" for arm, baseline in study.pairs)]
            rows = [
                [
                    self.title(measure),
                    *(str(self.spread(arm, cell, measure)) for arm in study.arms),
                    *(str(self.difference(*pair, cell, measure)) for pair in study.pairs),
                ]
                for measure in self.measures
            ]
            # unknown for jobs
            if all(record["cpu_seconds"] is not None for record in self.records):
                seconds = (
                    statistics.median(r["cpu_seconds"] for r in self._of(arm, cell))
                    for arm in study.arms
                )
                rows.append(
                    [
                        "CPU seconds",
                        *(f"{number:.0f}" for number in seconds),
                        *("" for _ in study.pairs),
                    ]
                )
            parts.append(markdown_table(heads, rows))
        if study.cells:
            over = {m: [self.over_cells(*pair, m) for pair in study.pairs] for m in self.measures}
            kinds = [
                (place, kind)
                for place, _ in enumerate(study.pairs)
                for kind in over[study.primary][place]
            ]
            heads = [
                "points",
                *(" − ".join(study.pairs[place]) + f", {kind}" for place, kind in kinds),
            ]
            rows = [
                [self.title(m), *(str(over[m][place][kind]) for place, kind in kinds)]
                for m in self.measures
            ]
            parts += [f"Over all {study.cell_field}:", markdown_table(heads, rows)]
        num_seeds = max(
            len(self._of(arm, cell)) for arm in study.arms for cell in study.cell_values
        )
        parts.append(
            f"Mean ± standard deviation over {num_seeds} seed(s); differences are paired by "
            "seed, with their 95 % interval (Student's t)."
        )
        return "\n\n".join([*parts, *self.sentences()])

    def title(self, measure: str) -> str:
        """Returns a measure's name for readers, with its unit unless that is percent."""
        name = measure.replace("_", " ") + (" (primary)" if measure == self.study.primary else "")
        return f"{name}, {UNITS[measure]}" if measure in UNITS else name

    def sentences(self) -> list[str]:
        """Returns which differences exclude zero, for each comparison, in each cell and over the
        cells."""
        study, sentences = self.study, []
        for arm, baseline in study.pairs:
            for cell in study.cell_values:
                place = "" if cell is None else f" at {study.cell_field} {cell}"
                found = {m: self.difference(arm, baseline, cell, m) for m in self.measures}
                sentences.append(f"{arm} − {baseline}{place}: {_excludes_zero(found)}.")
            if study.cells:
                over = {m: self.over_cells(arm, baseline, m) for m in self.measures}
                for kind in over[study.primary]:
                    found = {m: kinds[kind] for m, kinds in over.items()}
                    sentences.append(
                        f"{arm} − {baseline}, {kind} over {study.cell_field}: "
                        f"{_excludes_zero(found)}."
                    )
        highest = max(
            self.spread(arm, cell, study.primary).mean
            for arm in study.arms
            for cell in study.cell_values
        )
        if study.primary not in UNITS and highest < NEAR_CHANCE:
            sentences.append(
                f"No arm reaches {NEAR_CHANCE:g} % in {study.primary.replace('_', ' ')}: "
                "scores near chance do not "
                "compare the methods. Train longer, on more data, or from released weights "
                "(--set flags.pretrained=…)."
            )
        return [*sentences, *self._best_epochs()]

    def _best_epochs(self) -> list[str]:
        """Returns a sentence on the epochs with the best validation scores, if the runs have
        such scores."""
        found = []
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
            found.append(
                f"{arm} {median} of {records[0]['epochs']} ({min(epochs)} to {max(epochs)})"
            )
        return [
            f"Best epoch on the validation data, the median over the runs: {', '.join(found)}. "
            "superclip export RUN --best exports it; the scores above are those of the last epoch."
        ]

    def write(self, out: Path, provenance: dict) -> None:
        """Writes study.json, study.csv (a row for each run), study.md and study.png."""
        from .figures import draw_study

        study, measures = self.study, self.measures
        differences = [
            {
                "arm": arm,
                "baseline": baseline,
                "cell": cell,
                "measure": measure,
                **self.difference(arm, baseline, cell, measure).record(),
            }
            for arm, baseline in study.pairs
            for cell in study.cell_values
            for measure in measures
        ]
        over_cells = [
            {"arm": arm, "baseline": baseline, "measure": measure, "over": kind, **found.record()}
            for arm, baseline in (study.pairs if study.cells else ())
            for measure in measures
            for kind, found in self.over_cells(arm, baseline, measure).items()
        ]
        content = {
            "question": study.question,
            "primary": study.primary,
            **provenance,
            "chosen": self.chosen,
            "differences": differences,
            "over_cells": over_cells,
            "runs": self.records,
        }
        write_json(out / "study.json", content)
        write_text(out / "study.csv", self.csv())
        write_text(out / "study.md", self.tables() + "\n")
        write_bytes(out / "study.png", draw_study(self))

    def csv(self) -> str:
        """Returns a row for each run, with numbers as numbers."""
        cell_field = [self.study.cell_field] if self.study.cell_field else []
        rows = [["arm", *cell_field, "seed", *self.measures, "cpu_seconds", "checkpoint"]]
        for record in self.records:
            cell = [record["cell"]] if cell_field else []
            scores = [f"{record['measures'][measure]:.2f}" for measure in self.measures]
            seconds = "" if record["cpu_seconds"] is None else f"{record['cpu_seconds']:.1f}"
            rows.append(
                [record["arm"], *cell, record["seed"], *scores, seconds, record["checkpoint"]]
            )
        return csv_text(rows)

    def _of(self, arm: str, cell) -> list[dict]:
        return [
            record for record in self.records if record["arm"] == arm and record["cell"] == cell
        ]

    def _scores(self, arm: str, cell, measure: str) -> dict[int, float]:
        """Returns an arm's scores in a cell, by seed."""
        return {record["seed"]: record["measures"][measure] for record in self._of(arm, cell)}

    def _differences(self, arm: str, baseline: str, cell, measure: str) -> dict[int, float]:
        ours, theirs = (self._scores(name, cell, measure) for name in (arm, baseline))
        return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def _excludes_zero(found: dict[str, PairedDifference]) -> str:
    """Returns on which side of zero the differences of the measures are, in words."""
    if len(next(iter(found.values())).values) < 2:
        return "one seed shows nothing"
    above = [
        m for m, difference in found.items() if difference.excludes_zero and difference.mean > 0
    ]
    below = [
        m for m, difference in found.items() if difference.excludes_zero and difference.mean < 0
    ]
    neither = [m for m in found if m not in above + below]
    verdicts = {"above zero": above, "below zero": below, "not significant": neither}
    return "; ".join(
        f"{verdict} in {', '.join(_with_unit(name) for name in names)}"
        for verdict, names in verdicts.items()
        if names
    )


def _with_unit(measure: str) -> str:
    name = measure.replace("_", " ")
    return f"{name} ({UNITS[measure]})" if measure in UNITS else name
