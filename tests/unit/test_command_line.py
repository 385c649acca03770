"""The `superclip` command: what it answers, what it costs to ask, and what a run records."""

import dataclasses
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.training_runs import run_ranks, superclip_train

from openclip_superclip import __version__
from openclip_superclip.__main__ import COMMANDS
from openclip_superclip.config import Config, DataConfig, options_of

OUR_FIELDS = [*dataclasses.fields(Config), *dataclasses.fields(DataConfig)]
OUR_FLAGS = ["--superclip", *(field.metadata["flag"] for field in OUR_FIELDS)]
SCRIPT = [str(Path(sys.executable).with_name("superclip"))]
MODULE = [sys.executable, "-m", "openclip_superclip"]


def call(*command: str, cwd: Path | None = None, timeout: int = 120) -> subprocess.CompletedProcess:
    environment = os.environ | {"COLUMNS": "100"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("argv", [["--help"], ["-h"], [], ["--version"], ["train", "--help"]], ids=" ".join)
def test_it_answers_without_importing_torch(argv):
    program = (
        "import sys; from openclip_superclip.__main__ import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    )
    done = call(sys.executable, "-c", program + "sys.exit('torch' in sys.modules)", *argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["superclip", "python -m openclip_superclip"])
def test_help_lists_every_command(command):
    done = call(*command, "--help")
    assert done.returncode == 0
    assert re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["superclip", "python -m openclip_superclip"])
def test_version_is_the_packages(command):
    assert call(*command, "--version").stdout == f"openclip-superclip {__version__}\n"


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["superclip", "python -m openclip_superclip"])
def test_an_unknown_command_is_named_and_exits_with_2(command):
    done = call(*command, "fly")
    assert done.returncode == 2
    assert "'fly'" in done.stderr


def test_train_help_shows_our_flags_in_a_group_of_their_own():
    done = call(*MODULE, "train", "--help")
    assert done.returncode == 0
    _, group = done.stdout.split("\nSuperCLIP:\n")
    assert re.findall(r"^  (--[\w-]+)", group, re.MULTILINE) == OUR_FLAGS
    assert "--train-data" in done.stdout


def test_a_name_that_is_taken_exits_with_an_error(train_flags, tmp_path):
    argv = [*train_flags, "--superclip"]
    (tmp_path / "logs/run").mkdir(parents=True)
    (tmp_path / "logs/run/out.log").touch()
    (run,) = run_ranks(superclip_train, *argv, cwd=tmp_path)
    assert run.returncode == 1
    assert "Experiment already exists" in run.output


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
    for part in ("vocabulary 49,408", "head 3,211,648 parameters", "patch tokens", "width 64", "IDF online"):
        assert part in line
    assert run.output.index(line) < run.output.index("Train Epoch")


def test_it_trains_under_torchrun(train_flags, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    superclip = ["-m", "openclip_superclip", "train", "--", *train_flags, "--batch-size", "16", "--superclip"]
    done = call(*torchrun, *superclip, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "world_size: 2" in done.stderr + done.stdout
    assert len(re.findall("Class_loss", done.stderr + done.stdout)) == 2
    assert done.stdout.count("this OpenCLIP is not patched") == 1


def test_output_that_its_reader_no_longer_wants_is_no_traceback():
    command = f"{sys.executable} -m openclip_superclip recipes | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("1", "")
