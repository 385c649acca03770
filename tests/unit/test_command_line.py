"""The `superclip` command: what it answers, and what it costs to ask."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openclip_superclip import __version__
from openclip_superclip.__main__ import COMMANDS
from openclip_superclip.config import Config, DataConfig

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


@pytest.mark.parametrize("argv", [["--help"], ["plan", "--help"], ["recipes"]], ids=" ".join)
def test_it_ends_without_a_word_where_its_reader_has_gone(argv):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([*SCRIPT, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as gone:
        gone.stdout.close()
        assert gone.stderr.read() == b""
    assert gone.returncode == 1


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["superclip", "python -m openclip_superclip"])
def test_help_lists_every_command(command):
    done = call(*command, "--help")
    assert done.returncode == 0
    assert re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["superclip", "python -m openclip_superclip"])
def test_version_is_the_packages(command):
    assert call(*command, "--version").stdout == f"openclip-superclip {__version__}\n"


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["superclip", "python -m openclip_superclip"])
def test_an_unknown_command_is_named_in_one_line_with_the_nearest_and_exits_with_2(command):
    done = call(*command, "trian")
    assert done.returncode == 2
    expected = "error: there is no command 'trian': did you mean superclip train? superclip --help lists all\n"
    assert done.stderr == expected


def test_train_help_shows_our_flags_in_a_group_of_their_own():
    done = call(*MODULE, "train", "--help")
    assert done.returncode == 0
    _, group = done.stdout.split("\nSuperCLIP:\n")
    assert re.findall(r"^  (--[\w-]+)", group, re.MULTILINE) == OUR_FLAGS
    assert "--train-data" in done.stdout


@pytest.mark.parametrize("argv", ["--help", "recipes"])
def test_output_to_a_full_disk_is_told_in_one_line(argv):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m openclip_superclip {argv} > /dev/full"], capture_output=True
    )
    assert (done.returncode, done.stderr) == (1, b"error: the output cannot be written (No space left on device)\n")


def test_output_that_its_reader_no_longer_wants_is_no_traceback():
    command = f"{sys.executable} -m openclip_superclip recipes | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("1", "")


def complete(line: str, folder: Path) -> list[str]:
    """What the shell is offered at the end of a line."""
    answer = folder / "answer"
    environment = os.environ | {
        "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n",
    }  # fmt: skip
    subprocess.run(MODULE, env=environment, timeout=120, check=False)
    return [word.strip() for word in answer.read_text().split("\n")]


def test_the_shell_completes_commands_and_their_flags(tmp_path):
    assert complete("superclip do", tmp_path) == ["doctor"]
    assert set(COMMANDS) <= set(complete("superclip ", tmp_path))
    assert complete("superclip train --superclip-we", tmp_path) == ["--superclip-weight"]
    assert complete("superclip import --gl", tmp_path) == ["--global-batch"]


def test_doctor_prints_ten_lines():
    done = call(*MODULE, "doctor")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert len(lines) == 10
    assert lines["openclip-superclip"].split()[0] == __version__
    assert "adapter v" in lines["OpenCLIP"] and "patched" in lines["OpenCLIP"]
    assert "superclip" in lines["plugins"]
    assert "GB free" in lines["disk"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_keeps_within_100_columns(command):
    done = call(*MODULE, *command.split(), "--help")
    assert [line for line in done.stdout.splitlines() if len(line) > 100] == []


def test_only_evaluate_needs_clip_benchmark():
    """Everything that the extra `report` promises imports without the extra `eval`."""
    program = (
        "import sys; sys.modules['clip_benchmark'] = None\n"
        "import openclip_superclip.commands.demo, openclip_superclip.commands.study\n"
        "import openclip_superclip.studies.figures, openclip_superclip.studies.report"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
