"""`superclip demo`: what it writes, that it goes on where it stopped, and how it refuses."""

import importlib.util
import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from support.demo_runs import run_demo, start_demo
from support.slurm_cluster import wait_until
from support.training_runs import processes_in

from openclip_superclip.__main__ import main
from openclip_superclip.data.frequency_file import Frequencies
from openclip_superclip.demo.demo_run import read_log
from openclip_superclip.demo.method_comparison import methods_table


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out)


def test_it_prints_one_table_of_every_measure_at_equal_samples_and_at_equal_time(demo):
    out, finished = demo
    assert finished.returncode == 0, finished.stderr
    report = json.loads((out / "demo.json").read_text())
    assert methods_table(report) in finished.stdout
    assert list(report["summary"]) == ["CLIP", "SuperCLIP", "CLIP, equal time"]
    for measures in report["summary"].values():
        assert list(measures) == [
            "zero_shot", "image_to_text_R@1", "text_to_image_R@1", "tagging", "linear_probe",
        ]  # fmt: skip
        assert all(0 <= measure["mean"] <= 100 for measure in measures.values())


def test_only_superclip_has_a_class_loss_in_openclips_log(demo):
    out, _ = demo
    logs = {log.parent.name.split("_")[0]: read_log(log) for log in out.glob("runs/*/out.log")}
    assert all("class_loss" in point for point in logs["superclip"])
    assert not any("class_loss" in point for point in logs["clip"])


def test_the_figure_is_drawn_and_not_blank(demo):
    out, _ = demo
    pixels = np.asarray(Image.open(out / "demo.png").convert("L"))
    assert pixels.shape[0] > 500
    assert pixels.std() > 20


def test_a_second_call_reads_what_is_finished_and_prints_the_same_table(demo):
    out, finished = demo
    checkpoints = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/*.pt")}
    again = run_demo(out)
    assert again.stdout == finished.stdout
    assert checkpoints == {path: path.stat().st_mtime_ns for path in out.glob("runs/*/checkpoints/*.pt")}


def test_an_interrupted_run_is_trained_anew_and_the_others_are_kept(demo):
    out, _ = demo
    (run,) = out.glob("runs/superclip_*")
    (run / "test.json").unlink()
    (run / "trained.json").unlink()
    assert run_demo(out).returncode == 0
    assert (run / "checkpoints" / "epoch_1.pt").exists()


@pytest.mark.parametrize(("arguments", "named"), [
    (["--seeds", "0"], "--seeds"),
    (["--batch-size", "0"], "--batch-size"),
    (["--samples", "100"], "--samples"),
    (["--learning-rates", "0"], "--learning-rates"),
    (["--learning-rates", "nan"], "--learning-rates"),
])  # fmt: skip
def test_impossible_options_are_refused_in_one_line_that_names_them(arguments, named, tmp_path, capsys):
    assert main(["demo", *arguments, "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not (tmp_path / "out").exists()


def test_of_several_learning_rates_each_method_takes_its_best_on_scenes_that_are_not_reported(demo):
    out, _ = demo
    assert run_demo(out, "--learning-rates", "5e-4", "1e-9").returncode == 0
    report = json.loads((out / "demo.json").read_text())
    assert {trial["split"] for trial in report["tuning"]} == {"tune"}
    assert len(report["tuning"]) == 4
    for method, best in report["learning_rates"].items():
        scores = {
            trial["run"]["learning_rate"]: sum(trial["measures"].values())
            for trial in report["tuning"]
            if trial["run"]["method"] == method
        }
        assert scores[best] == max(scores.values())


def test_a_failed_run_ends_the_demo_with_its_last_words(tmp_path):
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    (out / "runs" / "clip_n320_b32_lr0.0005_long_seed0").write_text("a file where the run's folder should be")
    finished = run_demo(out)
    assert finished.returncode == 1
    assert "clip_n320_b32_lr0.0005_long_seed0 failed" in finished.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_leaves_no_training_behind(number, tmp_path):
    out = tmp_path / "out"
    process = start_demo(out, "--samples", "20000")
    wait_until(lambda: list(out.glob("runs/*/out.log")), 300, "a run to begin")
    assert processes_in(out)
    process.send_signal(number)
    process.communicate()
    assert process.returncode in (128 + number, -number)
    wait_until(lambda: not processes_in(out), 120, "the runs to end")


@pytest.mark.parametrize("command", [["demo"], ["benchmark"], ["frequencies", "--show", "df.safetensors"]])
def test_without_matplotlib_the_extra_to_install_is_named(command, tmp_path, monkeypatch, capsys):
    Frequencies(torch.ones(3).long(), 3, "words", "", "short", ()).write(tmp_path / "df.safetensors")
    monkeypatch.chdir(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "[report]" in line
