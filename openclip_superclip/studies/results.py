"""What a study shows: each arm's scores, the paired differences with their intervals, and one sentence."""

import csv
import io
import math
import statistics
from pathlib import Path

from ..errors import InputError
from ..files import whole_file, write_json, write_text
from ..pages import markdown_table
from .statistics import PairedDifference, Spread
from .study import Study

NEAR_CHANCE = 3.0  # percent: below it a primary score is close to guessing among a hundred or more
UNITS = {"depth_RMSE": "cm, less is better"}  # of measures that are not in percent


def check_measures(study: Study, records: list[dict]) -> None:
    """Raises InputError where a record lacks the study's primary measure, or one that the first record has."""
    for record in records:
        for measure in (study.primary, *records[0]["measures"]):
            if measure not in record["measures"]:
                found = ", ".join(record["measures"]) or "nothing"
                raise InputError(
                    f"{record['run']} was measured without {measure}: {found} was found; where its training was to "
                    "measure it, checkpoints/results.jsonl in its folder says what it did: remove the folder, mend "
                    "--val-data and the flags of validation, and the same command trains it"
                )


class StudyResults:
    """The records of a study's runs, compared arm by arm at equal seeds; InputError where one lacks a measure.

    A run whose weights are those of another seed of its arm is a copy: it is named, and no mean holds it.
    """

    def __init__(self, study: Study, records: list[dict], chosen: dict | None = None):
        self.study, self.records, self.chosen = study, records, chosen or {}
        check_measures(study, records)
        first = records[0]["measures"]
        self.measures = [study.primary, *(name for name in first if name != study.primary)]
        self.same = _same_weights(records)

    def spread(self, arm: str, cell, measure: str) -> Spread:
        return Spread([record["measures"][measure] for record in self._of(arm, cell)])

    def difference(self, arm: str, baseline: str, cell, measure: str) -> PairedDifference:
        """Returns the differences of the seeds that both arms have."""
        ours, theirs = ({r["seed"]: r["measures"][measure] for r in self._of(name, cell)} for name in (arm, baseline))
        return PairedDifference([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])

    def over_cells(self, arm: str, baseline: str, measure: str) -> dict[str, PairedDifference]:
        """Returns, of the seeds that all cells have, the mean of each seed's differences over the cells.

        Where the cells are numbers above 0, also the slope of its differences over their binary logarithm.
        """
        cells = self.study.cell_values
        seeds = set.intersection(*({r["seed"] for r in self._of(name, c)} for name in (arm, baseline) for c in cells))
        scores = {(r["arm"], r["cell"], r["seed"]): r["measures"][measure] for r in self.records}
        rows = [[scores[arm, c, seed] - scores[baseline, c, seed] for c in cells] for seed in sorted(seeds)]
        found = {"mean": PairedDifference([statistics.mean(row) for row in rows])}
        if len(cells) > 1 and all(isinstance(cell, (int, float)) and cell > 0 for cell in cells):
            places = [math.log2(cell) for cell in cells]
            slopes = [statistics.linear_regression(places, row).slope for row in rows]
            found["per doubling"] = PairedDifference(slopes)
        return found

    def tables(self) -> str:
        """Returns a table a cell in Markdown, one over the cells, and what excludes zero in words."""
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
            if all(record["cpu_seconds"] is not None for record in self.records):  # nobody clocks what jobs train
                seconds = (statistics.median(r["cpu_seconds"] for r in self._of(arm, cell)) for arm in study.arms)
                rows.append(["CPU seconds", *(f"{number:.0f}" for number in seconds), *("" for _ in study.pairs)])
            parts.append(markdown_table(heads, rows))
        if study.cells:
            parts += [f"Over all {study.cell_field}:", self._table_over_cells()]
        parts.append(
            f"Mean ± standard deviation over {self._num_seeds()} seed(s); differences are paired by seed, with their "
            "95 % interval (Student's t)."
        )
        return "\n\n".join([*parts, *self.sentences()])

    def _table_over_cells(self) -> str:
        """Returns the table of the differences' means over the cells, and of their slopes, in points."""
        over = {m: [self.over_cells(*pair, m) for pair in self.study.pairs] for m in self.measures}
        named = [(f"{arm} − {baseline}", place) for place, (arm, baseline) in enumerate(self.study.pairs)]
        columns = [(f"{pair}, {kind}", place, kind) for pair, place in named for kind in over[self.measures[0]][place]]
        rows = [
            [self.title(measure), *(str(found[place][kind]) for _, place, kind in columns)]
            for measure, found in over.items()
        ]
        return markdown_table(["points", *(head for head, _, _ in columns)], rows)

    def title(self, measure: str) -> str:
        """Returns a measure's name for people, with its unit where that is not percent."""
        told = measure.replace("_", " ") + (" (primary)" if measure == self.study.primary else "")
        return f"{told}, {UNITS[measure]}" if measure in UNITS else told

    def sentences(self) -> list[str]:
        """Returns, for each comparison and cell, and over the cells, which differences exclude zero."""
        study, told = self.study, []
        for arm, baseline in study.pairs:
            for cell in study.cell_values:
                where = "" if cell is None else f" at {study.cell_field} {cell}"
                found = {m: self.difference(arm, baseline, cell, m) for m in self.measures}
                told.append(f"{arm} − {baseline}{where}: {_excludes_zero(found)}.")
            if study.cells:
                over = {m: self.over_cells(arm, baseline, m) for m in self.measures}
                for kind in over[study.primary]:
                    found = {m: kinds[kind] for m, kinds in over.items()}
                    told.append(f"{arm} − {baseline}, {kind} over {study.cell_field}: {_excludes_zero(found)}.")
        best = max(self.spread(arm, cell, study.primary).mean for arm in study.arms for cell in study.cell_values)
        if study.primary not in UNITS and best < NEAR_CHANCE:
            told.append(
                f"No arm reaches {NEAR_CHANCE:g} % in {study.primary.replace('_', ' ')}: scores near chance say little "
                "about the methods. Train longer, on more data, or from released weights (--set flags.pretrained=TAG)."
            )
        return told + self.same

    def write(self, out: Path, provenance: dict) -> None:
        """Writes study.json, study.csv (a row a run), study.md and study.png."""
        from .figures import draw_study

        differences = [
            {
                "arm": arm, "baseline": baseline, "cell": cell, "measure": measure, "mean": difference.mean,
                "interval": difference.interval, "values": difference.values,
            }
            for arm, baseline in self.study.pairs
            for cell in self.study.cell_values
            for measure in self.measures
            for difference in [self.difference(arm, baseline, cell, measure)]
        ]  # fmt: skip
        over_cells = [
            {
                "arm": arm, "baseline": baseline, "measure": measure, "over": kind, "mean": difference.mean,
                "interval": difference.interval, "values": difference.values,
            }
            for arm, baseline in self.study.pairs
            for measure in self.measures
            for kind, difference in self.over_cells(arm, baseline, measure).items()
            if self.study.cells
        ]  # fmt: skip
        write_json(
            out / "study.json",
            {
                "question": self.study.question, "primary": self.study.primary, **provenance, "chosen": self.chosen,
                "differences": differences, "over_cells": over_cells, "runs": self.records,
            },
        )  # fmt: skip
        write_text(out / "study.csv", self.csv())
        write_text(out / "study.md", self.tables() + "\n")
        with whole_file(out / "study.png") as file:
            file.write(draw_study(self))

    def csv(self) -> str:
        """Returns a row a run: numbers as numbers."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        cell_field = [self.study.cell_field] if self.study.cell_field else []
        writer.writerow(["arm", *cell_field, "seed", *self.measures, "cpu_seconds", "checkpoint"])
        for record in self.records:
            cell = [record["cell"]] if cell_field else []
            scores = [f"{record['measures'][measure]:.2f}" for measure in self.measures]
            seconds = "" if record["cpu_seconds"] is None else f"{record['cpu_seconds']:.1f}"
            writer.writerow([record["arm"], *cell, record["seed"], *scores, seconds, record["checkpoint"]])
        return text.getvalue()

    def _of(self, arm: str, cell) -> list[dict]:
        """Returns the records of an arm in a cell, one of those with equal weights."""
        found = [record for record in self.records if record["arm"] == arm and record["cell"] == cell]
        return list({record["checkpoint"]: record for record in reversed(found)}.values())[::-1]

    def _num_seeds(self) -> int:
        return max(len(self._of(arm, cell)) for arm in self.study.arms for cell in self.study.cell_values)


def _excludes_zero(found: dict[str, PairedDifference]) -> str:
    """Returns in words on which side of zero the differences of the measures are."""
    if len(next(iter(found.values())).values) < 2:
        return "one seed tells nothing"
    above = [m for m, difference in found.items() if difference.excludes_zero and difference.mean > 0]
    below = [m for m, difference in found.items() if difference.excludes_zero and difference.mean < 0]
    neither = [m for m in found if m not in above + below]
    return "; ".join(
        f"{how} in {', '.join(names).replace('_', ' ')}"
        for how, names in (("above zero", above), ("below zero", below), ("not told from zero", neither))
        if names
    )


def _same_weights(records: list[dict]) -> list[str]:
    """Returns a line for each group of different runs with equal weights: a copy is no second seed."""
    groups: dict[str, dict[str, str]] = {}
    for record in records:
        groups.setdefault(record["checkpoint"], {})[record["run"]] = f"{record['arm']} seed {record['seed']}"
    return [
        f"Equal weights, which are no separate seeds: {', '.join(g.values())}." for g in groups.values() if len(g) > 1
    ]
