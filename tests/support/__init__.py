"""What several test modules share."""

import csv
import json
import subprocess
from pathlib import Path

import pytest

from openclip_superclip.errors import InputError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
DATA = ROOT / "tests/data"
WORDS = "cat dog red blue tree house car ship sun moon fish bird".split()

parametrize = pytest.mark.parametrize


def cases(names, table):
    """A mark that runs a test with each row of a table, under the row's
    name.

    The name is the first argument if `names` are one more than the row has
    values.
    """
    rows = [row if isinstance(row, tuple) else (row,) for row in table.values()]
    if len(names.split(",")) > len(rows[0]):
        rows = [(name, *row) for name, row in zip(table, rows, strict=True)]
    elif len(rows[0]) == 1:
        rows = [value for (value,) in rows]
    return parametrize(names, rows, ids=table)


def table(name):
    """The rows of the table "FILE: HEADING" in data/FILE.md, by their first
    cells; other cells may be values of JSON."""
    file, _, heading = name.partition(": ")
    _, _, below = (DATA / f"{file}.md").read_text().partition(f"\n## {heading}\n\n")
    rows = markdown_cells(below.partition("\n\n")[0])[2:]  # below the head
    return {name: tuple(map(_value, cells)) for name, *cells in rows}


def markdown_cells(text):
    """The cells of a table in Markdown, line by line."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def _value(cell):
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


def refusals(name):
    """The command lines of data/refusals/NAME.txt, and below each a part of
    the one line that it ends with."""
    lines = (DATA / f"refusals/{name}.txt").read_text().splitlines()
    return {lines[row]: lines[row + 1].strip() for row in range(0, len(lines), 2)}


def input_error(pattern):
    """Expects an InputError whose message contains the pattern."""
    return pytest.raises(InputError, match=pattern)


def write_json(file, content):
    file.write_text(json.dumps(content))


def read_json(file):
    return json.loads(file.read_text())


def read_json_lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def read_rows(file):
    """The rows of a CSV file, by column."""
    return list(csv.DictReader(file.read_text().splitlines()))


def write_program(file, lines):
    """Writes a bash script that can be called, for a folder of PATH."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/bash\n{lines}\n")
    file.chmod(0o755)


def succeed(command, **options):
    """Runs a command, which must succeed, and returns what it has
    printed."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done
