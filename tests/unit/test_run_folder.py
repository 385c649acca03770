"""What a run's folder holds and refuses, and how its nodes know one
another, without training."""

import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import torch
from support import cases, input_error, parametrize, read_json, table, write_json, write_program
from support.tiny_run import write_recipe

import openclip_superclip as superclip
from openclip_superclip.checkpoints import trainer_files
from openclip_superclip.checkpoints.resume import check_kind, read_resumed, resumed_checkpoint
from openclip_superclip.checkpoints.trainer_files import quarantine
from openclip_superclip.checkpoints.weights import checkpoint_of
from openclip_superclip.commands.recipe_options import on_machines
from openclip_superclip.errors import InputError
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.plans.run import Run, Settings
from openclip_superclip.runs.child_processes import Start
from openclip_superclip.runs.folder import (
    PREEMPTED,
    RUNNING,
    RunFolder,
    current_state,
)
from openclip_superclip.runs.lock import lock
from openclip_superclip.runs.progress import Progress
from openclip_superclip.runs.recovery import starts_without_slice
from openclip_superclip.runs.slurm import Placement, find_placement
from openclip_superclip.runs.unreadable import UnreadableData

IN_A_STEP = dict(
    variable.split("=")
    for variable in """
    SLURM_JOB_ID=17 SLURM_STEP_ID=0 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NUM_TASKS=2 SLURM_NODEID=1
    SLURM_GPUS_ON_NODE=4 MASTER_ADDR=node1 MASTER_PORT=20017
    """.split()
)


@cases("added, name", table("runs: names of starts"))
def test_every_start_of_a_job_has_a_name_that_its_nodes_agree_on(added, name):
    placement = find_placement(IN_A_STEP | added)
    assert placement.name_of_start(5) == name
    assert (placement.num_nodes, placement.node) == (2, 1)
    assert (placement.gpus, placement.master_port) == (4, 20017)


@cases("environment, said", table("runs: refused starts of a job"))
def test_a_start_that_would_not_use_the_job_is_refused(environment, said):
    with input_error(said):
        find_placement(environment)


def ended_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def write_owner(path, **owner):
    write_json(
        path, {"job": None, "restarts": 0, "host": "elsewhere", "pid": 1, "since": "noon"} | owner
    )


