"""Training on a real SLURM cluster of two nodes, and what it survives there."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from support.data import write_shards
from support.plugins import write_disturbed_loss, write_failing_plugin, write_slow_loss
from support.slurm_cluster import Cluster, wait_until
from support.tiny_run import SLICES, assert_equal_weights, state, write_recipe
from support.training_runs import run_superclip

from openclip_superclip.data.shard_order import slice_of
from openclip_superclip.lab.demo.data import write_evaluation_data
from openclip_superclip.plans.recipe import read_recipe
from openclip_superclip.runs.folder import RunFolder

pytestmark = pytest.mark.slurm

SLURM = Path(__file__).parents[2] / "slurm"
ON_CPUS = ["--nodes", "2", "--gpus-per-node", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Where the jobs are submitted from."""
    return tmp_path_factory.mktemp("at 50% of slurm")


@pytest.fixture(scope="module")
def recipe(work) -> Path:
    return write_recipe(work, batch=4)  # many steps: time to disturb a run in the midst of them


@pytest.fixture(scope="module")
def slow_steps(work) -> Path:
    """A setup file: each slice takes four seconds, so that all is noticed within the one in
    which it happens."""
    plugin = write_slow_loss(work / "slow", 0.25)
    (work / "slow steps").write_text(f"export PYTHONPATH='{plugin}'\n")
    return work / "slow steps"


def submit(cluster: Cluster, work: Path, *arguments, cwd: Path | None = None) -> tuple[str, str]:
    """Returns the number of the job that `superclip submit` starts, and what it prints.

    Nothing of this environment is handed on to the job, as on many clusters.
    """
    output = work / "submitted"
    output.unlink(missing_ok=True)
    code = run_superclip(
        ["submit", *arguments], output, cwd or work, **cluster.environment, SBATCH_EXPORT="NONE"
    )
    printed = output.read_text()
    assert code == 0, printed
    return re.search(r"^job (\d+) is in the queue", printed, flags=re.MULTILINE)[1], printed


def attempts(run: Path) -> list[dict]:
    """The starts of a run."""
    return RunFolder(run).attempts


def wait_for_slice(cluster: Cluster, run: Path, start: int, number: int) -> None:
    """Returns when the `start`-th start of a run trains its `number`-th slice."""

    def trains() -> bool:
        if len(attempts(run)) <= start:
            return False
        log = run / attempts(run)[start]["ranks"] / "rank_0.log"
        return log.exists() and log.read_text().count("Start epoch ") >= number

    cluster.wait_until(trains, run, f"slice {number} of start {start}")


@pytest.fixture(scope="module")
def undisturbed(cluster, work, recipe) -> Path:
    """A run on both nodes that nothing has disturbed."""
    job, _ = submit(cluster, work, recipe, *ON_CPUS, "--out", "runs/undisturbed")
    assert cluster.wait(job)["JobState"] == "COMPLETED", (
        work / f"runs/undisturbed/slurm-{job}.out"
    ).read_text()
    return work / "runs/undisturbed"


def test_a_submitted_job_trains_to_the_end_on_all_nodes(undisturbed):
    assert state(undisturbed)["state"] == "finished"
    record = json.loads((undisturbed / "run.json").read_text())
    assert (record["run"]["nodes"], record["run"]["gpus_per_node"]) == (2, 1)
    assert record["data_check"]["found"] == 12
    assert record["environment"]["SLURM_JOB_ID"] == state(undisturbed)["job"]
    (start,) = record["attempts"]
    assert start["hosts"] == ["node1", "node2"]
    assert sorted(path.name for path in (undisturbed / start["ranks"]).glob("*.log")) == [
        "rank_0.log",
        "rank_1.log",
    ]
    assert "world_size: 2" in (undisturbed / "out.log").read_text()


