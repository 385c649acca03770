"""Jobs on a real SLURM cluster of two nodes."""

import re
import shutil
from pathlib import Path

import pytest
from support import ROOT, read_json
from support.data import write_scenes, write_shards
from support.plugins import write_disturbed_loss, write_failing_plugin
from support.slurm_cluster import ON_CPUS, attempts, submit, wait_until, write_setup
from support.tiny_run import SLICES, outcome, state

pytestmark = pytest.mark.slurm

SLURM = ROOT / "slurm"
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
"""
ON_ONE_CPU = "--nodes 1 --gpus-per-node 1 --device cpu --set 'samples=1 passes'"


def test_a_submitted_job_trains_to_the_end_on_all_nodes(undisturbed):
    assert state(undisturbed)["state"] == "finished"
    record = read_json(undisturbed / "run.json")
    assert (record["run"]["nodes"], record["run"]["gpus_per_node"]) == (2, 1)
    assert record["data_check"]["num_found"] == 12
    (start,) = record["attempts"]
    assert start["hosts"] == ["node1", "node2"]
    logs = sorted(path.name for path in (undisturbed / start["ranks"]).glob("*.log"))
    assert logs == ["rank_0.log", "rank_1.log"]


def test_a_rehearsal_trains_on_all_nodes(cluster, work, recipe, slow_steps):
    folder = work / "runs/rehearsal"
    job = submit(cluster, recipe, folder, f"{ON_CPUS} --rehearse {slow_steps}")
    cluster.complete(job, folder / f"slurm-{job}.out")
    summary = read_json(folder / "rehearsal.json")
    assert summary["samples_per_second"] > 0
    (attempt,) = attempts(folder / "whole")
    assert attempt["hosts"] == ["node1", "node2"]


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
    error = f"rank 0 on {first}: ended by signal 9 (Killed)"
    assert attempts(run)[0]["error"] == error
    assert f"from the last checkpoint, without {first}" in output.read_text()


def test_a_rank_that_fails_ends_the_job_with_its_traceback_first(
    cluster, work, recipe, undisturbed
):
    write_setup(work / "setup", write_failing_plugin(work / "plugin"))
    run = work / "runs/failing %j"  # which sbatch would read in its own way
    job = submit(cluster, recipe, run, f"{ON_CPUS} --setup setup")
    assert cluster.wait(job)["JobState"] == "FAILED"
    cracked = "RuntimeError: the lens of rank 1 is cracked"
    stops = "; 3 starts in a row ended before a slice was trained"
    assert outcome(run) == ("failed", f"rank 1 on node2: {cracked}{stops}")
    first = (run / f"slurm-{job}.out").read_text().partition("Traceback")[2]
    assert re.search(r"^\w+Error.*", first, flags=re.MULTILINE)[0] == cracked

    # A start that is refused on the first node does not count as an
    # interruption of the others.
    script = f"sbatch --parsable --nodes=2 --gpus-per-node=0 --output=refused {SLURM}/train.sbatch"
    refused = [recipe, "--out", undisturbed, "--device", "cpu", "--set", "lr=1"]
    job = cluster.call(script, *refused, cwd=work).strip()
    ended, printed = cluster.wait(job), (work / "refused").read_text()
    assert ended["JobState"] == "FAILED", printed
    assert f"error: {undisturbed} contains a run of another recipe: " in printed
    assert ", lr is 0.001 there and 1.0 here; give --out another folder" in printed
    assert "the same command resumes" not in printed and "Traceback" not in printed
    assert state(undisturbed)["state"] == "finished"


def test_a_job_that_is_submitted_within_another_inherits_nothing_of_it(cluster, work, recipe):
    run = work / "runs/inner"
    (work / "setup.sh").write_text(f"env > '{work}/environment'\n")
    inner = f"superclip submit '{recipe}' {ON_ONE_CPU} --out '{run}' --setup setup.sh"
    outer = "sbatch --parsable --ntasks=1 --cpus-per-task=1 --mem-per-cpu=100 --output=outer"
    job = cluster.call(outer, f"--wrap={inner}", cwd=work).strip()
    cluster.complete(job, work / "outer")
    job = read_json(run / "submitted.json")["job"]
    cluster.complete(job, run / f"slurm-{job}.out")
    environment = (work / "environment").read_text()
    assert f"SLURM_JOB_ID={job}" in environment
    assert "SLURM_CPUS_PER_TASK" not in environment


def test_a_study_is_submitted_once_and_reports_when_its_runs_are_finished(cluster, work, recipe):
    (work / "which.yaml").write_text(STUDY.format(recipe=recipe))
    validation = write_shards(work / "val", 2)
    out = work / "the study"
    study = (
        f"superclip study which.yaml --out 'the study' --val-data '{validation}' "
        "--set samples=192 --set global_batch_size=16 --set flags.val-num-samples=32 --device cpu"
    )
    on_slurm = f"{study} --slurm --cpus-per-node 1 --sbatch mem=1000"
    # jobs wait, so that none has ended yet
    cluster.call("scontrol update partition=gpu state=DOWN")
    (runs,) = re.findall(r"^job (\d+) trains 2 runs", cluster.call(on_slurm, cwd=work))
    assert "nothing to submit: what was left of the study is in the queue" in cluster.call(
        on_slurm, cwd=work
    )
    table = cluster.call("superclip status 'the study'", cwd=work)
    queued = re.findall(rf"^\| the study/runs/.* {runs}_[01] PENDING", table, flags=re.MULTILINE)
    assert len(queued) == 2
    cluster.call("scontrol update partition=gpu state=UP")
    wait_until(lambda: len([*out.glob("runs/*/state.json")]) == 2, 300, "both runs")
    # its SLURM_JOB_ID is the number of the array
    cluster.call(f"scancel --signal=USR1 --batch {runs}_1")
    for task in (0, 1):
        ended = cluster.wait(f"{runs}_{task}")
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", str(task))
    assert "what was left of the study is finished" in cluster.call(on_slurm, cwd=work)
    cluster.call(f"{study} --only report", cwd=work)
    arms = [run["arm"] for run in read_json(out / "study.json")["runs"]]
    assert arms == ["CLIP", "SuperCLIP"]


def test_the_plain_script_starts_a_process_for_each_gpu(cluster, work):
    """2 nodes × 4 GPUs: 16,384 = 8 × 2,048; with at most 512 a GPU four
    times as many are accumulated. The job asks for two tasks per node,
    which srun does not inherit."""
    name, shards = "datacomp1b/superclip_vit-b-16_512m_bs16k", "/data/{00000..41455}.tar"
    script = shutil.copytree(SLURM, work / "my scripts") / "train.sbatch"
    sbatch = "sbatch --parsable --nodes=2 --ntasks-per-node=2 --gpus-per-node=4"
    command = f"{sbatch} '{script}' {name} {shards}"
    job = cluster.call(f"{command} --gpu-batch-max 512 --dry-run", cwd=work).strip()
    output = work / f"slurm-{job}.out"
    cluster.complete(job, output)
    plan = " ".join(output.read_text().split())
    assert "batch 16,384 = 512 per GPU × 4 accumulated × 8 (4 per node) steps 31,250:" in plan
    assert "--batch-size 512 --accum-freq 4 " in plan
    assert f"--train-data '{shards}'" in plan


def test_the_evaluation_script_measures_the_last_checkpoint(cluster, work, undisturbed):
    write_scenes(work / "scenes", 20)
    sbatch = f"sbatch --parsable --gpus-per-node=0 --cpus-per-task=1 {SLURM}/evaluate.sbatch"
    options = "--data scenes --datasets objects --device cpu --workers 0".split()
    job = cluster.call(sbatch, undisturbed, *options, cwd=work).strip()
    cluster.complete(job, work / f"evaluate-{job}.out")
    (result,) = map(read_json, (undisturbed / "evaluation").glob("*.json"))
    assert result["checkpoint"].endswith(f"epoch_{2 * SLICES}.pt")
    assert 0 <= result["metrics"]["acc1"] <= 1
