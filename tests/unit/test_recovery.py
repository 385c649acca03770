"""How a run continues after a failure: the earliest error, and one rule."""

from types import SimpleNamespace

from support import parametrize

from openclip_superclip.errors import InputError
from openclip_superclip.plans.run import Settings
from openclip_superclip.runs.child_processes import _failure
from openclip_superclip.runs.recovery import (
    Decision,
    Failure,
    NeedsUser,
    decide,
    earliest_failure,
    starts_without_slice,
)
from openclip_superclip.runs.slurm import this_host


def start(job=None, restarts=0, **values):
    """An attempt of run.json that began before a slice was saved."""
    return {"job": job, "restarts": restarts, "epoch_before": 0, **values}


AGAIN = start(again=True)
BY_HAND = start(again=False)
PREEMPTED = start(again=True, error="stopped by SIGTERM")
IN_A_ROW = "; 3 starts in a row ended before a slice was trained"


@parametrize(
    "attempts, saved, decision",
    [
        ([], 0, Decision(again=True)),  # a damaged run.json
        ([BY_HAND], 0, Decision(again=True)),
        ([AGAIN, BY_HAND], 0, Decision(again=True, without="node2")),
        ([AGAIN, BY_HAND], 1, Decision(again=True)),
        ([AGAIN, AGAIN, BY_HAND], 0, Decision(why=IN_A_ROW)),
        ([BY_HAND, BY_HAND, BY_HAND], 0, Decision(again=True)),
    ],
)
def test_a_failed_start_is_repeated_until_three_have_saved_nothing(attempts, saved, decision):
    failure = Failure("rank 1", "it failed", host="node2")
    assert decide(failure, [dict(attempt) for attempt in attempts], saved) == decision


@parametrize("error", [InputError("--lr is x"), NeedsUser("loss is nan since step 7")])
def test_an_error_of_the_user_is_not_repeated(error):
    failure = Failure.of(error, "rank 1", traceback="Traceback")
    assert (failure.message, failure.traceback) == (str(error), "")
    assert decide(failure, [start()], 0) == Decision()


@parametrize("message", ["NCCL_ALGO must be set", "CUDA error: unknown error", "Bus error"])
def test_no_text_of_an_error_excludes_a_node_at_once(message):
    failure = Failure.of(RuntimeError(message))
    assert decide(failure, [start()], 0) == Decision(again=True)


@parametrize(
    "attempts, expected",
    [
        ([AGAIN], 1),
        ([AGAIN, AGAIN, BY_HAND], 3),
        ([AGAIN, AGAIN, BY_HAND, AGAIN], 1),  # started by hand
        ([AGAIN, start("17", 0, again=False), start("17", 1)], 3),  # requeued by SLURM
        ([start("17", 0), start("17", 0), start("17", 0)], 3),  # killed
        ([start("17", 0, again=False), start("17", 0, again=False)], 1),  # by hand in a job
        ([start("16"), start("16", 1), start("17")], 1),  # of another job
        ([AGAIN, *[PREEMPTED] * 9, BY_HAND], 2),
        ([AGAIN, *[PREEMPTED] * 10, BY_HAND], 3),
    ],
)
def test_starts_in_a_row_count_until_a_slice_is_trained(attempts, expected):
    attempts = [dict(attempt) for attempt in attempts]
    assert starts_without_slice(attempts, 0) == expected
    assert starts_without_slice(attempts, 1) == 0


def test_the_earliest_failure_of_all_nodes_is_the_first(tmp_path):
    connection = Failure("rank 0", "connection closed", host="node1", timestamp=2.0)
    killed = Failure("rank 8", "killed", host="node2", timestamp=1.0)
    killed.write(tmp_path / "rank_8.error.json")
    assert earliest_failure(tmp_path, [connection]) == killed
    assert earliest_failure(tmp_path, before=1.0) is None


@parametrize(
    "code, output, message",
    [
        (-9, "", "ended by signal 9 (Killed)"),
        (1, "Timeout (0:30:00)!\nThread 0x1\n", "no step for 30 minutes"),
        (3, "one\nNCCL has ended it\n", "exit code 3: NCCL has ended it"),
    ],
)
def test_a_rank_that_could_not_write_why_it_failed_is_described(code, output, message, tmp_path):
    run = SimpleNamespace(settings=Settings())
    (tmp_path / "rank_2.log").write_text(output)
    failure = _failure(SimpleNamespace(logs=tmp_path, run=run), 2, code, last_seen=7.0)
    assert failure.text == f"rank 2 on {this_host()}: {message}"
    assert Failure.read(tmp_path / "rank_2.error.json") == failure
    assert failure.timestamp == 7.0 and not failure.is_users