def test_a_rehearsal_stops_and_resumes_on_all_nodes(cluster, work, recipe, slow_steps):
    folder = work / "runs/rehearsal"
    job, _ = submit(
        cluster, work, recipe, *ON_CPUS, "--rehearse", "--setup", slow_steps, "--out", folder
    )
    assert cluster.wait(job)["JobState"] == "COMPLETED", (folder / f"slurm-{job}.out").read_text()
    summary = json.loads((folder / "rehearsal.json").read_text())
    assert (summary["nodes"], summary["world_size"]) == (2, 2)
    assert (summary["resumed"]["different"], summary["resumed"]["equal_weights"]) == (0, True)


@pytest.fixture(scope="module")
def troubled(cluster, work, recipe, slow_steps) -> dict:
    """One job to which everything happens in turn, and what was seen of it."""
    run = work / "runs/troubled"
    seen = {
        "run": run,
        "port": 20000
        + int(re.search(r"NEXT_JOB_ID\s*= (\d+)", cluster.call("scontrol", "show", "config"))[1]),
    }
    listens = (
        f"import socket, time; s = socket.create_server(('', {seen['port']})); "
        "print(flush=True); time.sleep(600)"
    )
    shim = work / "scontrol and srun that fail at times"
    shim.mkdir()
    first = "$1$2 =~ requeue|showjob && -z $SLURM_RESTART_COUNT"
    for command, when in ("scontrol", first), ("srun", "$SLURM_RESTART_COUNT = [14]"):
        failed = f'"{shim}/failed {command} $1 $SLURM_RESTART_COUNT"'
        fails = f'[[ {when} ]] && mkdir {failed} 2>/dev/null && exit "${{SLURM_EXIT_ERROR:-1}}"'
        (shim / command).write_text(
            f'#!/bin/bash\n{fails}\nPATH=${{PATH#*:}} exec {command} "$@"\n'
        )
        (shim / command).chmod(0o755)
    (work / "shim").write_text(f"PATH='{shim}':$PATH\n{slow_steps.read_text()}")
    command = [cluster.folder / "bin/on", "node1", sys.executable, "-c", listens]
    # the port of the first start is taken
    with subprocess.Popen(command, stdout=subprocess.PIPE) as listening:
        assert listening.stdout.readline()
        job, _ = submit(
            cluster, work, recipe, *ON_CPUS, "--out", run, "--setup", "shim", "--stage", "/dev/shm"
        )
        wait_for_slice(cluster, run, 0, 2)
        listening.kill()
    seen["copies"] = [
        len(cluster.call("on", node, "find", "/dev/shm", "-name", "*.tar").splitlines())
        for node in ("node1", "node2")
    ]
    cluster.call("scancel", "--signal=USR1", "--batch", job)  # as a minute before the time is up

    wait_for_slice(cluster, run, 1, 1)
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"]
    cluster.call("sbatch", *urgent, cwd=work)

    wait_for_slice(cluster, run, 2, 2)
    cluster.call("on", "node2", "pkill", "-KILL", "-f", "openclip_superclip.runs.rank_main")

    # A node whose connections break, and of which nothing more is heard: its ranks die, and
    # `superclip run` is silent.
    wait_for_slice(cluster, run, 3, 1)
    cluster.call("on", "node2", "pkill", "-STOP", "-f", "openclip_superclip run")
    cluster.call("on", "node2", "pkill", "-KILL", "-f", "openclip_superclip.runs.rank_main")
    cluster.wait_until(lambda: state(run)["state"] == "preempted", run, "the silence")
    cluster.call("on", "node2", "pkill", "-KILL", "-f", "openclip_superclip run")

    wait_for_slice(cluster, run, 4, 2)
    cluster.call("power", "off", "node2")
    try:  # SLURM itself would notice in half a minute
        cluster.call("scontrol", "update", "nodename=node2", "state=down", "reason=power")
        cluster.wait_until(lambda: state(run)["state"] == "preempted", run, "the power cut")
    finally:
        cluster.call("power", "on", "node2")
    seen["job"], seen["output"] = cluster.wait(job), (run / f"slurm-{job}.out").read_text()
    return seen


