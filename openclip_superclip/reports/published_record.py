"""The record of a finished run, for others to compare: recipe, versions, device, scores and the
code's hash."""

import hashlib
from pathlib import Path

import torch

from ..environment import processor
from ..errors import InputError
from ..files import PACKAGE, make_folder, write_json
from .reported_run import ReportedRun

# of a recipe: texts, and a path on one's own machine
LEFT_OUT = ("chosen", "paper", "note", "shards")


def write_record(run: ReportedRun, folder: Path) -> Path:
    """Writes FOLDER/RUN/record.json; InputError if a run is unfinished, has no scores, or not
    one of superclip run.

    Processor, GPU and code are those of the machine that writes it."""
    problem = None
    if run.planned is None:
        problem = "has no readable run.json of superclip run or superclip study"
    elif not run.is_finished:
        problem = f"is {run.state}"
    elif not run.scores:
        problem = "has no scores: call superclip evaluate first"
    if problem:
        raise InputError(f"--record: {run.path} {problem}; expected a finished run with scores")
    # the names of runs in folders of one name contain their parents'
    file = folder / run.name.strip("/").replace("/", "-") / "record.json"
    make_folder(file.parent, "--record")
    planned = run.planned
    recipe = planned.recipe
    uses_gpu = planned.device != "cpu" and torch.cuda.is_available()
    record = {
        "recipe": recipe.name,
        "settings": {
            name: value for name, value in recipe.as_dict().items() if name not in LEFT_OUT
        },
        "versions": run.versions,
        "device": planned.device,
        "ranks": planned.world_size,
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if uses_gpu else None,
        "samples_per_second": run.samples_per_second,
        "scores": run.scores,
        "code": code_digest(),
    }
    write_json(file, record)
    return file


def code_digest() -> str:
    """Returns the SHA-256 of the package's Python files, with their names."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
