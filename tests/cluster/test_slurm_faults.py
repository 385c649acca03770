"""What a run survives on a real SLURM cluster of two nodes."""

import re
import subprocess
import sys

import pytest
from support import read_json, write_program
from support.slurm_cluster import ON_CPUS, attempts, submit, wait_for_slice, wait_until
from support.tiny_run import SLICES, assert_equal_weights, outcome, state

from openclip_superclip.data.shard_order import slice_of

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def troubled(cluster, work, recipe, slow_steps):
    """One job to which everything happens in turn, and what was seen of
    it."""
    run = work / "runs/troubled"
    next_job = re.search(r"NEXT_JOB_ID\s*= (\d+)", cluster.call("scontrol show config"))[1]
    seen = {"run": run, "port": 20000 + int(next_job)}
    listens = (
        f"import socket, time; s = socket.create_server(('', {seen['port']})); "
        "print(flush=True); time.sleep(600)"
    )
    shim = work / "scontrol and srun that fail at times"
    first = "$1$2 =~ requeue|showjob && -z $SLURM_RESTART_COUNT"
    for command, when in ("scontrol", first), ("srun", "$SLURM_RESTART_COUNT = [12]"):
        failed = f'"{shim}/failed {command} $1 $SLURM_RESTART_COUNT"'
        fails = f'[[ {when} ]] && mkdir {failed} 2>/dev/null && exit "${{SLURM_EXIT_ERROR:-1}}"'
        write_program(shim / command, f'{fails}\nPATH=${{PATH#*:}} exec {command} "$@"')
    (work / "shim").write_text(f"PATH='{shim}':$PATH\n{(work / 'slow steps').read_text()}")
    command = [cluster.folder / "bin/on", "node1", sys.executable, "-c", listens]
    # the port of the first start is taken
    with subprocess.Popen(command, stdout=subprocess.PIPE) as listening:
        assert listening.stdout.readline()
        job = submit(cluster, recipe, run, f"{ON_CPUS} --setup shim")
        wait_for_slice(cluster, run, 0, 2)
        listening.kill()
    # as a minute before the time is up
    cluster.call(f"scancel --signal=USR1 --batch {job}")

    wait_for_slice(cluster, run, 1, 1)
    urgent = "--partition=urgent --nodes=2 --exclusive --output=/dev/null --wrap=true"
    cluster.call(f"sbatch {urgent}", cwd=work)

    wait_for_slice(cluster, run, 2, 2)
    kill_rank = "on node2 pkill -KILL -f openclip_superclip.runs.rank_main"
    cluster.call(kill_rank)

    # a node whose connections break, and whose `superclip run` is silent
    wait_for_slice(cluster, run, 3, 1)
    cluster.call("on node2 pkill -STOP -f 'openclip_superclip run'")
    cluster.call(kill_rank)
    cluster.wait_until(lambda: state(run)["state"] == "preempted", run, "the silence")
    # if SLURM has not killed it by then
    cluster.call("on node2 sh -c \"pkill -KILL -f '[o]penclip_superclip run'; true\"")

    wait_for_slice(cluster, run, 4, 2)
    cluster.call("power off node2")
    try:  # SLURM itself would notice in half a minute
        cluster.call("scontrol update nodename=node2 state=down reason=power")
        cluster.wait_until(lambda: state(run)["state"] == "preempted", run, "the power cut")
    finally:
        cluster.call("power on node2")
    output = run / f"slurm-{job}.out"
    cluster.complete(job, output)
    return seen | {"output": output.read_text()}


def test_a_run_survives_what_happens_on_a_cluster_and_ends_with_the_weights_of_an_undisturbed_one(
    troubled, undisturbed
):
    run = troubled["run"]
    starts = [(one["state"], one["error"]) for one in attempts(run)]
    assert starts[:3] + starts[-1:] == [
        ("preempted", "stopped by SIGUSR1"),
        ("preempted", "stopped by SIGTERM"),
        ("preempted", "rank 1 on node2: ended by signal 9 (Killed)"),
        ("finished", None),
    ]
    assert starts[3][1].startswith("rank 0 on node1: RuntimeError: ")  # by a silent node
    assert starts[4] == ("preempted", "stopped by SIGTERM")  # SLURM has requeued it
    assert [one["restarts"] for one in attempts(run)][:5] == [0, 1, 2, 2, 2]
    assert "resuming checkpoint" in (run / "out.log").read_text()
    assert_equal_weights(run, undisturbed)


