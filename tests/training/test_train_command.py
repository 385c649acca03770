"""`superclip train`: how it starts, and what a run records."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.models import VOCAB_SIZE
from support.training_runs import on_a_full_disk, run_ranks, superclip_train

from openclip_superclip.config import Config, options_of


def test_a_name_that_is_taken_exits_with_an_error(train_flags, tmp_path):
    (tmp_path / "logs/run").mkdir(parents=True)
    (tmp_path / "logs/run/out.log").touch()
    (run,) = run_ranks(superclip_train, *train_flags, "--superclip", cwd=tmp_path)
    assert run.returncode == 1
    assert "Experiment already exists" in run.output
    assert (tmp_path / "logs/run/out.log").exists()


LATE = {  # flags: what the error says
    "--logs file": "--logs: cannot write to file/run: Not a directory",
    "--lock-image --lock-image-unlocked-groups 1": "--lock-image-unlocked-groups 1 leaves the class loss only",
    "--train-num-samples nine": "invalid int value: 'nine' (superclip train --help lists every flag)",
}


@pytest.mark.parametrize(("flags", "reason"), LATE.items(), ids=LATE)
def test_a_refused_run_is_one_line_and_leaves_its_name_to_the_corrected_command(flags, reason, train_flags, tmp_path):
    (tmp_path / "file").touch()
    (run,) = run_ranks(superclip_train, *train_flags, "--superclip", *flags.split(), cwd=tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.output
    (line,) = run.errors()
    assert reason in line
    assert not (tmp_path / "logs/run").exists()


def test_a_run_that_openclip_refuses_leaves_nothing_behind_and_an_old_run_untouched(train_flags, tmp_path):
    argv = [*train_flags, "--superclip", "--aug-cfg", "unknown=1"]
    (run,) = run_ranks(superclip_train, *argv, cwd=tmp_path)
    assert "unexpected keyword argument 'unknown'" in run.output
    assert not (tmp_path / "logs/run").exists()
    (tmp_path / "logs/run/checkpoints").mkdir(parents=True)
    (run,) = run_ranks(superclip_train, *argv, cwd=tmp_path)
    assert run.returncode == 1
    assert (tmp_path / "logs/run/checkpoints").is_dir()


def test_a_full_disk_is_reported_in_one_line(train_flags, tmp_path):
    (run,) = run_ranks(on_a_full_disk(superclip_train), *train_flags, cwd=tmp_path)
    assert run.returncode == 1
    assert run.errors() == ["error: the output cannot be written (the disk is full, or a limit reached)"]
    assert "Traceback" not in run.output
    assert (tmp_path / "logs/run/checkpoints/epoch_1.pt").stat().st_size <= 65536


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


def test_the_log_describes_the_head_at_the_start(train_flags, tmp_path):
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