def test_a_run_survives_what_happens_on_a_cluster_and_ends_with_the_weights_of_an_undisturbed_one(
    troubled, undisturbed
):
    run = troubled["run"]
    assert troubled["job"]["JobState"] == "COMPLETED", troubled["output"]
    starts = [(one["state"], one["error"]) for one in attempts(run)]
    assert starts[:5] + starts[-1:] == [
        ("preempted", "stopped by SIGUSR1"),
        ("preempted", "stopped by SIGTERM"),
        ("preempted", "rank 1 on node2: it was ended from outside: Signal 9 (SIGKILL)"),
        ("preempted", "lost contact with node2"),
        ("preempted", "stopped by SIGTERM"),
        ("finished", None),
    ]
    assert [one["restarts"] for one in attempts(run)][:5] == [0, 1, 2, 2, 3]
    assert "resuming checkpoint" in (run / "out.log").read_text()
    assert_equal_weights(run, undisturbed)


def test_the_jobs_script_takes_another_port_asks_slurm_again_and_restarts_on_the_same_nodes(
    troubled,
):
    output, port = troubled["output"], troubled["port"]
    assert f"train.sbatch: port {port} of node1 is taken; trying the next" in output
    for command in ("requeue", "show job"):
        assert re.search(
            rf"^train\.sbatch: scontrol {command} failed; \w+ again$", output, flags=re.MULTILINE
        )
    unstarted = "superclip did not start on every node, or was killed: exit code 76"
    assert output.count(f"train.sbatch: {unstarted}\n") == 2
    assert output.count("train.sbatch: starting again on the same nodes") == 3
    starts = [troubled["run"] / one["ranks"] / "node_0.json" for one in attempts(troubled["run"])]
    ports = [json.loads(start.read_text())["master_port"] for start in starts]
    assert ports[:5] == [port + 1, port + 202, port + 202, port + 303, port + 303]


def test_each_node_copies_the_shards_of_its_own_ranks_and_leaves_none(troubled, cluster):
    # its own ranks' of two slices
    assert all(0 < copies <= 2 * 12 / SLICES / 2 for copies in troubled["copies"])
    assert "copying failed" not in troubled["output"]
    assert not any(cluster.call("on", node, "ls", "/dev/shm") for node in ("node1", "node2"))


def test_a_rank_that_fails_twice_on_its_node_starts_on_another(cluster, work, recipe):
    killed = "value if 'SLURM_RESTART_COUNT' in os.environ else os.kill(os.getpid(), 9)"
    (work / "deadly").write_text(
        f"export PYTHONPATH='{write_disturbed_loss(work / 'killing', 1, killed)}'\n"
    )
    run, one_node = (
        work / "runs/killed rank",
        ["--nodes", "1", "--gpus-per-node", "1", "--device", "cpu"],
    )
    setup = ["--setup", work / "deadly", "--set", "samples=1 passes"]
    # nothing can be written
    job, _ = submit(cluster, work, recipe, *one_node, "--out", run, *setup, cwd=Path("/proc"))
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    (first,), (again,), (other,) = (one["hosts"] for one in attempts(run))
    assert first == again != other
    assert [one["state"] for one in attempts(run)] == ["preempted", "preempted", "finished"]
    assert (
        attempts(run)[0]["error"]
        == f"rank 0 on {first}: it was ended from outside: Signal 9 (SIGKILL)"
    )
    assert f"from the last checkpoint, without {first}" in (run / f"slurm-{job}.out").read_text()


