"""What `superclip run` accepts and records when it starts, without
training."""

import os
import signal
import time
from dataclasses import asdict, replace

import pytest
import torch
from support import input_error, parametrize
from support.slurm_cluster import wait_until
from support.tiny_run import write_recipe
from support.training_runs import call

from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.resume_record import FIELD, read_record, record_of
from openclip_superclip.data.data_check import DataCheck
from openclip_superclip.environment import replaced
from openclip_superclip.files import content_digest, write_json
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.plans.run import Run, Settings
from openclip_superclip.runs import launcher
from openclip_superclip.runs.folder import RunFolder
from openclip_superclip.runs.launcher import NodeTraining
from openclip_superclip.runs.lock import lock
from openclip_superclip.runs.recovery import Decision, Failure
from openclip_superclip.runs.signals import EXIT_AGAIN, EXIT_REFUSED, Stopped
from openclip_superclip.runs.slurm import Placement, this_host
from openclip_superclip.runs.start_checks import checked_start
from openclip_superclip.trainer import checks
from openclip_superclip.trainer.train import check_command


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that accepts changes and has not begun."""
    folder, recipe = RunFolder(tmp_path / "run"), read_recipe(str(write_recipe(tmp_path)))
    folder.write(make_run(recipe, device="cpu", settings=Settings(accept_changes=True)))
    return folder


def started(folder, **values):
    """Returns the exit code of a start, whose run has other values than the
    folder's."""
    return NodeTraining(replace(Run.open(folder.path), **values), Placement(), folder).train()


@parametrize("engine", ["torchrun", "horovod"])
def test_a_run_begins_with_the_options_that_its_ranks_compare(engine, folder, monkeypatch):
    monkeypatch.setattr(checks, "check_horovod", lambda: None)
    training = NodeTraining(
        replace(Run.open(folder.path), settings=Settings(engine=engine)), Placement(), folder
    )
    options = vars(check_command(training.start.arguments))
    checked = checked_start(training.run, folder, accepts=False)
    assert checked == {FIELD: asdict(record_of(options, 1))}


def test_a_finished_run_of_other_data_is_refused(folder):
    (table := folder.path / "held.csv").write_text("before")
    checked = {"tables": {str(table): content_digest(table), "nowhere.csv": "0"}}
    begins = checked_start(Run.open(folder.path), folder, accepts=False)
    write_json(folder.path / "state.json", {"state": "finished"})
    folder.note(data_check=checked, **begins)
    assert started(folder) == 0
    (folder.path.parent / "shards/000000.tar").write_text("")
    with input_error(r"other data \(--train-data: 000000.tar had .* bytes and has 0\): give --out"):
        started(folder)
    table.write_text("after")
    with input_error(r"/held\.csv has changed since .*/run was trained on it: give --out another"):
        started(folder)
    with input_error(r"with --data .*, not other.tar; give --out another folder"):
        started(folder, data="other.tar")


def test_a_long_check_of_the_data_sends_heartbeats(folder):
    def long_check(run, command):
        wait_until(lambda: "steps" in folder.state(), 10, "a heartbeat")
        return DataCheck("data")

    with replaced(launcher, HEARTBEAT=1.5, accepted_data=long_check, run_ranks=failing):
        assert NodeTraining(Run.open(folder.path), Placement(), folder).train() == EXIT_AGAIN
    assert folder.state()["error"] == f"rank 0 on {this_host()}: it has failed"


def test_a_file_in_place_of_the_checkpoints_is_one_line(folder):
    folder.checkpoints.touch()
    with input_error(r"--out: .*/run/checkpoints cannot be written \(File exists\)"):
        started(folder)
    assert folder.state()["state"] == "failed"


@parametrize("content", ["", "{", "[]", "{}", '{"options": [], "shards": {}, "versions": {}}'])
def test_a_broken_record_of_the_beginning_is_replaced_by_what_openclip_recorded(content, tmp_path):
    (tmp_path / "began_with.json").write_text(content)
    assert read_record(tmp_path) is None
    params = "seed: 3\ntrain_data: {0..3}.tar\nbatch_size: 4\naccum_freq: 1\nworld_size: 2\n"
    (tmp_path / "params.txt").write_text(params)
    record = read_record(tmp_path)
    options = {"seed": 3, "batch_size": 4, "world_size": 2, "global_batch_size": 8}
    assert record.options == options
    assert record.shards["number"] == 4


