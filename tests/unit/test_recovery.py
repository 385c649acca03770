"""How a run continues after a failure: the cause among the failures of all ranks, and the table
of decisions."""

import signal
import socket

from support import cases, parametrize

from openclip_superclip.runs.node_loss import cause
from openclip_superclip.runs.recovery import (
    CONNECTION,
    DATA,
    HARDWARE,
    KILLED,
    LOSS,
    LOST,
    STALL,
    USER,
    Failure,
    Requeue,
    Restart,
    Stop,
    decide,
    exit_failure,
    failures,
    first_failure,
    kind_of,
    starts_without_slice,
)


def start(job: str | None = None, restarts: int = 0, before: int = 0, **values):
    """An attempt of run.json that began after `before` slices."""
    return {"job": job, "restarts": restarts, "epoch_before": before, **values}


AGAIN = start(again=True)
THREE = "; 3 starts in a row ended before a slice was trained"
DECISIONS = [  # (kind of failure, attempts, saved slices, seconds left, decision)
    (USER, [start()], 0, None, Stop()),
    (DATA, [start()], 0, None, Stop()),
    (LOSS, [start()], 5, 9000, Stop()),
    (KILLED, [start()], 0, None, Restart()),
    (HARDWARE, [start()], 0, 9000, Restart()),
    (STALL, [start()], 3, None, Restart()),
    (CONNECTION, [start()], 0, None, Restart()),
    (LOST, [start()], 0, None, Requeue()),  # srun cannot start on the node
    (HARDWARE, [start()], 0, 100, Requeue()),  # a restart would not train a slice
    (HARDWARE, [start()], 3, 100, Requeue()),
    (HARDWARE, [AGAIN, start()], 0, None, Requeue(without="node2")),  # it may be the node
    (LOST, [AGAIN, start()], 0, None, Requeue(without="node2")),
    (HARDWARE, [AGAIN, start()], 1, None, Restart()),  # a slice was saved
    (HARDWARE, [AGAIN, AGAIN, start()], 0, None, Stop(THREE)),
    (USER, [AGAIN, AGAIN, start()], 0, None, Stop()),
    (STALL, [start(), start(), start()], 0, None, Restart()),  # by hand
    (
        KILLED,
        [start("17", 0), start("17", 1), start("17", 2)],
        0,
        None,
        Stop(THREE),
    ),  # SLURM has requeued the job
    # of another job
    (KILLED, [start("16", 0), start("16", 1), start("17", 0)], 0, None, Restart()),
    (KILLED, [], 0, None, Restart()),  # run.json was damaged
]


@parametrize("kind, attempts, progress, left, decision", DECISIONS)
def test_a_failure_decides_how_a_run_continues(kind, attempts, progress, left, decision):
    assert (
        decide(Failure("rank 1", "it failed", kind=kind, host="node2"), attempts, progress, left)
        == decision
    )


BY_HAND, OF_JOB, REQUEUED = start(), start("17"), start("17", 1)
IN_A_ROW = {  # attempts: how many starts in a row trained no slice
    "the first": ([AGAIN], 1),
    "a restart": ([AGAIN, AGAIN], 2),
    "two restarts": ([AGAIN, AGAIN, BY_HAND], 3),
    "started by hand": ([AGAIN, AGAIN, BY_HAND, AGAIN], 1),
    "requeued": ([AGAIN, OF_JOB, REQUEUED], 3),
    "by hand in the same allocation": ([OF_JOB, REQUEUED, {**REQUEUED}], 1),
}


@cases("attempts, expected", IN_A_ROW)
def test_starts_in_a_row_count_until_a_slice_is_trained(attempts, expected):
    assert starts_without_slice(attempts, 0) == expected
    assert starts_without_slice(attempts, 1) == 0


def failure(kind: str, rank: int, timestamp: float, host: str = "node1"):
    return Failure(f"rank {rank}", kind, timestamp=timestamp, kind=kind, host=host)