def test_a_rank_that_fails_ends_the_job_with_its_traceback_first(cluster, work, recipe):
    (work / "setup").write_text(f"export PYTHONPATH='{write_failing_plugin(work / 'plugin')}'\n")
    run = work / "runs/failing %j"  # which sbatch would read in its own way
    job, _ = submit(cluster, work, recipe, *ON_CPUS, "--out", run, "--setup", "setup")
    assert cluster.wait(job)["JobState"] == "FAILED"
    assert (state(run)["state"], state(run)["error"]) == (
        "failed",
        "rank 1 on node2: RuntimeError: the lens of rank 1 is cracked",
    )
    first = (run / f"slurm-{job}.out").read_text().partition("Traceback")[2]
    assert (
        re.search(r"^\w+Error.*", first, flags=re.MULTILINE)[0]
        == "RuntimeError: the lens of rank 1 is cracked"
    )

    # A start that is refused on the first node does not count as an interruption of the others.
    refused = [recipe, "--out", run, "--device", "cpu", "--set", "lr=1"]
    script = ["--nodes=2", "--gpus-per-node=0", "--output=refused", SLURM / "train.sbatch"]
    job = cluster.call("sbatch", "--parsable", *script, *refused, cwd=work).strip()
    ended, printed = cluster.wait(job), (work / "refused").read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), printed
    assert (
        f"error: {run} contains a run of another recipe: lr is 0.001 there and 1.0 here" in printed
    )
    assert "the same command resumes" not in printed and "Traceback" not in printed
    assert state(run)["error"] == "rank 1 on node2: RuntimeError: the lens of rank 1 is cracked"


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
    command = [recipe, *ON_CPUS, "--out", run, "--data", data, "--skip-data-check"]
    try:
        cluster.call("on", "node1", "cp", first_of_rank_1, "/dev/shm/shard.tar")
        job, _ = submit(cluster, work, *command)
        assert cluster.wait(job)["JobState"] == "FAILED"
        lost = (
            f"{folder / first_of_rank_1.name} (FileNotFoundError: No such file or "
            "directory, on node2)"
        )
        allowed = (
            "1 of the 4 shards of slice 1 cannot be read, more than --unreadable-max 0.01 allows"
        )
        assert state(run)["error"].startswith(f"{allowed}: {lost}; superclip plan --check ")
        assert f"error: {allowed}: {lost}" in (run / f"slurm-{job}.out").read_text()
        assert (state(run)["state"], [*run.glob("checkpoints/*.pt")]) == ("failed", [])
        cluster.call("on", "node2", "cp", first_of_rank_1, "/dev/shm/shard.tar")
        job, _ = submit(cluster, work, *command)
        assert cluster.wait(job)["JobState"] == "COMPLETED", (run / f"slurm-{job}.out").read_text()
    finally:
        for node in ("node1", "node2"):
            cluster.call("on", node, "rm", "-f", "/dev/shm/shard.tar")
    assert_equal_weights(run, undisturbed)


def test_a_launcher_that_is_killed_while_slurm_is_away_starts_again_once_it_is_back(
    cluster, work, recipe, slow_steps, undisturbed
):
    run = work / "runs/away"
    job, _ = submit(cluster, work, recipe, *ON_CPUS, "--out", run, "--setup", slow_steps)
    wait_for_slice(cluster, run, 0, 2)
    cluster.call("on", "login", "pkill", "slurmctld")
    try:
        cluster.call("on", "node2", "pkill", "-KILL", "-f", "openclip_superclip run")
        wait_until(lambda: state(run)["state"] == "preempted", 120, "the first node to stop")
    finally:
        cluster.call("on", "login", "setsid", "slurmctld")
    assert state(run)["error"] == "lost contact with node2"
    wait_until(lambda: len(attempts(run)) > 1, 240, "the job to start again")
    assert cluster.wait(job)["JobState"] == "COMPLETED", (run / f"slurm-{job}.out").read_text()
    assert_equal_weights(run, undisturbed)


