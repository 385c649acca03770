"""`superclip study`: paired seeds, and resuming after a stop."""

import contextlib
import io
import logging
import os
import shutil
import signal

import open_clip
import pytest
import torch
from ruamel.yaml import YAML
from support import cases, parametrize, read_json, refusals
from support.data import write_shards
from support.models import assert_equal, without_head
from support.slurm_cluster import wait_until
from support.tiny_run import weights, write_recipe
from support.training_runs import call, fork, in_forks, processes_in

import openclip_superclip as superclip
from openclip_superclip.checkpoints.trainer_files import RECORD
from openclip_superclip.plans.run import Run
from openclip_superclip.runs.lock import lock
from openclip_superclip.runs.slurm import Placement
from openclip_superclip.study.study_run import open_trained


def study(folder, more=""):
    """The exit code of a study in this process."""
    data = f"--val-data {write_shards(folder / 'val', 2)} --set flags.val-num-samples=32"
    return call(f"study which.yaml --out out {data} {more}")


@pytest.fixture
def study_here(monkeypatch, capsys):
    """Calls a study in this process, and returns what it prints, or the
    last line of its error."""
    level = logging.getLogger().level

    def study_here(folder, *more, code=0):
        monkeypatch.chdir(folder)
        assert study(folder, *more) == code
        printed = capsys.readouterr()
        return printed.err.strip().splitlines()[-1] if code else printed.out

    yield study_here
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a study of CLIP, SuperCLIP, and a class loss that trains only its head."""
    folder = tmp_path_factory.mktemp("study")
    study = {
        "question": "which?",
        "primary": "image_to_text_R@1",
        "measures": "validation",
        "recipe": str(write_recipe(folder, passes=1, slices=1)),
        "seeds": 1,
        "arms": {
            "CLIP": {"method": "clip"},
            "SuperCLIP": {},
            # more samples than these runs have, during which the class loss trains only its head
            "head alone": {"superclip.head_warmup": 10**6},
        },
    }
    YAML().dump(study, folder / "which.yaml")
    return folder


@pytest.fixture(scope="module")
def studied(prepared):
    """The folder of the finished study, and what it printed."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed,
        in_forks(),
    ):
        patch.chdir(prepared)
        assert study(prepared) == 0
    return prepared, printed.getvalue()


def run(folder, arm):
    return folder / f"out/runs/{arm}_seed0"


def test_it_prints_a_table_with_every_arm_and_records_every_run(studied):
    folder, printed = studied
    arms = "| % | CLIP | SuperCLIP | head alone |"
    pairs = " SuperCLIP − CLIP | head alone − CLIP |"
    assert f"{arms}{pairs}" in printed.splitlines()
    runs = read_json(folder / "out/study.json")["runs"]
    assert len({run["checkpoint"] for run in runs}) == len(runs) == 3
    assert "All seeds share one validation set: " in printed


def test_seeds_are_paired_so_exactly_that_a_head_alone_trains_clips_own_towers(studied):
    folder, _ = studied
    clip = weights(run(folder, "clip"), 1)
    ours = weights(run(folder, "superclip"), 1)
    alone = weights(run(folder, "head-alone"), 1)
    assert_equal(without_head(alone), clip)
    assert not all(ours[name].equal(tensor) for name, tensor in clip.items())
    differences = read_json(folder / "out/study.json")["differences"]
    values = [one["values"] for one in differences if one["arm"] == "head alone"]
    assert not any(map(any, values))
    assert alone["statistics.document_frequency"].equal(ours["statistics.document_frequency"])


def test_a_second_call_trains_nothing_and_prints_the_same(studied, study_here):
    folder, printed = studied

    def saved():
        pattern = "out/runs/*/checkpoints/*.pt"
        return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}

    before = saved()
    assert study_here(folder) == printed
    assert saved() == before


@cases("more, message", refusals("other_runs_of_a_study"))
def test_a_run_of_other_settings_is_never_taken_for_one_of_the_study(
    studied, study_here, more, message
):
    error = study_here(studied[0], more, code=1)
    assert error.startswith("error: out/runs/")
    assert message in error
    assert error.endswith("give --out another folder")


def test_a_report_needs_no_gpu_and_records_the_device_and_the_settings_of_the_runs(
    studied, study_here, tmp_path
):
    shutil.copytree(studied[0] / "out/runs", tmp_path / "runs")
    for file in tmp_path.glob("runs/*/run.json"):
        text = file.read_text().replace('"cpu"', '"cuda"')
        file.write_text(text.replace("30.0", "9.0"))
    study_here(studied[0], f"--only report --out {tmp_path}")
    record = read_json(tmp_path / "study.json")
    assert (record["device"], record["settings"]["stall_minutes"]) == ("cuda", 9)


def test_a_folder_of_something_else_is_not_trained_over(studied, study_here):
    folder, _ = studied
    theirs = folder / "own/runs/clip_seed0/checkpoints"
    theirs.mkdir(parents=True)
    assert "contains checkpoints of something else" in study_here(folder, "--out own", code=1)
    assert theirs.exists()


def test_a_second_study_in_the_same_folder_is_refused_while_the_first_runs(studied, study_here):
    folder, _ = studied
    with lock(folder / "out/lock", Placement()):
        assert "out belongs to another run" in study_here(folder, code=1)


@parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_study_leaves_no_process_behind_and_says_how_to_resume(
    prepared, number, tmp_path
):
    more = f"--out {tmp_path}/out --stall-minutes 9"
    stopped = fork(lambda: study(prepared, more), tmp_path / "printed", prepared, {})
    wait_until(lambda: processes_in(tmp_path / "out"), 120, "the runs")
    runs = [Run.open(path.parent) for path in (tmp_path / "out/runs").glob(f"*/{RECORD}")]
    assert runs and {run.settings.stall_minutes for run in runs} == {9}
    os.kill(stopped.pid, number)  # this process alone, unlike a terminal's Ctrl-C
    stopped.join()
    said = (tmp_path / "printed").read_text()
    assert number == signal.SIGKILL or said.splitlines()[-1].endswith("; the same command resumes")
    assert stopped.exitcode == (-9 if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not processes_in(tmp_path / "out"), 120, "the runs")
    assert "Traceback" not in said


def test_a_run_that_fails_ends_the_study_by_name_with_its_error(studied, study_here):
    with in_forks():
        error = study_here(studied[0], "--set model=local-dir:nowhere --out elsewhere", code=1)
    assert error.startswith("error: ")
    assert "_seed0 failed" in error


def test_the_models_of_a_study_are_opened_for_its_measures(tmp_path, tiny_model):
    siglip, *_ = superclip.create_model_and_transforms(tiny_model, init_logit_bias=-10.0)
    for trained in (siglip, open_clip.create_model(tiny_model, force_patch_dropout=0.5)):
        saved = trained.state_dict()
        torch.save({"epoch": 1, "state_dict": saved}, tmp_path / "epoch_1.pt")
        opened = open_trained(tmp_path / "epoch_1.pt", tiny_model)[0].state_dict()
        assert_equal(opened, saved)
