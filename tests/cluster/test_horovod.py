"""Horovod's ranks train as torch.distributed's do, whoever starts them;
what --horovod breaks is refused."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import open_clip
import pytest
import torch
from support import ROOT, cases, input_error, read_json, refusals, succeed, table, write_json
from support.models import assert_equal
from support.tiny_run import SLICES, state, write_recipe
from support.training_runs import (
    WHOLE_PICTURES,
    Run,
    assert_equal_runs,
    completed,
    execute,
    load,
    shell_words,
    superclip_train,
)

from openclip_superclip.demo.scenes import write_shards
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.plans.run import Settings
from openclip_superclip.trainer import checks
from openclip_superclip.trainer import horovod as horovod_ranks

pytestmark = pytest.mark.horovod

SLURM = ROOT / "slurm"

EQUAL = table("training: equal under Horovod")


class Horovod(NamedTuple):
    """Horovod in a folder of its own, for child processes."""

    folder: Path

    def path(self, *first):
        """The PYTHONPATH of a process; packages in the folders of `first`
        hide others."""
        paths = [*map(str, first), str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.pathsep.join(paths)

    def call(self, command, cwd, *first):
        """Runs a command of Python's, which must succeed."""
        environment = os.environ | {"PYTHONPATH": self.path(*first)}
        succeed([sys.executable, *command], env=environment, cwd=cwd)

    def run(self, jobs, folder):
        """Returns what the jobs of horovod_interpreter.py left behind."""
        write_json(folder / "jobs.json", jobs)
        command = "-m support.horovod_interpreter jobs.json runs.json".split()
        self.call(command, folder, Path(__file__).parents[1])
        runs = read_json(folder / "runs.json")
        return {name: [Run(*run) for run in ranks] for name, ranks in runs.items()}


