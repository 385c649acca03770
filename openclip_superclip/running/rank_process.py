"""One rank of a run, as torchrun starts it: `superclip train` that keeps its output and its error in files."""

import faulthandler
import os
import socket
import sys
import time
import traceback
from pathlib import Path

from ..integration.training import train
from .failure import Error
from .launch import end_with_parent

RESERVE = 64 << 10  # bytes for the error, kept on a disk that may become full


def main(argv: list[str]) -> int:
    """Trains as `superclip train` with the arguments after the folder of logs, and returns its exit code."""
    logs, *arguments = argv
    rank = int(os.environ.get("RANK", 0))
    end_with_parent()
    output = os.open(Path(logs) / f"rank_{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    reserve = Path(logs) / f"rank_{rank}.reserve"
    reserve.write_bytes(os.urandom(RESERVE))
    try:
        code = train(arguments)
    except Exception as error:
        _record(Path(logs), rank, traceback.format_exc(), f"{type(error).__name__}: {error}")
        raise
    except SystemExit as exit:
        code = exit.code
        if isinstance(code, str):  # which Python would print last of all
            print(code, file=sys.stderr)
            code = 1
    if code:
        _record(Path(logs), rank)
    reserve.unlink(missing_ok=True)
    return code


def _record(logs: Path, rank: int, text: str = "", error: str | None = None) -> None:
    """Writes the rank's error before its output shows it: whoever reads the output then finds the error."""
    (logs / f"rank_{rank}.reserve").unlink(missing_ok=True)
    if error is None:
        sys.stdout.flush()
        sys.stderr.flush()
        lines = (logs / f"rank_{rank}.log").read_text(errors="replace").split("\n")
        error = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    who = f"rank {rank} on {socket.gethostname()}"
    Error(who, error, text, time.time()).write(logs / f"rank_{rank}.error.json")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