@parametrize(
    "owner, placement, queue, refusal",
    [
        ({"job": "17"}, {"job": "17", "restarts": 1}, "", ""),  # it was requeued
        ({"job": "17", "restarts": 1}, {"job": "17", "restarts": 1}, "", "job 17, process 1 on"),
        ({"job": "17"}, {"job": "18"}, "17", "another run: job 17, process 1 on elsewhere"),
        ({"job": "17"}, {"job": "18"}, "16", ""),  # the job has ended
        ({"job": "17"}, {"job": "18"}, None, "if it has ended, remove"),  # no squeue
        ({"host": socket.gethostname(), "pid": os.getpid()}, {}, "", ""),  # of a container
        ({"host": socket.gethostname(), "pid": os.getppid()}, {}, "", f"process {os.getppid()} on"),
    ],
)
def test_only_a_lock_without_a_running_owner_is_taken_over(
    owner, placement, queue, refusal, tmp_path, monkeypatch
):
    path = tmp_path / "lock"
    if queue is not None:
        write_program(
            tmp_path / "squeue",
            f'[ "${{@: -1}}" = "{queue}" ] && echo RUNNING && exit\n'
            "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        )
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    write_owner(path, **owner)
    before = path.read_text()
    if refusal:
        with input_error(refusal), lock(path, Placement(**placement)):
            pass
        assert path.read_text() == before
    else:
        with lock(path, Placement(**placement)):
            assert read_json(path)["pid"] == os.getpid()
        assert not path.exists()


def hold(path, barrier, held):
    """Takes the lock together with other processes, and keeps it until all have tried."""
    barrier.wait()
    with contextlib.suppress(InputError), lock(path, Placement()):
        held.put(os.getpid())
        barrier.wait()
        return
    barrier.wait()


@parametrize("left", ["", "dead owner", "damaged"])
def test_of_processes_that_start_at_one_moment_one_gets_the_lock(left, tmp_path):
    if left == "dead owner":
        write_owner(tmp_path / "lock", host=socket.gethostname(), pid=ended_process())
    elif left:
        (tmp_path / "lock").touch()
    context = multiprocessing.get_context("fork")
    barrier, held = context.Barrier(3), context.Queue()
    arguments = (tmp_path / "lock", barrier, held)
    processes = [context.Process(target=hold, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    winner = held.get(timeout=60)
    for process in processes:
        process.join()
    assert held.empty() and winner in [process.pid for process in processes]
    assert list(tmp_path.iterdir()) == []


def write_checkpoints(folder, *epochs):
    folder.mkdir()
    for epoch in epochs:
        weight = torch.frombuffer(bytearray(b"some weights" * 300), dtype=torch.uint8)
        torch.save({"epoch": epoch, "state_dict": {"weight": weight}}, folder / f"epoch_{epoch}.pt")
    return folder


@parametrize(
    "other", ["checkpoints/mean.pt", "checkpoints/old/epoch_11.pt", "checkpoints_old/epoch_11.pt"]
)
def test_the_newest_weights_of_a_run_are_its_own_and_complete(other, tmp_path):
    (run := tmp_path / "run[1]").mkdir()
    folder = write_checkpoints(run / "checkpoints", 9, 10, 12)
    os.truncate(folder / "epoch_12.pt", 1000)  # it is being saved
    (run / other).parent.mkdir(exist_ok=True)
    shutil.copy(folder / "epoch_9.pt", run / other)
    shutil.copy(folder / "epoch_9.pt", latest := folder / "epoch_latest.pt")
    assert checkpoint_of(run) == folder / "epoch_10.pt"
    latest.unlink()
    assert checkpoint_of(run) == folder / "epoch_10.pt"
    # an input/output error, which must not hide it
    (folder / "epoch_11.pt").symlink_to("/proc/self/mem")
    assert checkpoint_of(run) == folder / "epoch_11.pt"
    with input_error(r"^--resume latest: .*/run\[1\] is a pattern"):
        resumed_checkpoint("latest", str(run), save_most_recent=False)


@parametrize("other", ["checkpoints/mean.pt", "checkpoints_before/epoch_9.pt"])
def test_only_without_our_flags_may_latest_be_a_file_that_the_run_has_not_saved(other, tmp_path):
    folder = write_checkpoints(tmp_path / "checkpoints", 3)
    (tmp_path / other).parent.mkdir(exist_ok=True)
    shutil.copy(folder / "epoch_3.pt", tmp_path / other)
    with input_error(f"^--resume latest would use .*/{other}, which the run has not saved"):
        resumed_checkpoint("latest", str(tmp_path), save_most_recent=False)
    assert resumed_checkpoint(
        "latest", str(tmp_path), save_most_recent=False, is_ours=False
    ).file == str(tmp_path / other)
    (tmp_path / other).rename(folder / "epoch_latest.pt")
    (folder / "tmp.pt").write_bytes(b"killed while it was saved")
    for save_most_recent in (False, True):
        assert resumed_checkpoint(
            "latest", str(tmp_path), save_most_recent=save_most_recent
        ).file == str(folder / "epoch_latest.pt")


@parametrize("bit", [1, 128])
@parametrize("place", [b"some weights", b"PK\x01\x02", b"epoch_10/data.pkl"])
def test_a_checkpoint_with_one_wrong_byte_is_set_aside(tmp_path, place, bit):
    folder = write_checkpoints(tmp_path / "checkpoints", 8, 9, 10)
    content = bytearray((folder / "epoch_10.pt").read_bytes())
    content[content.rindex(place)] ^= bit
    (folder / "epoch_10.pt").write_bytes(content)
    assert trainer_files.newest(folder) >= 9
    assert quarantine(folder, trainer_files.is_whole, "damaged") == [folder / "epoch_10.pt.damaged"]
    assert list(trainer_files.checkpoints(folder)) == [8, 9]


def test_a_checkpoint_that_cannot_be_read_is_neither_renamed_nor_removed(tmp_path):
    folder = write_checkpoints(tmp_path / "checkpoints", 1, 2)
    answers = iter([False, True])
    assert quarantine(folder, lambda _: next(answers), None) == []  # a transient error
    (folder / "epoch_2.pt").unlink()
    (folder / "epoch_2.pt").symlink_to(folder / "epoch_2.pt")  # cannot be opened, even by root
    for suffix in ("damaged", None):
        assert quarantine(folder, trainer_files.is_complete, suffix) == []
    with input_error(r"epoch_2\.pt cannot be read: make it readable"):
        resumed_checkpoint("latest", str(tmp_path), save_most_recent=False)


def run_of(folder, **values):
    return make_run(read_recipe(str(write_recipe(folder, **values))), device="cpu")


RUN = make_run(read_recipe("datacomp1b/superclip_vit-b-16_512m_bs16k"), nodes=4, gpus_per_node=8)


def start(folder, job=None, restarts=0):
    """Begins a start of a run in the folder's records."""
    folder.path.mkdir(exist_ok=True)
    folder.start(RUN, Placement(job=job, restarts=restarts), "local-0")


def test_a_run_is_read_as_it_was_written(tmp_path):
    settings = Settings(unreadable_max=0.5)
    recipe = read_recipe("datacomp1b/superclip_vit-b-16_512m_bs16k", {"lr": "2e-3"})
    run = make_run(recipe, 2, 8, "x/{000000..009999}.tar", 256, 3, "cuda", settings)
    RunFolder(tmp_path).write(run)
    found = Run.open(tmp_path)
    assert (found, found.recipe.text) == (run, recipe.text)
    assert found.openclip_arguments() == run.openclip_arguments()
    assert on_machines(found, 2, 8) is found
    assert on_machines(found, 4, 8) == make_run(recipe, 4, 8, found.data, 256, 3, "cuda", settings)
    begun = Start(run, tmp_path, ["--lr", "1"], 1, "node1", 20000, measures=True)
    begun.save()
    assert Start.open(str(begun.file)) == begun
    assert begun.ranks == range(8, 16)
    fields = ({"cards": 8}, {"data": 5}, {"settings": []})
    odd = (json.dumps({"run": run.as_json() | field}) for field in fields)
    for content in ("{", "{}", *odd):
        (tmp_path / "run.json").write_text(content)
        with input_error(r"run.json (cannot be read|is damaged.*) \(.*\): give superclip"):
            Run.open(tmp_path)


def test_a_run_of_an_earlier_version_is_read_and_its_removed_fields_are_named(tmp_path):
    run = run_of(tmp_path)
    values = run.as_json()
    values["settings"] |= {"patience": 2, "stage": None}
    values["recipe"]["values"]["superclip"]["placebo"] = "captions"
    write_json(tmp_path / "run.json", {"run": values})
    found = Run.open(tmp_path)
    assert replace(found, warnings=[]) == run
    assert found.warnings == [
        "the field superclip.placebo was removed: leave it out: it was a control for studies",
        "the field patience was removed: superclip export RUN --best takes the best epoch of a run",
    ]


def test_the_reason_of_a_recipe_may_change_and_its_values_not_once_it_is_submitted_or_trained(
    tmp_path, monkeypatch
):
    folder, path = RunFolder(tmp_path / "run"), str(write_recipe(tmp_path))
    other = read_recipe(path, {"lr": "2e-3"})
    folder.write(make_run(read_recipe(path), device="cpu"))
    folder.note_submission("17")
    monkeypatch.setenv("PATH", str(tmp_path))
    folder.check_recipe(other)  # nothing has been trained, and there is no SLURM
    folder.check_is_free(Placement())
    # it does not answer: the job may be in the queue
    (tmp_path / "squeue").symlink_to("/bin/false")
    with input_error("contains a run of another recipe: lr is"):
        folder.check_recipe(other)
    with input_error(r"job 17 already trains .*; if it has ended, remove .*/run/submitted\.json"):
        folder.check_is_free(Placement())
    (folder.path / "submitted.json").unlink()
    folder.checkpoints.mkdir()
    folder.check_recipe(read_recipe(path, {"lr": "1.0e-3"}))
    with input_error(r"lr is 0\.001 there and 0\.002 here; give --out another folder"):
        folder.check_recipe(other)


@parametrize("content", ['{"state": "runn', "[]"])
def test_a_damaged_record_of_a_run_does_not_end_it(content, tmp_path):
    folder = RunFolder(tmp_path / "run")
    start(folder)
    write_checkpoints(folder.checkpoints, 1, 2)
    for name in ("state.json", "run.json", "submitted.json"):
        (folder.path / name).write_text(content)
    assert (folder.state(), folder.record(), folder.submitted_job()) == ({}, {}, None)
    start(folder, "17")
    assert folder.record()["attempts"][-1]["epoch_before"] == 2
    for name in ("state.json", "run.json"):  # and while it trains
        (folder.path / name).write_text(content)
    assert folder.attempts == []
    folder.beat(step=7)
    folder.check_is_own()
    folder.end(PREEMPTED, "stopped")
    assert (folder.state()["state"], folder.state()["step"]) == (PREEMPTED, 7)
    start(folder, "17")
    assert starts_without_slice(folder.attempts, 2) == 1


def test_unreadable_data_is_counted_once_by_lines_and_too_much_is_an_error(tmp_path):
    run, file = run_of(tmp_path), tmp_path / "a/unreadable_1.jsonl"
    unreadable = UnreadableData(run, tmp_path / "b")  # of another start
    assert unreadable.look() == {"shards": 0, "samples": 0}
    file.parent.mkdir()
    file.write_text(
        '{"sample": "x", "epoch": 0}\n{"sha{"sample": 1}\n\0\n'
        '{"shard": "2.tar", "why": "Stale file handle", "epoch": 0}\n{"sha'
    )
    assert unreadable.look() == unreadable.look() == {"shards": 1, "samples": 1}
    with open(file, "a") as more:
        more.write('rd": "3.tar", "why": "Stale file handle", "epoch": 0}\n')
    assert unreadable.look() == {"shards": 2, "samples": 1}
    with input_error(r"2 of the 4 shards of slice 1 .* 2.tar \(Stale file handle\)"):
        UnreadableData(run, tmp_path / "a").look()


def test_a_run_that_was_killed_is_lost(tmp_path):
    folder = RunFolder(tmp_path / "run")
    start(folder)
    write_owner(folder.path / "lock", host=socket.gethostname(), pid=os.getpid())
    assert current_state(folder.path)["state"] == RUNNING
    write_owner(folder.path / "lock", host=socket.gethostname(), pid=ended_process())
    assert current_state(folder.path)["state"] == "lost"
    write_owner(folder.path / "lock", host="elsewhere")
    assert current_state(folder.path)["state"] == RUNNING
    start(folder)
    assert [one.get("state") for one in folder.record()["attempts"]] == ["lost", None]


def test_progress_gives_speed_and_end(tmp_path, monkeypatch):
    plan, clock = run_of(tmp_path, samples=192), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress(plan, tmp_path)
    progress.look()
    for clock[0], steps in ((110.0, 1), (112.0, 1), (114.0, 3)):
        (tmp_path / "steps").write_text(f"{steps:>20}")
        progress.look()
    before = datetime.now().astimezone()
    found = progress.values(epoch=0)
    # 2 steps of 16 samples in 4 seconds
    assert (found["step"], found["samples_per_second"]) == (3, 8.0)
    # 9 steps
    assert 17 <= (datetime.fromisoformat(found["expected_end"]) - before).total_seconds() <= 19
    assert progress.values(epoch=3)["step"] == 12  # those that a killed start has trained count


def test_the_root_is_no_folder_of_a_run():
    with input_error("--out is /; expected the name of a folder"):
        RunFolder(Path("/"))


@parametrize(
    "entries",
    [
        {},
        {"epoch": 1, "optimizer": [1]},
        {"epoch": "x", "optimizer": {"param_groups": []}},
        {"epoch": -1, "optimizer": {"param_groups": []}},
    ],
)
def test_a_checkpoint_without_epoch_or_optimizer_is_not_resumed(entries, small_model, tmp_path):
    weights = superclip.create_model_and_transforms(small_model)[0].state_dict()
    torch.save({"state_dict": weights, **entries}, tmp_path / "odd.pt")
    checkpoint = read_resumed(f"{tmp_path}/odd.pt", has_head=True, reads_values=True)
    with input_error("odd.pt is of a run whose epoch or optimizer is missing or damaged"):
        check_kind(checkpoint, small_model, with_head=True, with_ddp=None, has_tasks=None)
