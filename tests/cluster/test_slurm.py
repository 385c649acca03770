"""Training on a real SLURM cluster of two nodes, and what it survives
there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import read_json, read_rows, write_program
from support.data import write_shards
from support.plugins import write_disturbed_loss, write_failing_plugin, write_slow_loss
from support.slurm_cluster import wait_until
from support.tiny_run import SLICES, assert_equal_weights, outcome, state, write_recipe
from support.training_runs import fork, run_superclip

from openclip_superclip.__main__ import main
from openclip_superclip.data.shard_order import slice_of
from openclip_superclip.lab.demo.data import write_evaluation_data
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.runs.folder import RunFolder

pytestmark = pytest.mark.slurm

SLURM = Path(__file__).parents[2] / "slurm"
ON_CPUS = "--nodes 2 --gpus-per-node 1 --device cpu"
STUDY = """
question: which?
primary: image_to_text_R@1
recipe: '{recipe}'
seeds: 1
measures: validation
arms:
  CLIP:
    method: clip
  SuperCLIP:
    lr: 0.001
choose:
  lr: [0.001, 0.0001]
  seeds: 1
"""
ON_ONE_CPU = "--nodes 1 --gpus-per-node 1 --device cpu --set 'samples=1 passes'"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where the jobs are submitted from."""
    return tmp_path_factory.mktemp("at 50% of slurm")


@pytest.fixture(scope="module")
def recipe(work):
    return write_recipe(work, batch=4)  # many steps: time to disturb a run in the midst of them


def write_setup(file, plugin):
    """Writes a --setup with which a job has a plugin."""
    file.write_text(f"export PYTHONPATH='{plugin}'\n")


@pytest.fixture(scope="module")
def slow_steps(work):
    """A --setup: each slice takes four seconds, so that all is noticed
    within the one in which it happens."""
    write_setup(work / "slow steps", write_slow_loss(work / "slow", 0.25))
    return "--setup 'slow steps'"


def submit(cluster, recipe, run, flags, cwd=None):
    """Returns the number of the job that `superclip submit` starts.

    Nothing of this environment is handed on to the job, as on many
    clusters.
    """
    work = recipe.parent
    output = work / "submitted"
    output.unlink(missing_ok=True)
    command = ["submit", recipe, "--out", run, *shlex.split(flags)]
    variables = cluster.environment | {"SBATCH_EXPORT": "NONE"}
    code = run_superclip(command, output, cwd or work, **variables)
    printed = output.read_text()
    assert code == 0, printed
    return re.search(r"^job (\d+) is in the queue", printed, flags=re.MULTILINE)[1]


def attempts(run):
    """The starts of a run."""
    return RunFolder(run).attempts


def wait_for_slice(cluster, run, start, number):
    """Returns when the `start`-th start of a run trains its `number`-th
    slice."""

    def trains():
        if len(attempts(run)) <= start:
            return False
        log = run / attempts(run)[start]["ranks"] / "rank_0.log"
        return log.exists() and log.read_text().count("Start epoch ") >= number

    cluster.wait_until(trains, run, f"slice {number} of start {start}")


@pytest.fixture(scope="module")
def undisturbed(cluster, work, recipe):
    """A run on both nodes that nothing has disturbed."""
    run = work / "runs/undisturbed"
    job = submit(cluster, recipe, run, ON_CPUS)
    cluster.complete(job, run / f"slurm-{job}.out")
    return run


def test_a_submitted_job_trains_to_the_end_on_all_nodes(undisturbed):
    assert state(undisturbed)["state"] == "finished"
    record = read_json(undisturbed / "run.json")
    assert (record["run"]["nodes"], record["run"]["gpus_per_node"]) == (2, 1)
    assert record["data_check"]["found"] == 12
    assert record["environment"]["SLURM_JOB_ID"] == state(undisturbed)["job"]
    (start,) = record["attempts"]
    assert start["hosts"] == ["node1", "node2"]
    logs = sorted(path.name for path in (undisturbed / start["ranks"]).glob("*.log"))
    assert logs == ["rank_0.log", "rank_1.log"]
    assert "world_size: 2" in (undisturbed / "out.log").read_text()