def test_a_job_that_reaches_its_time_limit_stops_in_its_last_minute_and_resumes(
    cluster, work, recipe, undisturbed
):
    (work / "slower").write_text(
        f"export PYTHONPATH='{write_slow_loss(work / 'slower steps', 1.5)}'\n"
    )
    run = work / "runs/limited"
    job, _ = submit(
        cluster, work, recipe, *ON_CPUS, "--out", run, "--setup", "slower", "--time", "3"
    )
    ended = cluster.wait(job)
    assert ended["JobState"] == "COMPLETED", (run / f"slurm-{job}.out").read_text()
    *limited, last = attempts(run)
    assert {one["error"] for one in limited} == {"stopped by SIGUSR1"}
    assert (
        last["state"] == "finished" and int(ended["Restarts"]) == len(limited) == last["restarts"]
    )
    assert_equal_weights(run, undisturbed)


def test_a_job_that_is_submitted_within_another_inherits_nothing_of_it(cluster, work, recipe):
    run, options = (
        work / "runs/inner",
        ["--device", "cpu", "--gpus-per-node", "1", "--set", "samples=1 passes"],
    )
    inner = shlex.join(map(str, ["superclip", "submit", recipe, *options, "--out", run]))
    outer = [
        "--ntasks=1",
        "--cpus-per-task=1",
        "--mem-per-cpu=100",
        "--output=outer",
        f"--wrap={inner}",
    ]
    job = cluster.call("sbatch", "--parsable", *outer, cwd=work).strip()
    assert cluster.wait(job)["JobState"] == "COMPLETED", (work / "outer").read_text()
    job = json.loads((run / "submitted.json").read_text())["job"]
    assert cluster.wait(job)["JobState"] == "COMPLETED", (run / f"slurm-{job}.out").read_text()
    assert "SLURM_CPUS_PER_TASK" not in json.loads((run / "run.json").read_text())["environment"]


