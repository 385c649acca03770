"""What several test modules share."""

import csv
import json
from pathlib import Path

import pytest

from openclip_superclip.errors import InputError

GOLDEN = Path(__file__).parent.parent / "golden"
WORDS = ["cat", "dog", "red", "blue", "tree", "house", "car", "ship", "sun", "moon", "fish", "bird"]

parametrize = pytest.mark.parametrize


def cases(names: str, table: dict) -> pytest.MarkDecorator:
    """A mark that runs a test with each row of a table, under the row's name.

    The name is the first argument if `names` are one more than the row has values.
    """
    rows = [row if isinstance(row, tuple) else (row,) for row in table.values()]
    if len(names.split(",")) > len(rows[0]):
        rows = [(name, *row) for name, row in zip(table, rows, strict=True)]
    elif len(rows[0]) == 1:
        rows = list(table.values())
    return parametrize(names, rows, ids=table)


def input_error(pattern: str):
    """Expects an InputError whose message contains the pattern."""
    return pytest.raises(InputError, match=pattern)


def write_json(file: Path, content) -> None:
    file.write_text(json.dumps(content))


def read_json(file: Path):
    return json.loads(file.read_text())


def read_json_lines(file: Path) -> list:
    return [json.loads(line) for line in file.read_text().splitlines()]


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by column."""
    return list(csv.DictReader(file.read_text().splitlines()))