def test_a_rehearsal_stops_and_resumes_on_all_nodes(cluster, work, recipe, slow_steps):
    folder = work / "runs/rehearsal"
    job = submit(cluster, recipe, folder, f"{ON_CPUS} --rehearse {slow_steps}")
    cluster.complete(job, folder / f"slurm-{job}.out")
    summary = read_json(folder / "rehearsal.json")
    assert (summary["nodes"], summary["world_size"]) == (2, 2)
    assert (summary["resumed"]["different"], summary["resumed"]["equal_weights"]) == (0, True)


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
    for command, when in ("scontrol", first), ("srun", "$SLURM_RESTART_COUNT = [14]"):
        failed = f'"{shim}/failed {command} $1 $SLURM_RESTART_COUNT"'
        fails = f'[[ {when} ]] && mkdir {failed} 2>/dev/null && exit "${{SLURM_EXIT_ERROR:-1}}"'
        write_program(shim / command, f'{fails}\nPATH=${{PATH#*:}} exec {command} "$@"')
    (work / "shim").write_text(f"PATH='{shim}':$PATH\n{(work / 'slow steps').read_text()}")
    command = [cluster.folder / "bin/on", "node1", sys.executable, "-c", listens]
    # the port of the first start is taken
    with subprocess.Popen(command, stdout=subprocess.PIPE) as listening:
        assert listening.stdout.readline()
        job = submit(cluster, recipe, run, f"{ON_CPUS} --setup shim --stage /dev/shm")
        wait_for_slice(cluster, run, 0, 2)
        listening.kill()
    seen["copies"] = [
        len(cluster.call(f"on {node} find /dev/shm -name *.tar").splitlines())
        for node in ("node1", "node2")
    ]
    # as a minute before the time is up
    cluster.call(f"scancel --signal=USR1 --batch {job}")

    wait_for_slice(cluster, run, 1, 1)
    urgent = "--partition=urgent --nodes=2 --exclusive --output=/dev/null --wrap=true"
    cluster.call(f"sbatch {urgent}", cwd=work)

    wait_for_slice(cluster, run, 2, 2)
    kill_rank = "on node2 pkill -KILL -f openclip_superclip.runs.rank_main"
    cluster.call(kill_rank)

    # A node whose connections break, and of which nothing more is heard:
    # its ranks die, and `superclip run` is silent.
    wait_for_slice(cluster, run, 3, 1)
    cluster.call("on node2 pkill -STOP -f 'openclip_superclip run'")
    cluster.call(kill_rank)
    cluster.wait_until(lambda: state(run)["state"] == "preempted", run, "the silence")
    cluster.call("on node2 pkill -KILL -f 'openclip_superclip run'")

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
    ports = [read_json(start)["master_port"] for start in starts]
    assert ports[:5] == [port + 1, port + 202, port + 202, port + 303, port + 303]


def test_each_node_copies_the_shards_of_its_own_ranks_and_leaves_none(troubled, cluster):
    # its own ranks' of two slices
    assert all(0 < copies <= 2 * 12 / SLICES / 2 for copies in troubled["copies"])
    assert "copying failed" not in troubled["output"]
    assert not any(cluster.call(f"on {node} ls /dev/shm") for node in ("node1", "node2"))


def test_a_rank_that_fails_twice_on_its_node_starts_on_another(cluster, work, recipe):
    killed = "value if 'SLURM_RESTART_COUNT' in os.environ else os.kill(os.getpid(), 9)"
    write_setup(work / "deadly", write_disturbed_loss(work / "killing", 1, killed))
    run, flags = work / "runs/killed rank", f"{ON_ONE_CPU} --setup '{work}/deadly'"
    job = submit(cluster, recipe, run, flags, cwd=Path("/proc"))  # where nothing can be written
    output = run / f"slurm-{job}.out"
    assert cluster.complete(job, output)["Restarts"] == "1"
    (first,), (again,), (other,) = (one["hosts"] for one in attempts(run))
    assert first == again != other
    assert [one["state"] for one in attempts(run)] == ["preempted", "preempted", "finished"]
    error = f"rank 0 on {first}: it was ended from outside: Signal 9 (SIGKILL)"
    assert attempts(run)[0]["error"] == error
    assert f"from the last checkpoint, without {first}" in output.read_text()


