"""`superclip demo`: its files, resuming after an interruption, and errors."""

import json
import signal

import numpy as np
import pytest
from PIL import Image
from support.slurm_cluster import wait_until
from support.training_runs import link_scenes, processes_in, run_demo, start_demo

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


@pytest.mark.parametrize(("arguments", "named"), [
    (["--seeds", "0"], "--seeds is 0"),
])  # fmt: skip
def test_impossible_options_are_refused_in_one_line_that_names_them(arguments, named, tmp_path, refused):
    assert named in refused(tmp_path, "demo", *arguments, "--out", "out")


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