def test_the_jobs_script_takes_another_port_asks_slurm_again_and_restarts_on_the_same_nodes(
    troubled,
):
    output, port = troubled["output"], troubled["port"]
    for command in ("requeue", "show job"):
        assert re.search(
            rf"^train\.sbatch: scontrol {command} failed; trying again$", output, flags=re.MULTILINE
        )
    again = "train.sbatch: starting again on the same nodes, after exit code"
    assert output.count(f"{again} 76\n") == 2
    assert output.count(f"{again} 75\n") >= 2
    starts = [troubled["run"] / one["ranks"] / "node_0.json" for one in attempts(troubled["run"])]
    ports = [read_json(start)["master_port"] for start in starts]
    assert ports[:5] == [port + more for more in (1, 202, 303, 404, 505)]


def test_a_stopped_run_resumes_to_the_same_weights(cluster, work, recipe, slow_steps, undisturbed):
    run, flags = work / "runs/stopped", f"{ON_CPUS} {slow_steps}"
    job = submit(cluster, recipe, run, flags)
    wait_for_slice(cluster, run, 0, 1)
    cluster.call("superclip stop", run)
    cluster.complete(job, run / f"slurm-{job}.out")
    assert outcome(run) == ("preempted", f"stopped after slice {state(run)['epoch']}, as asked")
    job = submit(cluster, recipe, run, flags)
    wait_for_slice(cluster, run, 1, 1)
    cluster.call("superclip stop --now", run)
    assert cluster.wait(job)["JobState"] == "CANCELLED"
    wait_until(lambda: not cluster.call("squeue --noheader"), 60, "the end of the job")
    assert outcome(run) == ("preempted", "stopped by SIGTERM")
    job = submit(cluster, recipe, run, ON_CPUS)
    cluster.complete(job, run / f"slurm-{job}.out")
    assert_equal_weights(run, undisturbed)


def test_what_one_node_cannot_read_ends_the_job_before_the_slice_is_saved(
    cluster, work, recipe, undisturbed
):
    (folder := work / "links").mkdir()
    shards = sorted((work / "shards").glob("*.tar"))
    first_of_rank_1 = shards[slice_of(len(shards), SLICES, 0, 0)[1]]
    for shard in shards:
        (folder / shard.name).symlink_to(
            "/dev/shm/shard.tar" if shard == first_of_rank_1 else shard
        )
    run, data = work / "runs/torn", f"{folder}/{{000000..{len(shards) - 1:06}}}.tar"
    flags = f"{ON_CPUS} --data '{data}' --skip-data-check"
    try:
        cluster.call("on node1 cp", first_of_rank_1, "/dev/shm/shard.tar")
        job = submit(cluster, recipe, run, flags)
        assert cluster.wait(job)["JobState"] == "FAILED"
        unreadable = (
            "1 of the 4 shards of slice 1 cannot be read, more than --unreadable-max 0.01 allows: "
            f"{folder / first_of_rank_1.name} (FileNotFoundError: No such file or directory, on "
            "node2)"
        )
        status, error = outcome(run)
        assert error.startswith(f"{unreadable}; superclip check DATA ")
        assert f"error: {unreadable}" in (run / f"slurm-{job}.out").read_text()
        assert (status, [*run.glob("checkpoints/*.pt")]) == ("failed", [])
        cluster.call("on node2 cp", first_of_rank_1, "/dev/shm/shard.tar")
        job = submit(cluster, recipe, run, flags)
        cluster.complete(job, run / f"slurm-{job}.out")
    finally:
        for node in ("node1", "node2"):
            cluster.call(f"on {node} rm -f /dev/shm/shard.tar")
    assert_equal_weights(run, undisturbed)