def test_a_rank_that_fails_ends_the_job_with_its_traceback_first(cluster, work, recipe):
    write_setup(work / "setup", write_failing_plugin(work / "plugin"))
    run = work / "runs/failing %j"  # which sbatch would read in its own way
    job = submit(cluster, recipe, run, f"{ON_CPUS} --setup setup")
    assert cluster.wait(job)["JobState"] == "FAILED"
    cracked = "RuntimeError: the lens of rank 1 is cracked"
    assert outcome(run) == ("failed", f"rank 1 on node2: {cracked}")
    first = (run / f"slurm-{job}.out").read_text().partition("Traceback")[2]
    assert re.search(r"^\w+Error.*", first, flags=re.MULTILINE)[0] == cracked

    # A start that is refused on the first node does not count as an
    # interruption of the others.
    script = f"sbatch --parsable --nodes=2 --gpus-per-node=0 --output=refused {SLURM}/train.sbatch"
    refused = [recipe, "--out", run, "--device", "cpu", "--set", "lr=1"]
    job = cluster.call(script, *refused, cwd=work).strip()
    ended, printed = cluster.wait(job), (work / "refused").read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0"), printed
    another = f"error: {run} contains a run of another recipe: lr is 0.001 there and 1.0 here"
    assert another in printed
    assert "the same command resumes" not in printed and "Traceback" not in printed
    assert state(run)["error"] == f"rank 1 on node2: {cracked}"


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
        assert error.startswith(f"{unreadable}; superclip plan --check ")
        assert f"error: {unreadable}" in (run / f"slurm-{job}.out").read_text()
        assert (status, [*run.glob("checkpoints/*.pt")]) == ("failed", [])
        cluster.call("on node2 cp", first_of_rank_1, "/dev/shm/shard.tar")
        job = submit(cluster, recipe, run, flags)
        cluster.complete(job, run / f"slurm-{job}.out")
    finally:
        for node in ("node1", "node2"):
            cluster.call(f"on {node} rm -f /dev/shm/shard.tar")
    assert_equal_weights(run, undisturbed)


def test_a_launcher_that_is_killed_while_slurm_is_away_starts_again_once_it_is_back(
    cluster, work, recipe, slow_steps, undisturbed
):
    run = work / "runs/away"
    job = submit(cluster, recipe, run, f"{ON_CPUS} {slow_steps}")
    wait_for_slice(cluster, run, 0, 2)
    cluster.call("on login pkill slurmctld")
    try:
        cluster.call("on node2 pkill -KILL -f 'openclip_superclip run'")
        wait_until(lambda: state(run)["state"] == "preempted", 120, "the first node to stop")
    finally:
        cluster.call("on login setsid slurmctld")
    assert state(run)["error"] == "lost contact with node2"
    wait_until(lambda: len(attempts(run)) > 1, 240, "the job to start again")
    cluster.complete(job, run / f"slurm-{job}.out")
    assert_equal_weights(run, undisturbed)


def test_a_job_that_reaches_its_time_limit_stops_in_its_last_minute_and_resumes(
    cluster, work, recipe, undisturbed
):
    write_setup(work / "slower", write_slow_loss(work / "slower steps", 1.5))
    run = work / "runs/limited"
    job = submit(cluster, recipe, run, f"{ON_CPUS} --setup slower --time 3")
    ended = cluster.complete(job, run / f"slurm-{job}.out")
    *limited, last = attempts(run)
    assert {one["error"] for one in limited} == {"stopped by SIGUSR1"}
    assert last["state"] == "finished"
    assert int(ended["Restarts"]) == len(limited) == last["restarts"]
    assert_equal_weights(run, undisturbed)


def test_a_job_that_is_submitted_within_another_inherits_nothing_of_it(cluster, work, recipe):
    run = work / "runs/inner"
    inner = f"superclip submit '{recipe}' {ON_ONE_CPU} --out '{run}'"
    outer = "sbatch --parsable --ntasks=1 --cpus-per-task=1 --mem-per-cpu=100 --output=outer"
    job = cluster.call(outer, f"--wrap={inner}", cwd=work).strip()
    cluster.complete(job, work / "outer")
    job = read_json(run / "submitted.json")["job"]
    cluster.complete(job, run / f"slurm-{job}.out")
    assert "SLURM_CPUS_PER_TASK" not in read_json(run / "run.json")["environment"]


def test_of_two_submissions_at_one_moment_one_is_refused(cluster, work, recipe):
    slow = work / "slow sbatch"
    waits = 'until [ -e "one is refused" ]; do sleep 0.1; done\nPATH=${PATH#*:} exec sbatch "$@"'
    write_program(slow / "sbatch", waits)
    command = ["submit", str(recipe), "--out", "runs/twice", *ON_CPUS.split()]
    environment = cluster.environment | {"PATH": f"{slow}:{cluster.environment['PATH']}"}
    output = work / "submitted twice"
    cluster.call("scontrol update partition=gpu state=DOWN")
    try:
        started = [fork(lambda: main(command), output, work, environment) for _ in range(2)]
        wait_until(lambda: any(process.exitcode for process in started), 300, "a refusal")
        (work / "one is refused").touch()
        for process in started:
            process.join(300)
        printed = output.read_text()
        assert sorted(process.exitcode for process in started) == [0, 1], printed
        refused = r"^error: runs/twice belongs to another run: process "
        assert re.search(refused, printed, flags=re.MULTILINE)
        (job,) = cluster.call("squeue --noheader --format=%A").split()
        cluster.call(f"scancel {job}")
    finally:
        cluster.call("scontrol update partition=gpu state=UP")