def test_a_run_that_is_asked_to_stop_ends_after_its_next_checkpoint_and_is_not_requeued(folder):
    def ranks(start, each_second):
        each_second()
        assert call(f"stop {folder.path}") == 0
        each_second()  # no slice is saved yet
        torch.save({"epoch": 1}, folder.path / "checkpoints/epoch_1.pt")
        each_second()

    with replaced(launcher, run_ranks=ranks):
        assert NodeTraining(Run.open(folder.path), Placement(), folder).train() == 0
    state = folder.state()
    assert state["state"] == "preempted"
    assert state["error"] == "stopped after slice 1, as asked"
    assert not folder.attempts[-1]["again"]
    folder.start(Run.open(folder.path), Placement(), "local-1")
    assert not folder.stop_file.exists()


@parametrize("asked, code", [(True, 0), (False, 1)])
def test_another_node_does_not_fail_when_the_first_stops_as_asked(asked, code, folder):
    if asked:
        folder.stop_file.touch()
    node = Placement(num_nodes=2, node=1, job="17", step="0")
    training = NodeTraining(Run.open(folder.path), node, folder)
    training._run_ranks = lambda: [Failure("rank 1", "it has failed")]
    with replaced(launcher, SETTLE=0):
        assert training.train() == code


@parametrize(
    "earlier, later, stops",
    [
        (
            Placement(job="17"),
            Placement(job="17", step="0", restarts=1),
            True,
        ),  # SLURM has requeued it
        (Placement(job="17"), Placement(job="18", step="0"), False),
        (Placement(), Placement(), False),
    ],
)
def test_a_request_to_stop_is_of_one_job(earlier, later, stops, folder):
    folder.start(Run.open(folder.path), earlier, "local-0")
    folder.stop_file.touch()
    folder.start(Run.open(folder.path), later, "local-1")
    assert folder.stop_file.exists() == stops


def failing(start, each_second):
    return [Failure("rank 0", "it has failed")]


def test_signals_are_ignored_while_a_failure_is_recorded(folder, monkeypatch):
    monkeypatch.setattr(
        launcher, "decide", lambda *_: os.kill(os.getpid(), signal.SIGINT) or Decision()
    )
    with replaced(launcher, run_ranks=failing, accepted_data=lambda *_: DataCheck("data")):
        assert NodeTraining(Run.open(folder.path), Placement(), folder).train() == 1
    assert folder.state()["state"] == "failed"


@parametrize("seconds, caused", [(5, True), (0.1, False)])
def test_a_failure_well_before_a_signal_is_its_cause(seconds, caused, folder):
    def stopped(start, each_second):
        failure = Failure("rank 1", "it has failed", timestamp=time.time() - seconds)
        failure.write(start.logs / "rank_1.error.json")
        raise Stopped(signal.SIGTERM)

    training = NodeTraining(Run.open(folder.path), Placement(), folder)
    with replaced(launcher, run_ranks=stopped, accepted_data=lambda *_: DataCheck("data")):
        if caused:
            assert training.train() == EXIT_AGAIN
        else:
            with pytest.raises(Stopped):
                training.train()
    here = f"rank 1 on {this_host()}: it has failed"
    assert folder.state()["error"] == (here if caused else "stopped by SIGTERM")


def test_the_jobs_script_reads_the_exit_code_and_the_node_to_exclude(folder, monkeypatch):
    file = folder.path / "ended"
    monkeypatch.setenv("SUPERCLIP_ENDED", str(file))
    ended = []
    for start in range(3):
        run, step = Run.open(folder.path), Placement(job="17", step=str(start))
        with replaced(launcher, run_ranks=failing, accepted_data=lambda *_: DataCheck("data")):
            code = launcher.train(run, step, folder)
        ended.append((code, file.read_text()))
    assert ended == [(75, "75 \n"), (75, f"75 {this_host()}\n"), (1, "1 \n")]


STEP = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "8",
}


def test_a_refused_step_of_a_job_does_not_look_like_a_killed_one(monkeypatch, capsys):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "coco/clip_vit-b-16_20.48m_bs1k"]) == EXIT_REFUSED
    assert "error: srun starts 8 processes on 2 nodes" in capsys.readouterr().err


def test_a_lock_that_cannot_be_written_gives_one_error_line(tmp_path):
    (tmp_path / "file").touch()
    held = lock(tmp_path / "file/runs.lock", Placement())
    with input_error(r"--out: .*/file cannot be written"), held:
        pass
