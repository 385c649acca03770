"""One rank of a run, as rank_launcher.py starts it: `superclip train` that leaves its failure in a file."""

import os
import socket
import sys
import time
import traceback
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.elastic.multiprocessing.errors.error_handler import ErrorHandler

from ..data.staged_shards import StagedShards
from ..errors import InputError
from ..integration.training import register_plugin, train
from ..parent_process import end_with_parent
from .failure import LOSS, Failure, kind_of, this_host
from .rank_measures import ASKED, measured
from .staging import STAGED
from .step_watch import LossIsNoNumber, StepWatch
from .stopped_ranks import pid_file

RESERVE = 64 << 10  # bytes for the failure, kept on a disk that may become full


class Refused(Exception):
    """Training ended with an exit code; its message is the last line of the rank's output, which says why."""


class RankErrors(ErrorHandler):
    """Writes the exception that ends a rank, before its output shows it: who reads the output then finds the file."""

    def __init__(self, logs: Path, rank: int):
        self.file, self.rank = logs / f"rank_{rank}.error.json", rank
        self.reserve = logs / f"rank_{rank}.reserve"

    def initialize(self) -> None:
        super().initialize()
        self.reserve.write_bytes(os.urandom(RESERVE))

    def record_exception(self, e: BaseException) -> None:
        self.free_reserve()
        if isinstance(e, LossIsNoNumber):
            Failure("", str(e), timestamp=time.time(), is_cause=True, kind=LOSS).write(self.file)
            return
        who = f"rank {self.rank} on {socket.gethostname()}"
        said = (str(e), "") if isinstance(e, Refused) else (f"{type(e).__name__}: {e}", traceback.format_exc())
        kind = "" if isinstance(e, Refused | InputError) else kind_of(said[0])
        Failure(who, *said, timestamp=time.time(), kind=kind, host=this_host()).write(self.file)

    def free_reserve(self) -> None:
        self.reserve.unlink(missing_ok=True)


def main(argv: list[str]) -> int:
    """Trains as `superclip train` with the arguments after the folder of logs, and returns its exit code."""
    end_with_parent()
    os.dup2(1, 2)  # the launcher has put standard output into the rank's log
    logs, *arguments = argv
    rank = int(os.environ["RANK"])
    errors = RankErrors(Path(logs), rank)
    pid_file(Path(logs), rank).write_text(str(os.getpid()))
    try:
        record(_train, errors)(Path(logs), rank, arguments)
    except Refused:
        return 1
    errors.free_reserve()
    return 0


def _train(logs: Path, rank: int, arguments: list[str]) -> None:
    """Trains; raises Refused where training ends with another exit code than 0."""
    staged = StagedShards(Path(os.environ[STAGED])) if STAGED in os.environ else None
    register_plugin(StepWatch(logs, rank, staged))
    try:
        code = measured(lambda: train(arguments), logs, rank) if ASKED in os.environ else train(arguments)
    except SystemExit as exit:
        code = exit.code
        if isinstance(code, str):  # which Python would print last of all
            print(code, file=sys.stderr)
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        lines = (logs / f"rank_{rank}.log").read_text(errors="replace").split("\n")
        raise Refused(next((line for line in reversed(lines) if line.strip()), "it said nothing"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