def test_a_study_tunes_trains_and_reports_and_goes_on_where_a_part_of_it_is_done(
    cluster, work, recipe
):
    (work / "which.yaml").write_text(STUDY.format(recipe=recipe))
    validation = write_shards(work / "val", 2)
    out = work / "the study"
    study = (
        f"superclip study which.yaml --out 'the study' --val-data '{validation}' "
        "--set samples=192 --set global_batch_size=16 --set flags.val-num-samples=32 "
        "--slurm --device cpu --cpus-per-node 1 --sbatch mem=1000"
    )

    def found(pattern, printed):
        return re.findall(pattern, printed, flags=re.MULTILINE)

    # jobs wait, so that none has ended yet
    cluster.call("scontrol update partition=gpu state=DOWN")
    (trials,) = found(r"^job (\d+) trains 2 trials", cluster.call(study, cwd=work))
    assert "nothing was submitted" in cluster.call(study, cwd=work)
    table = cluster.call("superclip status 'the study'", cwd=work)
    assert len(found(rf"^\| the study/runs/.* {trials}_[01] PENDING", table)) == 2
    cluster.call("scontrol update partition=gpu state=UP")
    wait_until(lambda: len([*out.glob("runs/*/state.json")]) == 2, 300, "both trials")
    # its SLURM_JOB_ID is the number of the array
    cluster.call(f"scancel --signal=USR1 --batch {trials}_1")
    for task in (0, 1):
        ended = cluster.wait(f"{trials}_{task}")
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", str(task))
    printed = cluster.call(study, cwd=work)
    (report,) = found(r"^job (\d+) measures", printed)
    assert "trains 2 runs" in printed
    cluster.complete(report, out / f"slurm-{report}.out")
    rows = read_rows(out / "study.csv")
    assert [row["arm"] for row in rows] == ["CLIP", "SuperCLIP"]
    chosen = read_json(out / "chosen.json")
    (clip,) = out.glob("runs/clip*_seed0")
    assert read_recipe(f"{clip}/recipe.yaml").lr == float(chosen["CLIP"]["None"])

    (out / "study.csv").unlink()
    printed = cluster.call(study, cwd=work)
    (report,) = found(r"^job (\d+) measures", printed)
    assert " trains " not in printed
    cluster.complete(report, out / f"slurm-{report}.out")
    assert read_rows(out / "study.csv") == rows


def test_the_plain_script_starts_a_process_for_each_gpu(cluster, work):
    """2 nodes × 4 GPUs: 16,384 = 8 × 2,048; with at most 512 a GPU four
    times as many are accumulated."""
    name, shards = "datacomp1b/superclip_vit-b-16_512m_bs16k", "/data/{00000..41455}.tar"
    script = shutil.copytree(SLURM, work / "my scripts") / "train.sbatch"
    sbatch = f"sbatch --parsable --nodes=2 --gpus-per-node=4 '{script}' {name} {shards}"
    job = cluster.call(f"{sbatch} --gpu-batch-max 512 --dry-run", cwd=work).strip()
    output = work / f"slurm-{job}.out"
    cluster.complete(job, output)
    summary, steps, command = output.read_text().splitlines()
    processes = "2 × 4 processes: 512 samples each × 8 × 4 accumulated = 16384 samples per step"
    assert summary == processes
    assert steps.startswith("31250 steps")
    assert "--batch-size 512 --accum-freq 4 " in command
    assert f"--train-data '{shards}'" in command


def test_the_evaluation_script_measures_the_last_checkpoint(cluster, work, undisturbed):
    write_evaluation_data(work / "scenes", 20, num_probe_scenes=10)
    sbatch = f"sbatch --parsable --gpus-per-node=0 --cpus-per-task=1 {SLURM}/evaluate.sbatch"
    options = "--data scenes --datasets demo_objects --device cpu --workers 0"
    job = cluster.call(f"{sbatch} runs/undisturbed {options}", cwd=work).strip()
    cluster.complete(job, work / f"evaluate-{job}.out")
    (result,) = map(read_json, (undisturbed / "evaluation").glob("*.json"))
    assert result["checkpoint"].endswith(f"epoch_{2 * SLICES}.pt")
    assert 0 <= result["metrics"]["acc1"] <= 1
