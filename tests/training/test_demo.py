"""`superclip demo`: its files, and an interruption."""

import re
import signal

import numpy as np
from PIL import Image
from support import read_json
from support.training_runs import run_superclip

from openclip_superclip.study.study_file import OF_SCENES


def test_it_prints_and_plots_the_difference_of_both_methods_and_warns_about_a_single_seed(demo):
    printed = (demo.parent / "printed").read_text()
    assert (demo / "study.md").read_text().strip() in printed
    assert "| % | CLIP | SuperCLIP | SuperCLIP − CLIP |" in printed.splitlines()
    assert "One seed is only a test" in printed
    study = read_json(demo / "study.json")
    assert study["command"] == "superclip demo --quick --samples 320"
    for run in study["runs"]:
        assert list(run["measures"]) == [*OF_SCENES]
        assert all(0 <= score <= 100 for score in run["measures"].values())
    assert re.search(r"^clip_\S*seed0: zero shot \d", printed, flags=re.MULTILINE)
    picture = Image.open(demo / "study.png")
    assert picture.width < 800 < picture.width + picture.height
    assert np.asarray(picture.convert("L")).std() > 20  # not blank


def test_a_stopped_demo_exits_with_the_code_of_its_signal(tmp_path, monkeypatch):
    stopped = (
        "openclip_superclip.study.training.run_study",
        lambda *_: signal.raise_signal(signal.SIGTERM),
    )
    monkeypatch.setattr(*stopped)
    assert run_superclip(["demo"], tmp_path / "printed", tmp_path) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the same command resumes" in (tmp_path / "printed").read_text()
