"""The table of scores: a row per run or model and a column per measure, as text and JSON."""

import statistics
from dataclasses import dataclass

from ..environment import versions
from ..rendering import markdown_table
from .model_scores import PAPER_KEYS, ModelScores, Score, differences, paper_scores
from .result_files import PACKAGES
from .suites import THE_38

IN_OTHER_UNITS = {"nyuv2_rmse": "NYUv2 RMSE, no %", "llava_mme": "LLaVA MME, points"}
INTERVALS = (
    "Intervals (95 %, Wilson) are over the test samples. Scores often differ more between training "
    "seeds: superclip study compares methods over several seeds."
)


@dataclass
class ScoreTable:
    """Runs and models beside each other, and then the paper's values."""

    rows: list[ModelScores]

    def __post_init__(self):
        self._add_average()
        self.rows = [*self.rows, *paper_scores(self.rows)]
        self.measures = list(dict.fromkeys(key for row in self.rows for key in row.scores))

    def _add_average(self) -> None:
        """Adds the average of the zero-shot scores to rows with all of the 38 data sets."""
        for row in self.rows:
            scores = _zero_shot(row)
            if len(scores) == len(THE_38):
                row.scores["average_of_38"] = Score(statistics.mean(scores.values()))

    def text(self) -> str:
        """Returns the table in Markdown, transposed if that is narrower, and lines on what is
        missing and what is not comparable."""
        cells = [["%", *map(title, self.measures)]]
        for row in self.rows:
            scores = [str(row.scores.get(measure, "–")) for measure in self.measures]
            cells.append([row.name, *scores])
        if len(self.measures) > len(self.rows):
            cells = list(zip(*cells, strict=True))
        lines = [f"{row.name}: {problem}" for row in self.rows for problem in row.problems]
        lines += self.differences()
        if any(score.interval for row in self.rows for score in row.scores.values()):
            lines.append(INTERVALS)
        return "\n".join([markdown_table(cells[0], cells[1:]), "", *lines]).rstrip()

    def differences(self) -> list[str]:
        """Returns a line for each row that is not comparable with the first."""
        first, *others = self.rows
        trained = next((row for row in self.rows if row.training), first)
        lines = [differences(trained, row) for row in others if row is not trained]
        return [line for line in lines if line]

    def record(self, command: str) -> dict:
        """Returns what scores.json contains."""
        rows = [
            {
                "name": row.name,
                "epoch": row.epoch,
                "scores": {key: score._asdict() for key, score in row.scores.items()},
                "training": row.training,
                "problems": row.problems,
                "results": row.results,
            }
            for row in self.rows
        ]
        return {
            "command": command,
            "versions": versions(*PACKAGES),
            "rows": rows,
            "differences": self.differences(),
        }


def title(measure: str) -> str:
    """Returns a measure's name for readers."""
    if measure in IN_OTHER_UNITS:
        return IN_OTHER_UNITS[measure]
    return measure if " " in measure else measure.replace("_", " ")


def _zero_shot(row: ModelScores) -> dict[str, float]:
    """Returns a row's zero-shot scores by data set; mAP where that is the measure."""
    scores = {}
    for name in THE_38:
        accuracy = f"{name} zero shot"
        if name in PAPER_KEYS:
            accuracy = f"{PAPER_KEYS[name]}_zero_shot"
        for key in (accuracy, f"{name} zero shot map"):
            if key in row.scores:
                scores[name] = row.scores[key].value
    return scores
