"""`superclip evaluate` in this process, and the results that it writes."""

import json
import re
from pathlib import Path

from openclip_superclip.__main__ import main


def evaluate(*argv) -> int:
    return main(["evaluate", *map(str, argv), "--device", "cpu", "--workers", "0"])


def records(folder: Path) -> dict[tuple[str, str, str], dict]:
    """The results in a folder by model, data set and task."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return {(record["model"], record["dataset"], record["task"]): record for record in found}


def features(folder: Path) -> dict[str, bytes]:
    """The cached features by the name of their folder."""
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("features/*/images.bin"))}


def num_read(capsys) -> int:
    """How many results the last call has read instead of computing them."""
    (read,) = re.findall(r"(\d) of them from before", capsys.readouterr().out)
    return int(read)


def errors(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
