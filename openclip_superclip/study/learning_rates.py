"""Which learning rates a study tunes, and the best ones."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from ..files import json_or_empty, write_json
from .study_file import LIKE, Study

CHOSEN = "chosen.json"  # in a study's folder
Rates = dict[str, dict[str, str]]  # the tuned learning rate, by arm and cell


def tuned_arms(study: Study) -> list[str]:
    """Returns the arms whose rate is tuned: those that neither set one nor are like another."""
    return [arm for arm, fields in study.arms.items() if not fields.keys() & {LIKE, "lr"}]


def rate_of(study: Study, arm: str, cell, rates: Rates) -> str | None:
    """Returns the tuned rate of an arm in a cell, or of the arm that it is like; None if there is
    none."""
    fields = study.arms[arm]
    if "lr" in fields:
        return None
    return rates.get(fields.get(LIKE, arm), {}).get(str(cell))


def read_rates(study: Study, out: Path) -> Rates:
    """Returns the learning rates that an earlier call has tuned."""
    return json_or_empty(out / CHOSEN) if study.choose else {}


def write_best_rates(study: Study, trials: Iterable[dict], out: Path) -> Rates:
    """Returns each arm's learning rate in each cell: the one with the best mean of the primary
    measure in the records of the trials. Writes it, and these scores."""
    scores = {}  # by arm, cell and rate
    for record in trials:
        by_rate = scores.setdefault(record["arm"], {}).setdefault(str(record["cell"]), {})
        by_rate.setdefault(record["set"]["lr"], []).append(record["measures"][study.primary])
    chosen = {arm: {} for arm in scores}
    for arm, by_cell in scores.items():
        for cell, by_rate in by_cell.items():
            means = {rate: statistics.mean(values) for rate, values in by_rate.items()}
            chosen[arm][cell] = max(means, key=means.get)
    write_json(out / "trials.json", scores)
    write_json(out / CHOSEN, chosen)
    return chosen
