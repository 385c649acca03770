"""Reads the files that OpenCLIP's trainer writes to a run's folder: options and checkpoints."""

import ast
import functools
import glob
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from ..files import content_digest, json_or_empty, read_whole
from ..flags import is_idf_file
from ..option_table import Effect, effect_of

LATEST = "epoch_latest.pt"  # the checkpoint of --save-most-recent
MAX_OPTION = 4096  # characters of an option, as of a path
RECORD = "run.json"  # of `superclip run`, in the folder of a run


def options_of_run(checkpoint: Path) -> dict:
    """Returns the options of the run in whose folder a checkpoint is, by attribute name of the
    parsed command line; {} if they are unknown."""
    folder = checkpoint.absolute().parent
    return read_options(folder.parent) if folder.name == "checkpoints" else {}


def options_to_keep(checkpoint) -> dict:
    """Returns the options to record in files made from a Checkpoint, with absolute paths to the
    model and IDF file."""
    options = checkpoint.options
    kept = {name: value for name, value in options.items() if effect_of(name) is Effect.MODEL}
    if model := trained_model(checkpoint):
        kept["model"] = model
    if file := idf_file(checkpoint):
        kept["superclip_idf"] = str(file)
    return kept


def idf_file(checkpoint) -> Path | None:
    """Returns the absolute path of the file of --superclip-idf of a Checkpoint's run, None if it
    has none or is unknown."""
    idf = str(checkpoint.options.get("superclip_idf", "online"))
    return Path(os.path.abspath(_training_folder(checkpoint) / idf)) if is_idf_file(idf) else None


def trained_model(checkpoint) -> str:
    """Returns the --model of a Checkpoint, an export's or a run's, "" if unknown; a path in it is
    absolute."""
    if (checkpoint.path / "open_clip_config.json").is_file():
        return f"local-dir:{checkpoint.path.resolve()}"
    model = str(checkpoint.options.get("model") or "")
    location = model.removeprefix("local-dir:")
    schema = model.removesuffix(location)
    if schema or location.endswith(".json"):
        location = (_training_folder(checkpoint) / location).resolve()
    return f"{schema}{location}"


def read_options(run: Path) -> dict:
    """Returns the options in params.txt of a run's folder; {} if there is none."""
    params = run / "params.txt"
    lines = read_whole(params).decode(errors="replace").splitlines() if params.is_file() else []
    parts = (line.partition(": ") for line in lines)
    return usable_options({name: _value(text) for name, separator, text in parts if separator})


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # a plain string
        return text


def usable_options(options: object) -> dict:
    """Returns those of a file's options that a command line can give: no tensors, and no texts that
    cannot be a path; {} for anything else than a mapping."""
    if not isinstance(options, dict):
        return {}
    return {
        name: value
        for name, value in options.items()
        if isinstance(value, bool | int | float | str | list | tuple | dict | None)
        and not (isinstance(value, str) and ("\0" in value or len(value) > MAX_OPTION))
    }


def _training_folder(checkpoint) -> Path:
    """Returns the working directory of the training of a run's Checkpoint, to resolve its relative
    paths.

    `superclip run` records it. Otherwise --logs and --name are the end of the run's path, or it is
    this process's.
    """
    options = checkpoint.options
    run = checkpoint.path.absolute().parent.parent
    recorded = json_or_empty(run / RECORD).get("cwd")
    if isinstance(recorded, str):
        return Path(recorded)
    end = Path(str(options.get("logs")), str(options.get("name"))).parts
    for folder in (run, run.resolve()):
        if folder.parts[-len(end) :] == end:
            return Path(*folder.parts[: -len(end)])
    return Path.cwd()


def checkpoints(folder: Path) -> dict[int, Path]:
    """Returns the checkpoints in a run's folder `checkpoints` by epoch, oldest first."""
    names = (
        (re.fullmatch(r"epoch_(\d+)\.pt", path.name), path) for path in folder.glob("epoch_*.pt")
    )
    return dict(sorted((int(name[1]), path) for name, path in names if name))


def newest(folder: Path) -> int:
    """Returns the epoch of the newest complete checkpoint, or 0 if there is none."""
    return next(
        (epoch for epoch, path in reversed(checkpoints(folder).items()) if is_complete(path)), 0
    )


def latest_checkpoints(folder: str | Path) -> list[str]:
    """Returns the checkpoints of a folder, newest first in the order of OpenCLIP's `--resume
    latest`."""

    def natural_key(path: str) -> list[str | int]:  # sorts epoch_10 after epoch_9
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.lower())]

    return sorted(glob.glob(f"{folder}**/*.pt", recursive=True), key=natural_key, reverse=True)


def own_checkpoints(folder: Path) -> list[Path]:
    """Returns the names of what OpenCLIP has saved in a run's folder `checkpoints`, newest first
    in its order."""
    return [folder / LATEST, *reversed(checkpoints(folder).values())]


def is_complete(path: str | Path, *, checksums: bool = False) -> bool:
    """Returns whether a checkpoint is complete: the zip archives of torch.save end with a table of
    contents.

    With `checksums`, reads the whole file and returns whether they are correct, too.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return not checksums or archive.testzip() is None
    except Exception:  # damaged archives raise various errors
        return False


is_whole = functools.partial(is_complete, checksums=True)


def is_damaged(path: Path, is_good: Callable[[Path], bool] = is_complete) -> bool:
    """Returns whether a checkpoint can be read to its end and is not good; otherwise it may be
    complete."""
    try:
        if is_good(path):
            return False
        content_digest(path)  # reads the whole file
        return not is_good(path)  # which failed before if a disk or network had a transient error
    except OSError as error:
        return isinstance(error, FileNotFoundError)


def quarantine(folder: Path, is_good: Callable[[Path], bool], suffix: str | None) -> list[Path]:
    """Renames the newest checkpoints until one is good, or cannot be read, so that `--resume
    latest` uses that one.

    Without a `suffix` for their new names, removes them. Returns the new names or the removed
    checkpoints.
    """
    bad = []
    for path in reversed(checkpoints(folder).values()):
        if not is_damaged(path, is_good):
            break
        if suffix is None:
            path.unlink()
            bad.append(path)
        else:
            bad.append(path.rename(path.with_name(f"{path.name}.{suffix}")))
    return bad
