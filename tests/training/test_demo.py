"""`superclip demo`: its files, resuming after an interruption, and errors."""

import importlib.util
import json
import signal

import numpy as np
import pytest
from PIL import Image
from support.slurm_cluster import wait_until
from support.training_runs import link_scenes, processes_in, run_demo, start_demo

from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.run_outputs import read_log
from openclip_superclip.studies.study import OF_SCENES


@pytest.fixture(scope="module")
def demo(tmp_path_factory, demo_scenes):
    out = tmp_path_factory.mktemp("demo") / "out"
    link_scenes(out, demo_scenes)
    return out, run_demo(out)


def test_it_prints_and_plots_the_difference_of_both_methods_and_warns_about_a_single_seed(demo):
    out, finished = demo
    assert finished.returncode == 0, finished.stderr
    assert (out / "study.md").read_text().strip() in finished.stdout
    assert "| % | CLIP | SuperCLIP | SuperCLIP − CLIP |" in finished.stdout.splitlines()
    assert "One seed is only a test" in finished.stdout
    for run in json.loads((out / "study.json").read_text())["runs"]:
        assert list(run["measures"]) == [*OF_SCENES]
        assert all(0 <= score <= 100 for score in run["measures"].values())
    pixels = np.asarray(Image.open(out / "demo.png").convert("L"))
    assert pixels.shape[0] > 500
    assert pixels.std() > 20  # not blank


def test_only_superclip_has_a_class_loss_in_openclips_log(demo):
    logs = {log.parent.name.split("_")[0]: read_log(log) for log in demo[0].glob("runs/*/out.log")}
    assert all("class_loss" in point for point in logs["superclip"])
    assert not any("class_loss" in point for point in logs["clip"])


def test_a_second_call_reads_finished_runs_and_prints_the_same_table(demo):
    out, finished = demo
    checkpoints = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/*.pt")}
    assert len(checkpoints) == 2
    again = run_demo(out)
    assert again.stdout == finished.stdout
    assert checkpoints == {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/*.pt")}


@pytest.mark.parametrize(("arguments", "named"), [
    (["--seeds", "0"], "--seeds is 0"),
    (["--samples", "31"], "--samples is 31"),
    (["--jobs", "0"], "--jobs is 0"),
    (["--quick", "--seeds", "4"], "--quick trains one seed"),
])  # fmt: skip
def test_impossible_options_are_refused_in_one_line_that_names_them(arguments, named, tmp_path, capsys):
    assert main(["demo", *arguments, "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not (tmp_path / "out").exists()


def test_a_stopped_demo_leaves_no_training_behind(demo_scenes, tmp_path):
    out = tmp_path / "out"
    link_scenes(out, demo_scenes)
    process = start_demo(out, "--samples", "20000")
    wait_until(lambda: list(out.glob("runs/*/out.log")), 300, "a run to begin")
    assert processes_in(out)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    wait_until(lambda: not processes_in(out), 120, "the runs to end")


@pytest.mark.parametrize("command", [["demo"], ["report", "run"]])
def test_without_matplotlib_the_extra_to_install_is_named(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "[report]" in line
