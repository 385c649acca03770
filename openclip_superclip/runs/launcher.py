"""Starts a node's ranks with torch's elastic API, and writes into a file which of them failed.

    python -m openclip_superclip.runs.launcher LOGS/node_0.json

A process of its own: it may be killed or stopped with its ranks while `superclip run` stays alive to report it.
"""

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

from .process import HARDWARE, Failure, failure_here, kind_of, launcher_file, this_host
from .run import Start

NOT_FROM_OUTSIDE = (signal.SIGTERM, signal.SIGABRT)  # with which torch and NCCL end the ranks that are left
FLIGHT_RECORDER = {  # of NCCL: the last collectives of each rank, written if one of them times out
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000", "TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}  # fmt: skip


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


def main(file: str) -> int:
    """Runs the ranks to their end, and returns 0 if all succeeded."""
    start = Start.open(file)
    if start.run.gpus_per_node > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does
    for name, value in (FLIGHT_RECORDER | {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{start.logs}/nccl_trace_"}).items():
        os.environ.setdefault(name, value)
    rank = ["-u", "-m", "openclip_superclip.runs.rank", file.replace("$", "$$")]  # torch fills in ${local_rank}
    try:
        launch_agent(_config(start), sys.executable, rank)
    except SignalException:
        raise
    except ChildFailedError as failed:
        print(failed, file=sys.stderr)
        failure = first_failure(failed.failures)
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        failure = failure_here("the launcher", message, traceback.format_exc(), kind_of(message))
    else:
        return 0
    failure.write(launcher_file(start.logs, start.node))
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
    aborted = -seen.exitcode == signal.SIGABRT  # by NCCL's watchdog, or because a GPU has failed
    kind = HARDWARE if from_outside or aborted else ""
    return Failure(who, message, timestamp=now, is_cause=from_outside, kind=kind, host=this_host())


def _config(start: Start) -> LaunchConfig:
    common = {
        "min_nodes": start.num_nodes, "max_nodes": start.num_nodes, "nproc_per_node": start.run.gpus_per_node,
        "run_id": start.logs.name, "max_restarts": 0, "logs_specs": RankLogs(start.logs),
    }  # fmt: skip
    if start.num_nodes == 1:
        return LaunchConfig(**common, rdzv_backend="c10d", rdzv_endpoint="localhost:0")  # finds a free port itself
    return LaunchConfig(
        **common,
        rdzv_backend="static",
        rdzv_endpoint=f"{start.master_addr}:{start.master_port}",
        rdzv_configs={"rank": start.node},
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
