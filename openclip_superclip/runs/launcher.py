"""Starts a node's ranks with torch's elastic API, and tells in a file which of them failed.

    python -m openclip_superclip.runs.launcher --nproc-per-node 8 --logs DIR -- ARGUMENTS of `superclip train`

A process of its own: it may be killed or stopped with its ranks while `superclip run` lives on to tell of it.
"""

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from .process import HARDWARE, Failure, kind_of, launcher_file, this_host

NOT_FROM_OUTSIDE = (signal.SIGTERM, signal.SIGABRT)  # with which torch and NCCL end the ranks that are left


class RankLogs(LogsSpecs):
    """Each rank's output and error in one folder, named after its rank in the run."""

    def __init__(self, folder: Path):
        super().__init__(str(folder))

    @property
    def root_log_dir(self) -> str:
        return self._root_log_dir

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        files = {local_rank: f"{self.root_log_dir}/rank_{env['RANK']}" for local_rank, env in envs.items()}
        for local_rank, env in envs.items():
            env["TORCHELASTIC_ERROR_FILE"] = f"{files[local_rank]}.error.json"
        return LogsDest(
            stdouts={local_rank: f"{file}.log" for local_rank, file in files.items()},
            stderrs=dict.fromkeys(files, ""),  # the rank itself sends it where its output goes
            error_files={local_rank: env["TORCHELASTIC_ERROR_FILE"] for local_rank, env in envs.items()},
        )


def main(argv: list[str]) -> int:
    """Runs the ranks to their end, and returns 0 where all succeeded."""
    options = _parse(argv)
    if options.nproc_per_node > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does
    arguments = [argument.replace("$", "$$") for argument in options.arguments]  # torch fills in ${local_rank}
    rank = ["-u", "-m", "openclip_superclip.runs.rank", str(options.logs), *arguments]
    try:
        launch_agent(_config(options), sys.executable, rank)
    except SignalException:
        raise
    except ChildFailedError as failed:
        print(failed, file=sys.stderr)
        failure = first_failure(failed.failures)
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        who = f"the launcher on {socket.gethostname()}"
        failure = Failure(who, message, traceback.format_exc(), time.time(), kind=kind_of(message), host=this_host())
    else:
        return 0
    failure.write(launcher_file(options.logs, options.node_rank))
    return 1


def first_failure(failures: dict[int, ProcessFailure]) -> Failure:
    """Returns the failure of this node's ranks that the others follow from."""
    now = time.time()
    return min((_failure(rank, seen, now) for rank, seen in failures.items()), key=Failure.order)


def _failure(rank: int, seen: ProcessFailure, now: float) -> Failure:
    if os.path.isfile(seen.error_file):
        return Failure.read(Path(seen.error_file))
    who = f"rank {rank} on {socket.gethostname()}"
    if seen.exitcode >= 0:
        return Failure(who, f"it ended with exit code {seen.exitcode}", timestamp=now)
    from_outside = -seen.exitcode not in NOT_FROM_OUTSIDE
    by = f"Signal {-seen.exitcode} ({seen.signal_name()})"
    message = f"it was ended from outside: {by}" if from_outside else f"it was ended by {by}"
    aborted = -seen.exitcode == signal.SIGABRT  # by NCCL's watchdog, or where a GPU has failed
    kind = HARDWARE if from_outside or aborted else ""
    return Failure(who, message, timestamp=now, is_cause=from_outside, kind=kind, host=this_host())


def _config(options: argparse.Namespace) -> LaunchConfig:
    common = {
        "min_nodes": options.nnodes, "max_nodes": options.nnodes, "nproc_per_node": options.nproc_per_node,
        "run_id": options.logs.name, "max_restarts": 0, "logs_specs": RankLogs(options.logs),
    }  # fmt: skip
    if options.nnodes == 1:
        return LaunchConfig(**common, rdzv_backend="c10d", rdzv_endpoint="localhost:0")  # finds a free port itself
    return LaunchConfig(
        **common,
        rdzv_backend="static",
        rdzv_endpoint=f"{options.master_addr}:{options.master_port}",
        rdzv_configs={"rank": options.node_rank},
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m openclip_superclip.runs.launcher",
        description="Starts the ranks of one node of a run.",
    )
    parser.add_argument("--nnodes", type=int, default=1, metavar="N", help="nodes of the run")
    parser.add_argument("--node-rank", type=int, default=0, metavar="N", help="which of them this is")
    parser.add_argument("--master-addr", metavar="HOST", help="where rank 0 listens")
    parser.add_argument("--master-port", type=int, metavar="PORT")
    parser.add_argument("--nproc-per-node", type=int, required=True, metavar="N", help="ranks of this node, one a GPU")
    parser.add_argument("--logs", type=Path, required=True, metavar="DIR", help="of the ranks' output and failures")
    parser.add_argument("arguments", nargs="*", help="of `superclip train`, after --")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
