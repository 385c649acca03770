"""What `superclip run` accepts and records when it starts, without training."""

from dataclasses import replace

import pytest
from support import cases, input_error, parametrize
from support.tiny_run import write_recipe

from openclip_superclip.checkpoints.resume import (
    BEGAN_WITH,
    beginning,
    read_beginning,
    write_beginning,
)
from openclip_superclip.files import content_digest, write_json
from openclip_superclip.openclip import checks
from openclip_superclip.openclip.train import check_command
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe import read_recipe
from openclip_superclip.plans.run import Run, Settings
from openclip_superclip.runs.folder import RunFolder
from openclip_superclip.runs.launcher import NodeTraining
from openclip_superclip.runs.lock import lock
from openclip_superclip.runs.slurm import Placement


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that accepts changes and has not begun."""
    folder, recipe = RunFolder(tmp_path / "run"), read_recipe(str(write_recipe(tmp_path)))
    folder.write(make_run(recipe, device="cpu", settings=Settings(accept_changes=True)))
    return folder


def started(folder: RunFolder, **values):
    """Returns the exit code of a start, whose run has other values than the folder's."""
    return NodeTraining(replace(Run.open(folder.path), **values), Placement(), folder).train()


@parametrize("engine", ["torchrun", "horovod"])
def test_a_run_begins_with_the_options_that_its_ranks_compare(engine, folder, monkeypatch):
    monkeypatch.setattr(checks, "check_horovod", lambda: None)
    training = NodeTraining(
        replace(Run.open(folder.path), settings=Settings(engine=engine)), Placement(), folder
    )
    options = vars(check_command(training.start.arguments))
    assert training._checked() == {BEGAN_WITH: beginning(options, world_size=1)}


ATTEMPTS = {  # job, restarts, step, whether it accepted: whether the start 17.1-1 accepts
    "before it was requeued": ("17", 0, "0", True, False),
    "before it was started again in the job": ("17", 1, "0", True, False),
    "this start": ("17", 1, "1", True, True),
    "one that did not accept": ("17", 0, "0", False, True),
    "another job": ("16", 0, "0", True, True),
    "of an earlier version": ("17", 0, "0", None, True),
}


@cases("job, restarts, step, accepted, accepts", ATTEMPTS)
def test_a_job_accepts_changes_unless_an_earlier_start_has(
    folder, job, restarts, step, accepted, accepts
):
    attempt = {"job": job, "restarts": restarts, "step": step}
    folder.note(attempts=[attempt if accepted is None else attempt | {"accepts": accepted}])
    # a table has no slices
    for data, is_passed_on in (("{0..3}.tar", accepts), ("pairs.csv", False)):
        run = replace(Run.open(folder.path), data=data)
        training = NodeTraining(run, Placement(job="17", restarts=1, step="1"), folder)
        assert training.accept_changes == accepts
        assert ("--superclip-accept-changes" in training.start.arguments) == is_passed_on


def test_a_finished_run_of_other_data_is_refused(folder):
    (table := folder.path / "held.csv").write_text("before")
    checked = {"tables": {str(table): content_digest(table), "nowhere.csv": "0"}}
    write_json(folder.path / "state.json", {"state": "finished"})
    folder.note(data_check=checked)
    assert started(folder) == 0
    table.write_text("after")
    with input_error(r"/held\.csv has changed since .*/run was trained on it: give --out another"):
        started(folder)
    with input_error(r"with --data .*, not other.tar; give --out another folder"):
        started(folder, data="other.tar")


@parametrize("content", ["", "{", "[]", "{}", '{"options": []}'])
def test_a_broken_record_of_the_beginning_is_replaced_by_what_openclip_recorded(content, tmp_path):
    (tmp_path / "began_with.json").write_text(content)
    assert read_beginning(tmp_path) is None
    params = "seed: 3\ntrain_data: {0..3}.tar\nbatch_size: 4\naccum_freq: 1\nworld_size: 2\n"
    (tmp_path / "params.txt").write_text(params)
    record = read_beginning(tmp_path)
    assert (record["options"], record["global_batch_size"]) == ({"seed": 3}, 8)
    assert record["shards"]["number"] == 4


def test_the_folder_of_an_earlier_version_is_read_and_becomes_one_of_this(folder):
    """It held the run, its beginning and its starts in three files."""
    record = folder.record()
    write_json(folder.path / "description.json", record.pop("run") | {"set": {"lr": "1e-3"}})
    now = beginning(vars(check_command(Run.open(folder.path).openclip_arguments())), world_size=1)
    write_beginning(folder.path, now, resumes=False)
    write_json(folder.path / "run.json", {"attempts": [{"job": None, "state": "preempted"}]})
    assert read_beginning(folder.path) == now | {"changes": []}
    run = Run.open(folder.path)
    folder.check_recipe(run.recipe)
    with input_error(r"contains a run of another recipe: lr is 0\.001 there and 0\.002 here"):
        folder.check_recipe(replace(run.recipe, lr=2e-3))
    folder.start(run, Placement(), "local-1", began_with=now)
    assert not (folder.path / "description.json").exists()
    assert not (folder.path / "began_with.json").exists()
    assert (Run.open(folder.path), read_beginning(folder.path)) == (run, now)
    assert len(folder.attempts) == 2


def test_a_lock_that_cannot_be_written_gives_one_error_line(tmp_path):
    (tmp_path / "file").touch()
    held = lock(tmp_path / "file/runs.lock", Placement(), flag="--runs")
    with input_error(r"--runs: .*/file cannot be written"), held:
        pass
