"""`superclip demo`: its files, resuming after an interruption, and errors."""

import json
import signal

import numpy as np
from PIL import Image
from support.training_runs import run_superclip

from openclip_superclip.studies.study import OF_SCENES


def test_it_prints_and_plots_the_difference_of_both_methods_and_warns_about_a_single_seed(demo):
    printed = (demo.parent / "printed").read_text()
    assert (demo / "study.md").read_text().strip() in printed
    assert "| % | CLIP | SuperCLIP | SuperCLIP − CLIP |" in printed.splitlines()
    assert "One seed is only a test" in printed
    for run in json.loads((demo / "study.json").read_text())["runs"]:
        assert list(run["measures"]) == [*OF_SCENES]
        assert all(0 <= score <= 100 for score in run["measures"].values())
    pixels = np.asarray(Image.open(demo / "demo.png").convert("L"))
    assert pixels.shape[0] > 500
    assert pixels.std() > 20  # not blank


def test_impossible_options_are_refused_in_one_line_that_names_them(tmp_path, refused):
    assert "--seeds is 0" in refused(tmp_path, "demo", "--seeds", "0", "--out", "out")


def test_a_stopped_demo_exits_as_its_signal_demands(tmp_path, monkeypatch):
    stopped = "openclip_superclip.commands.demo.run_study", lambda *_: signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(*stopped)
    assert run_superclip(["demo"], tmp_path / "printed", tmp_path) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the same command resumes" in (tmp_path / "printed").read_text()