def build_wheel(**variables):
    """Runs slurm/build-horovod.sh, which prints the wheel's path."""
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    command = ["bash", SLURM / "build-horovod.sh", "--wheel"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def wheel(pytestconfig, tmp_path_factory):
    """Horovod for this PyTorch, built the quickest way, without
    optimisation, or kept from before."""
    if not shutil.which("g++"):
        pytest.skip("Horovod is built, which needs g++")
    folder = tmp_path_factory.mktemp("compiler")
    compiler, gloo = folder / "g++", folder / "gloo.cmake"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')
    compiler.chmod(0o755)
    # in other groups, names of its files clash
    gloo.write_text("set(CMAKE_UNITY_BUILD_BATCH_SIZE 4)\n")
    several_files_at_once = "-DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=10"
    built = build_wheel(
        CXX=str(compiler),
        XDG_CACHE_HOME=str(pytestconfig.cache.mkdir("horovod")),
        CMAKE_ARGS=f"{several_files_at_once} -DCMAKE_PROJECT_gloo_INCLUDE={gloo}",
    )
    assert built.returncode == 0, built.stderr
    return built.stdout.strip()


@pytest.fixture(scope="session")
def horovod(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("horovod")
    install = f"{sys.executable} -m pip install --quiet --target {folder} {wheel}"
    subprocess.run(install.split(), check=True)
    return Horovod(folder)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """--train-data of the demo's scenes, 4 shards of 32, with two captions
    each."""
    folder = tmp_path_factory.mktemp("scenes") / "shards"
    write_shards(folder, 128, samples_per_shard=32)
    return f"{folder}/{{000000..000003}}.tar"


@pytest.fixture(scope="module")
def flags_of(shards, scenes, small_model, short_run):
    """A function that returns the flags of a short run, given those that it
    is about."""
    webdataset = "--dataset-type webdataset --train-num-samples 64 --train-data"
    data = {
        "shards": f"{webdataset} {shards}",
        "scenes": f"{webdataset} {scenes} --superclip-slices 2",
    }

    def flags(text):
        short = f"--model {small_model} --batch-size 10 --precision fp32 {WHOLE_PICTURES}"
        return shell_words(short_run, short, text.format(**data))

    return flags


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the interpreter with Horovod trains, a folder for each name."""
    return tmp_path_factory.mktemp("horovod-runs")


@pytest.fixture(scope="module")
def runs(horovod, folder, flags_of):
    """Everything that one interpreter with Horovod trains."""
    two_epochs = "--horovod --superclip --lr-scheduler const --epochs 2 --name"
    train = {
        **{name: ("superclip_train", 2, f"--horovod {flags}") for name, (flags,) in EQUAL.items()},
        "unbroken": ("superclip_train", 2, f"{two_epochs} unbroken"),
        "stopped": ("superclip_train", 2, f"{two_epochs} resumed --epochs 1"),
        "resumed": ("superclip_train", 2, f"{two_epochs} resumed --resume latest"),
        "stock": ("stock_train_under_horovod", 2, "--horovod {shards} --name stock"),
        "without our flags": ("superclip_train_in_one_order", 2, "--horovod {shards} --name ours"),
    }
    jobs = {}
    for name, (function, ranks, flags) in train.items():
        place = "resumed" if name == "stopped" else name
        jobs[name] = [function, ranks, f"{folder}/{place}", flags_of(flags)]
    return horovod.run(jobs, folder)


def test_the_wheel_is_built_once_for_each_pytorch(wheel):
    again = build_wheel(CXX="no-compiler", XDG_CACHE_HOME=str(Path(wheel).parents[2]))
    assert (again.returncode, again.stdout.strip(), again.stderr) == (0, wheel, "")
    assert f"torch{torch.__version__}" in wheel


@cases("name, flags", EQUAL)
def test_training_under_horovod_equals_ddp_bit_for_bit(
    name, flags, runs, folder, flags_of, tmp_path
):
    assert [run.returncode for run in runs[name]] == [0, 0], runs[name][0].output[-2000:]
    ddp = completed(superclip_train, *flags_of(flags), world_size=2, cwd=tmp_path)
    assert len(ddp[0].losses()) >= 3
    assert runs[name][0].losses() == ddp[0].losses()
    assert_equal_runs(folder / name / "logs/run", tmp_path / "logs/run")


def test_a_run_under_horovod_resumes_to_the_weights_of_one_that_never_stopped(runs, folder):
    for name in ("unbroken", "stopped", "resumed"):
        assert [run.returncode for run in runs[name]] == [0, 0], runs[name][0].output[-2000:]
    assert "resuming checkpoint" in runs["resumed"][1].output
    resumed, unbroken = (folder / name / "logs" / name for name in ("resumed", "unbroken"))
    assert_equal_runs(resumed, unbroken, epoch=2)


def test_without_a_flag_of_ours_horovod_trains_as_stock_openclip_to_the_last_digit(runs):
    for name in ("stock", "without our flags"):
        assert [run.returncode for run in runs[name]] == [0, 0], runs[name][0].output[-2000:]
    assert len(runs["stock"][0].losses()) == 4
    assert runs["without our flags"][0].losses() == runs["stock"][0].losses()


@cases("flags, reason", refusals("horovod"))
def test_what_horovod_breaks_is_refused_before_anything_is_loaded(
    flags, reason, short_run, monkeypatch, refusal
):
    monkeypatch.setattr(checks, "check_horovod", lambda: None)
    assert reason in refusal(short_run, "--precision fp32 --horovod", flags)


def test_a_recipe_whose_batch_would_be_accumulated_is_refused_before_it_starts(scenes, small_model):
    few = {"model": small_model, "data_samples": "128", "samples": "128", "slices": "1"}
    recipe = read_recipe("demo/superclip_demo-model_8k_bs64", few)
    settings = Settings(engine="horovod")
    with input_error("--horovod does not work with --accum-freq 2"):
        make_run(recipe, data=scenes, gpu_batch_max=32, device="cpu", settings=settings)


def test_a_task_of_srun_without_an_address_says_so(monkeypatch):
    monkeypatch.setattr(horovod_ranks, "check_horovod", lambda: None)
    for name, value in {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    with input_error(r"rank 1 of 2.*MASTER_ADDR"):
        horovod_ranks.join_ranks()


def test_without_horovod_the_error_names_the_script_that_builds_it(short_run, refusal):
    assert "slurm/build-horovod.sh" in refusal(short_run, "--superclip --horovod")


# Other processes that start the ranks


def test_a_patched_openclip_trains_under_horovodrun_as_the_launcher_does(
    horovod, runs, folder, flags_of, tmp_path
):
    installed, patched = Path(open_clip.__file__).parent.parent, tmp_path / "patched"
    info = f"open_clip_torch-{version('open_clip_torch')}.dist-info"
    for part in ("open_clip", "open_clip_train", info):
        shutil.copytree(installed / part, patched / part)
    execute(f"patch apply --source {patched}")
    horovodrun = [horovod.folder / "bin/horovodrun", "-np", "2", "--gloo"]
    train = [sys.executable, "-m", "open_clip_train.main", *flags_of("--superclip --horovod")]
    horovod.call([*horovodrun, *train], tmp_path, patched)
    assert_equal_runs(tmp_path / "logs/run", folder / "a table/logs/run")


@pytest.mark.slurm
def test_a_submitted_job_trains_a_recipe_under_horovod_on_two_nodes_as_ddp_does(
    cluster, horovod, tmp_path
):
    # 1e-6 shows how sums are rounded
    recipe, run = write_recipe(tmp_path, passes=1, eps=1e-5), tmp_path / "submitted"
    submit = f"superclip submit {recipe} --engine horovod --device cpu --out {run}"
    variables = f"env PYTHONPATH={horovod.path()}"
    printed = cluster.call(f"{variables} {submit} --nodes 2 --gpus-per-node 1", cwd=tmp_path)
    job = printed.split()[1]
    cluster.complete(job, run / f"slurm-{job}.out")
    assert state(run)["state"] == "finished"
    assert read_json(run / "run.json")["attempts"][0]["hosts"] == ["node1", "node2"]
    assert "Running in horovod mode" in (run / "out.log").read_text()
    plan = make_run(read_recipe(str(recipe)), gpus_per_node=2, device="cpu")
    flags = [*plan.openclip_arguments(), "--name", "ddp"]
    completed(superclip_train, *flags, world_size=2, cwd=tmp_path)
    ours, theirs = (load(each, SLICES)["state_dict"] for each in (run, tmp_path / "logs/ddp"))
    assert_equal(ours, theirs)