@parametrize(
    "ranks, first",
    [
        # A clock that is three minutes ahead does not turn the user's error into a closed
        # connection.
        ([failure(CONNECTION, 0, 20), failure(USER, 1, 200, "node2")], 1),
        ([failure(USER, 0, 200), failure(CONNECTION, 1, 20, "node2")], 0),
        ([failure(CONNECTION, 0, 1), failure(KILLED, 1, 2)], 1),
        ([failure(USER, 0, 1), failure(KILLED, 1, 2)], 1),
        ([failure(USER, 0, 2), failure(USER, 1, 1)], 1),
        # only one machine's clock
        ([failure(USER, 0, 2), failure(USER, 1, 1, "node2"), failure(USER, 2, 3)], 0),
        ([failure(HARDWARE, 0, 1), failure(USER, 1, 2)], 1),
        ([failure(HARDWARE, 0, 2), failure(CONNECTION, 1, 1)], 0),
        ([failure(DATA, 0, 2), failure(CONNECTION, 1, 1, "node2")], 0),
    ],
)
def test_the_first_failure_is_the_one_that_caused_the_others(ranks, first, tmp_path):
    for rank in ranks:
        rank.write(tmp_path / f"{rank.who.replace(' ', '_')}.error.json")
    assert failures(tmp_path) == ranks
    assert first_failure(ranks) == ranks[first]
    assert first_failure([]) is None


@parametrize(
    ("known", "message", "kind"),
    [
        ([failure(CONNECTION, 0, 1)], "lost contact with node2", LOST),
        ([failure(CONNECTION, 0, 1), failure(CONNECTION, 1, 1, "node2")], CONNECTION, CONNECTION),
        ([failure(USER, 0, 1)], USER, USER),
    ],
    ids=["silent", "all have reported", "a cause"],
)
def test_a_node_is_gone_if_connections_were_closed_and_it_has_reported_nothing(
    known, message, kind, tmp_path
):
    # the first node's, which it could not write
    first = cause(tmp_path, known, nodes=["node1", "node2"], patience=0)
    assert (first.message, first.kind) == (message, kind)
    assert cause(tmp_path, known, nodes=[]) == known[0]  # one machine waits for no other
    assert cause(tmp_path, [], nodes=[]) is None


def test_failures_are_in_the_order_of_ranks(tmp_path):
    for name in ("rank_10", "rank_9", "node_2"):
        Failure(name, "it failed").write(tmp_path / f"{name}.error.json")
    assert [one.who for one in failures(tmp_path)] == ["node_2", "rank_9", "rank_10"]


@parametrize(
    "exit_code, message, kind",
    [
        (-signal.SIGKILL, "it was ended from outside: Signal 9 (SIGKILL)", KILLED),
        (-signal.SIGABRT, "it was ended by Signal 6 (SIGABRT)", CONNECTION),
        (-signal.SIGTERM, "it was ended by Signal 15 (SIGTERM)", CONNECTION),
        (3, "it ended with exit code 3", USER),
    ],
)
def test_a_rank_that_could_not_write_why_it_failed_is_named_with_its_exit_code(
    exit_code, message, kind
):
    failure = exit_failure(2, exit_code)
    assert (failure.who, failure.message, failure.kind) == (
        f"rank 2 on {socket.gethostname()}",
        message,
        kind,
    )


@cases(
    "message, kind",
    {
        "DistBackendError: NCCL error in: NCCL.cpp:268, unhandled system error": HARDWARE,
        (
            "DistBackendError: NCCL error in: NCCLUtils.cpp:1, ncclRemoteError: A call failed "
            "possibly due to"
        ): CONNECTION,
        "AcceleratorError: CUDA error: uncorrectable ECC error encountered": HARDWARE,
        "RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error.": HARDWARE,
        (
            "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer "
            "[192.0.2.2]:4242"
        ): CONNECTION,
        "RuntimeError: Timed out waiting 1800000ms for recv operation to complete": CONNECTION,
        (
            "DistNetworkError: The server socket has failed to listen on any local network "
            "address. EADDRINUSE"
        ): HARDWARE,
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB": USER,
        "ZeroDivisionError: division by zero": USER,
        "FileNotFoundError: [Errno 2] No such file or directory: 'words.safetensors'": USER,
    },
)
def test_a_failure_is_of_the_machines_or_the_users(message, kind):
    assert kind_of(message) == kind
