"""What a run that is refused after it has begun leaves behind: one line, and the name for the corrected command."""

import logging
import shutil
from pathlib import Path

_begun: list[Path] = []  # the run's folder, where it was not there before


def note_begin(folder: str) -> None:
    """Notes that a run is about to begin in `folder`."""
    _begun[:] = [] if Path(folder).exists() else [Path(folder)]


def take_back() -> None:
    """Removes the folder of a run that has not trained a step, and ends the logging.

    OpenCLIP refuses a name that has a log; and torch would log, as it ends, what it had compiled.
    """
    logging.disable(logging.CRITICAL)
    for folder in _begun:
        log = folder / "out.log"
        if log.is_file() and "Train Epoch" not in log.read_text() and not any(folder.glob("checkpoints/*")):
            shutil.rmtree(folder, ignore_errors=True)
    _begun.clear()