def test_of_two_submissions_at_one_moment_one_is_refused(cluster, work, recipe):
    (slow := work / "slow sbatch").mkdir()
    (slow / "sbatch").write_text('#!/bin/bash\nsleep 8\nPATH=${PATH#*:} exec sbatch "$@"\n')
    (slow / "sbatch").chmod(0o755)
    command = ["superclip", "submit", recipe, *ON_CPUS, "--out", "runs/twice"]
    environment = cluster.environment | {"PATH": f"{slow}:{cluster.environment['PATH']}"}
    options = {
        "cwd": work,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    cluster.call("scontrol", "update", "partition=gpu", "state=DOWN")
    try:
        started = [subprocess.Popen([*map(str, command)], **options) for _ in range(2)]
        printed = [process.communicate()[0] for process in started]
        assert sorted(process.returncode for process in started) == [0, 1], printed
        assert re.search(
            r"^error: runs/twice belongs to another run: process ",
            "".join(printed),
            flags=re.MULTILINE,
        )
        (job,) = cluster.call("squeue", "--noheader", "--format=%A").split()
        cluster.call("scancel", job)
    finally:
        cluster.call("scontrol", "update", "partition=gpu", "state=UP")


def test_a_study_tunes_trains_and_reports_and_goes_on_where_a_part_of_it_is_done(
    cluster, work, recipe
):
    arms = {"CLIP": {"method": "clip"}, "SuperCLIP": {"lr": 1e-3}}
    set_ = {"samples": 192, "global_batch_size": 16, "flags.val-num-samples": 32}
    values = {
        "question": "which?",
        "primary": "image_to_text_R@1",
        "recipe": str(recipe),
        "seeds": 1,
        "measures": "validation",
        "arms": arms,
        "choose": {"lr": [1e-3, 1e-4], "seeds": 1},
    }
    YAML().dump(values, work / "which.yaml")
    sets = [part for field, value in set_.items() for part in ("--set", f"{field}={value}")]
    one_cpu = ["--slurm", "--device", "cpu", "--cpus-per-node", "1", "--sbatch", "mem=1000"]
    study = [
        "superclip",
        "study",
        "which.yaml",
        "--out",
        "the study",
        "--val-data",
        write_shards(work / "val", 2),
        *sets,
        *one_cpu,
    ]
    # jobs wait, so that none has ended yet
    cluster.call("scontrol", "update", "partition=gpu", "state=DOWN")
    (trials,) = re.findall(
        r"^job (\d+) trains 2 trials", cluster.call(*study, cwd=work), flags=re.MULTILINE
    )
    assert "nothing was submitted" in cluster.call(*study, cwd=work)
    table = cluster.call("superclip", "status", "the study", cwd=work)
    assert (
        len(re.findall(rf"^\| the study/runs/.* {trials}_[01] PENDING", table, flags=re.MULTILINE))
        == 2
    )
    cluster.call("scontrol", "update", "partition=gpu", "state=UP")
    assert [cluster.wait(f"{trials}_{task}", 600)["JobState"] for task in (0, 1)] == [
        "COMPLETED"
    ] * 2
    printed = cluster.call(*study, cwd=work)
    (report,) = re.findall(r"^job (\d+) measures", printed, flags=re.MULTILINE)
    assert "trains 2 runs" in printed
    assert cluster.wait(report, 600)["JobState"] == "COMPLETED", (
        work / f"the study/slurm-{report}.out"
    ).read_text()
    rows = list(csv.DictReader((work / "the study/study.csv").read_text().splitlines()))
    assert [row["arm"] for row in rows] == ["CLIP", "SuperCLIP"]
    chosen = json.loads((work / "the study/chosen.json").read_text())
    (clip,) = (work / "the study/runs").glob("clip*_seed0")
    assert read_recipe(f"{clip}/recipe.yaml").lr == float(chosen["CLIP"]["None"])

    (work / "the study/study.csv").unlink()
    printed = cluster.call(*study, cwd=work)
    (report,) = re.findall(r"^job (\d+) measures", printed, flags=re.MULTILINE)
    assert " trains " not in printed
    assert cluster.wait(report)["JobState"] == "COMPLETED"
    assert list(csv.DictReader((work / "the study/study.csv").read_text().splitlines())) == rows


def test_the_plain_script_starts_a_process_for_each_gpu(cluster, work):
    """2 nodes × 4 GPUs: 16,384 = 8 × 2,048; with at most 512 a GPU four times as many are
    accumulated."""
    name, shards = "datacomp1b/superclip_vit-b-16_512m_bs16k", "/data/{00000..41455}.tar"
    script = shutil.copytree(SLURM, work / "my scripts") / "train.sbatch"
    options = ["--gpu-batch-max", "512", "--dry-run"]
    job = cluster.call(
        "sbatch",
        "--parsable",
        "--nodes=2",
        "--gpus-per-node=4",
        script,
        name,
        shards,
        *options,
        cwd=work,
    )
    assert cluster.wait(job.strip())["JobState"] == "COMPLETED"
    summary, steps, command = (work / f"slurm-{job.strip()}.out").read_text().splitlines()
    assert (
        summary == "2 × 4 processes: 512 samples each × 8 × 4 accumulated = 16384 samples per step"
    )
    assert steps.startswith("31250 steps")
    assert "--batch-size 512 --accum-freq 4 " in command
    assert f"--train-data '{shards}'" in command


def test_the_evaluation_script_measures_the_last_checkpoint(cluster, work, undisturbed):
    write_evaluation_data(work / "scenes", 20, num_probe_scenes=10)
    options = [
        "--data",
        "scenes",
        "--datasets",
        "demo_objects",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    script = [
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        SLURM / "evaluate.sbatch",
        "runs/undisturbed",
        *options,
    ]
    job = cluster.call("sbatch", "--parsable", *script, cwd=work).strip()
    assert cluster.wait(job)["JobState"] == "COMPLETED", (work / f"evaluate-{job}.out").read_text()
    (result,) = map(
        json.loads, (path.read_text() for path in (undisturbed / "evaluation").glob("*.json"))
    )
    assert result["checkpoint"].endswith(f"epoch_{2 * SLICES}.pt")
    assert 0 <= result["metrics"]["acc1"] <= 1
