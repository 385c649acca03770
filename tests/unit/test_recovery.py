"""How a run continues after a failure: the cause among the failures of all
ranks, and the table of decisions."""

from support import cases, table

from openclip_superclip.errors import InputError
from openclip_superclip.runs.recovery import (
    STOPPED,
    Decision,
    Failure,
    cause,
    decide,
    exit_failure,
    failures,
    first_failure,
    starts_without_slice,
)
from openclip_superclip.runs.slurm import this_host


def start(job=None, restarts=0, **values):
    """An attempt of run.json that began before a slice was saved."""
    return {"job": job, "restarts": restarts, "epoch_before": 0, **values}


STARTS = {"once": start(), "again": start(again=True)}
STARTS["preempted"] = start(again=True, error="stopped by SIGTERM")
for job in "16.0 16.1 17.0 17.1 17.2".split():  # and how often SLURM has requeued it
    STARTS[job] = start(job[:2], int(job[3:]))


@cases("kind, starts, saved, left, decision", table("runs: recovery"))
def test_a_failure_decides_how_a_run_continues(kind, starts, saved, left, decision):
    failure = Failure("rank 1", "it failed", kind=kind, host="node2")
    attempts = [dict(STARTS[each]) for each in starts.split()]
    assert decide(failure, attempts, saved, left or None) == Decision(**decision)


@cases("starts, expected", table("runs: starts in a row"))
def test_starts_in_a_row_count_until_a_slice_is_trained(starts, expected):
    attempts = [dict(STARTS[each]) for each in starts.split()]
    assert starts_without_slice(attempts, 0) == expected
    assert starts_without_slice(attempts, 1) == 0


def described_failures(text):
    """The failures of ranks 0, 1, …, each of a kind, a time and a node."""
    failures = []
    for rank, described in enumerate(text.split(", ")):
        kind, timestamp, host = described.split()
        failures.append(
            Failure(f"rank {rank}", kind, timestamp=float(timestamp), kind=kind, host=host)
        )
    return failures


@cases("first, others, cause", table("runs: first failure"))
def test_the_first_failure_is_the_one_that_caused_the_others(first, others, cause, tmp_path):
    ranks = described_failures(f"{first}, {others}")
    for rank in ranks:
        rank.write(tmp_path / f"{rank.who.replace(' ', '_')}.error.json")
    assert failures(tmp_path) == ranks
    assert first_failure(ranks) == ranks[cause]
    assert first_failure([]) is None


@cases("described, message, kind", table("runs: lost nodes"))
def test_a_node_is_gone_if_connections_were_closed_and_it_has_reported_nothing(
    described, message, kind, tmp_path
):
    known = described_failures(described)
    # the first node's, which it could not write
    is_stopped = known[0].kind == STOPPED
    nodes = ["node1", "node2"]
    first = cause(tmp_path, known, nodes, patience=0, is_stopped=is_stopped)
    assert (first.message, first.kind) == (message, kind)
    alone = cause(tmp_path, known, nodes=["node1"])  # waits for no other
    assert alone == (None if is_stopped else known[0])
    assert cause(tmp_path, [], nodes=["node1"]) is None


def test_after_a_signal_that_all_nodes_have_reported_nothing_has_failed(tmp_path):
    known = described_failures("stopped 1 node1, stopped 2 node2")
    assert cause(tmp_path, known, ["node1", "node2"], is_stopped=True) is None
    assert cause(tmp_path, known[:1], ["node1", "node2"], patience=0) is None  # not asked


def test_failures_are_in_the_order_of_ranks(tmp_path):
    for name in ("rank_10", "rank_9", "node_2"):
        Failure(name, "it failed").write(tmp_path / f"{name}.error.json")
    assert [one.who for one in failures(tmp_path)] == ["node_2", "rank_9", "rank_10"]


@cases("exit_code, output, message, kind", table("runs: exit codes of ranks"))
def test_a_rank_that_could_not_write_why_it_failed_is_named_with_its_exit_code(
    exit_code, output, message, kind
):
    failure = exit_failure(2, exit_code, output)
    assert (failure.text, failure.kind) == (f"rank 2 on {this_host()}: {message}", kind)


@cases("message, kind", table("runs: kinds of failures"))
def test_a_failure_is_of_the_machines_or_the_users(message, kind):
    error = InputError if message.startswith("--") else Exception
    assert Failure.of(error(message)).kind == kind
