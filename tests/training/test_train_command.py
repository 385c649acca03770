"""`superclip train`: how it starts, and what a run records."""

import re
import shutil
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from support.models import VOCAB_SIZE
from support.training_runs import run_ranks, superclip_train

from openclip_superclip.config import Config, options_of


def test_a_name_that_is_taken_exits_with_an_error(train_flags, tmp_path):
    (tmp_path / "logs/run").mkdir(parents=True)
    (tmp_path / "logs/run/out.log").touch()
    (run,) = run_ranks(superclip_train, *train_flags, "--superclip", cwd=tmp_path)
    assert run.returncode == 1
    assert "Experiment already exists" in run.output
    assert (tmp_path / "logs/run/out.log").exists()


RESAMPLED = "--train-data {shards} --dataset-type webdataset --train-num-samples 16 --dataset-resampled"
LATE = {  # flags, which OpenCLIP alone would refuse late or with a traceback: what the error says
    f"{RESAMPLED} --train-data-upsampling-factors 1::2": "--train-data-upsampling-factors is 1::2; expected 1 number",
    f"{RESAMPLED} --train-data-upsampling-factors a": "--train-data-upsampling-factors is a; expected 1 number",
    "--train-data-upsampling-factors 1": "--train-data-upsampling-factors only works with --dataset-resampled",
    "--lock-text": "--lock-text needs --lock-text-freeze-layer-norm",
    "--distill-model RN50 --distill-pretrained openai --accum-freq 2": "OpenCLIP cannot distil with --accum-freq",
    "--lr-scheduler const-cooldown": "--lr-scheduler const-cooldown needs --epochs-cooldown",
    "--lr-scheduler linear": "--lr-scheduler is 'linear'; expected cosine, const or const-cooldown",
    "--logs file": "--logs: cannot write to file/run: Not a directory",
    "--logs /proc/none": "--logs: cannot write to /proc/none/run",
    "--opt timm/none": "OpenCLIP ended before the first step: Optimizer none not found in registry",
    "--imagenet-val .": "OpenCLIP ended before the first step: Found no valid file for the classes logs",
}


@pytest.mark.parametrize(("flags", "reason"), LATE.items(), ids=LATE)
def test_what_openclip_refuses_late_is_one_line_and_leaves_no_run(flags, reason, shards, train_flags, tmp_path):
    (tmp_path / "file").touch()
    flags = flags.format(shards=shards).split()
    (run,) = run_ranks(train_without_downloads, *train_flags, "--superclip", *flags, cwd=tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.output
    (line,) = run.errors()
    assert reason in line
    assert not (tmp_path / "logs/run").exists()


def train_without_downloads(*argv: str) -> int:
    """`superclip train` for which the weights of --distill-pretrained are there."""
    from openclip_superclip.openclip import checks

    checks.CHECKS = [check for check in checks.CHECKS if check is not checks._check_models]
    return superclip_train(*argv)


def train_on_a_full_disk(*argv: str) -> int:
    """`superclip train` on a disk that takes logs but no checkpoint."""

    def save(*_):
        shutil.disk_usage = lambda _: types.SimpleNamespace(free=0)
        raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")

    torch.save = save
    return superclip_train(*argv)


def test_after_an_error_the_corrected_command_trains(train_flags, tmp_path):
    argv = [*train_flags, "--superclip"]
    (run,) = run_ranks(superclip_train, *argv, "--aug-cfg", "unknown=1", cwd=tmp_path)
    assert "unexpected keyword argument 'unknown'" in run.output
    (run,) = run_ranks(train_on_a_full_disk, *argv, cwd=tmp_path)
    assert run.returncode == 1
    (line,) = run.errors()
    assert line.startswith("error: the disk of logs/run is full (PytorchStreamWriter failed")
    assert line.endswith("free space, and continue with --resume latest")
    (run,) = run_ranks(superclip_train, *argv, "--resume", "latest", cwd=tmp_path)
    assert run.returncode == 0, run.output[-2000:]


def recorded_options(run_folder: Path) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in (run_folder / "params.txt").read_text().splitlines())


@pytest.mark.parametrize(
    ("flags", "config"),
    [
        ("", None),
        ("--superclip", Config()),
        (
            "--superclip --superclip-weight 2.5 --superclip-idf off --superclip-special-tokens",
            Config(weight=2.5, idf="off", special_tokens=True),
        ),
    ],
)
def test_params_txt_records_our_options_with_the_flag_and_nothing_of_ours_without(flags, config, train_flags, tmp_path):
    argv = [*train_flags, "--batch-size", "64", "--save-frequency", "0", *flags.split()]
    (run,) = run_ranks(superclip_train, *argv, cwd=tmp_path)
    assert run.returncode == 0
    options = recorded_options(tmp_path / "logs/run")
    ours = {"superclip": True, **options_of(config)} if config else {}
    assert {name: value for name, value in options.items() if "superclip" in name} == {
        k: str(v) for k, v in ours.items()
    }
    assert options["batch_size"] == "64"


def test_the_log_tells_at_the_start_what_the_head_is(train_flags, tmp_path):
    (run,) = run_ranks(superclip_train, *train_flags, "--logs", "none", "--superclip", cwd=tmp_path)
    (line,) = [line for line in run.output.splitlines() if "SuperCLIP: " in line]
    head = f"head {VOCAB_SIZE * 65 + 2 * 64:,} parameters"
    for part in (f"vocabulary {VOCAB_SIZE:,}", head, "patch tokens", "width 64", "IDF online"):
        assert part in line
    assert run.output.index(line) < run.output.index("Train Epoch")


def test_it_trains_under_torchrun(train_flags, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    superclip = ["-m", "openclip_superclip", "train", "--", *train_flags, "--batch-size", "16", "--superclip"]
    done = subprocess.run([*torchrun, *superclip], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "world_size: 2" in done.stderr + done.stdout
    assert len(re.findall("Class_loss", done.stderr + done.stdout)) == 2
    assert done.stdout.count("this OpenCLIP is not patched") == 1
