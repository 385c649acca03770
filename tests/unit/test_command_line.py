"""The `superclip` command: what it answers, and what it costs to ask."""

import dataclasses
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAMLError
from support import cases, input_error, parametrize, table
from support.training_runs import execute
from tqdm import tqdm

from openclip_superclip import __main__, __version__
from openclip_superclip.__main__ import COMMANDS
from openclip_superclip.commands import shared_options
from openclip_superclip.flags import Config, DataConfig
from openclip_superclip.study.training import show_progress
from openclip_superclip.trainer.output_folder import make_folder

OUR_FIELDS = [*dataclasses.fields(Config), *dataclasses.fields(DataConfig)]
OUR_FLAGS = ["--superclip", *(field.metadata["flag"] for field in OUR_FIELDS)]
SCRIPT = [str(Path(sys.executable).with_name("superclip"))]


def call(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_it_answers_without_importing_torch():
    plan = "plan datacomp1b/superclip_vit-b-16_512m_bs16k"
    refused = ["--nodes 3", "--nodes 128 --gpus-per-node 8", "--set samples=1e30"]
    asked = ["--help", "", "--version", "train --help", "plan --help", "submit --help", "plan"]
    asked += [plan, "run --help", *(f"{plan} {flags}" for flags in refused)]
    program = (
        "import sys; from openclip_superclip.__main__ import main\n"
        f"for command in {asked!r}:\n try: main(command.split())\n except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = call(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(refused)
    assert done.stdout.count(f"openclip-superclip {__version__}\n") == 1
    listed = re.findall(
        r"^  (\w+)  ", done.stdout.partition("usage: superclip train")[0], re.MULTILINE
    )
    assert listed == 2 * [*COMMANDS]
    _, _, group = done.stdout.partition("\nSuperCLIP:\n")
    assert (
        re.findall(r"^  (--[\w-]+)", group.partition("usage: superclip plan")[0], re.MULTILINE)
        == OUR_FLAGS
    )


def test_without_the_extras_every_command_has_its_help_and_the_demo_names_what_to_install():
    """Without the extra `eval` alone, everything that the extra `report`
    promises imports."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(extras := ['matplotlib', 'scipy',"
        " 'transformers', 'clip_benchmark']))\n"
        "from openclip_superclip.__main__ import COMMANDS, main\n"
        "for argv in [*([name, '--help'] for name in COMMANDS), ['demo']]:\n"
        " try: main(argv)\n except SystemExit as exit: assert not exit.code\n"
        "for extra in extras[:3]: del sys.modules[extra]\n"
        "import openclip_superclip.commands.demo, openclip_superclip.commands.study\n"
        "import openclip_superclip.study.figures, openclip_superclip.evaluation.score_figure"
    )
    done = call(sys.executable, "-c", program)
    assert (done.returncode, done.stderr.count("error: ")) == (0, 1), done.stderr
    assert (
        "superclip demo needs matplotlib, which is not installed: install the extra [report]"
        in done.stderr
    )


@cases("command, error", table("plans: unknown commands"))
def test_unknown_commands_and_flags_are_named_in_one_line_with_exit_code_2(command, error):
    done = call(*SCRIPT, *command.split())
    assert (done.returncode, done.stderr) == (2, f"error: {error}\n")


def test_the_home_folder_in_a_flag_that_a_shell_leaves_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shared_options.expanded_path("~/runs") == tmp_path / "runs"


@parametrize("argv", ["--help", "plan"])
def test_a_closed_output_is_not_an_error(argv):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [*SCRIPT, argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as gone:
        gone.stdout.close()
        assert gone.stderr.read() == b""
    assert gone.returncode == 1


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*SCRIPT, "plan"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "error: the output cannot be written (No space left on device)\n",
    )


@parametrize(
    "error, line",
    [
        (SyntaxError("never closed", ("p.py", 1, 1, "(")), "never closed (p.py, line 1)"),
        (YAMLError("line 1\n  column 2"), "line 1 column 2"),
        (KeyError("width"), "'width'"),
        (RuntimeError(), ""),
    ],
)
def test_an_error_is_one_line_and_a_traceback_with_superclip_debug(
    error, line, monkeypatch, capsys
):
    def run(_):
        raise error

    monkeypatch.setattr(__main__, "_run", run)
    assert __main__.main([]) == 1
    text = f"{type(error).__name__}: {line}" if line else type(error).__name__
    assert capsys.readouterr().err == (f"error: {text} (SUPERCLIP_DEBUG=1 prints the traceback)\n")
    monkeypatch.setenv("SUPERCLIP_DEBUG", "1")
    with pytest.raises(type(error)):
        __main__.main([])


def test_a_stopped_training_says_how_to_continue(monkeypatch, capsys):
    def stopped(name, argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "_call", stopped)
    assert [__main__.main([name]) for name in ("train", "plan")] == [130, 130]
    assert capsys.readouterr().err.splitlines() == [
        "superclip train: stopped by SIGINT; its --name with --resume latest continues it "
        "after its last checkpoint",
        "superclip plan: stopped by SIGINT",
    ]


def test_the_name_of_a_run_that_exists_names_resume_latest(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/out.log").touch()
    options = SimpleNamespace(logs=str(tmp_path), name="run", resume=None)
    with input_error(r"--name: .*/run contains a run: --resume latest continues it; or give"):
        make_folder(options)


def test_the_bar_of_a_resumed_study_shows_no_negative_time():
    bar = tqdm(total=100, initial=60, smoothing=0, file=io.StringIO())
    for trained in (60, 40, 50):  # the run began again at its checkpoint
        show_progress(bar, trained)
        bar.start_t -= 10
        assert bar.n >= bar.initial
    assert "-" not in bar.format_meter(**bar.format_dict).partition("<")[2]


def test_the_remaining_time_of_a_study_does_not_count_the_seconds_before_the_first_step():
    bar = tqdm(total=100, smoothing=0, file=io.StringIO())
    bar.start_t -= 1000
    for trained in (10, 20):
        show_progress(bar, trained)
        bar.start_t -= 10
    assert "[00:20<01:2" in bar.format_meter(**bar.format_dict)


def test_doctor_prints_ten_lines():
    lines = dict(line.split(":", 1) for line in execute("doctor").splitlines())
    assert len(lines) == 10
    assert lines["openclip-superclip"].split()[0] == __version__
    assert "adapter v" in lines["OpenCLIP"] and "patched" in lines["OpenCLIP"]


def test_a_training_loads_nothing_of_what_measures():
    program = (
        "import sys, openclip_superclip.plugin\n"
        "from openclip_superclip.trainer.train import train\n"
        "try: train(['--superclip', '--help'])\n"
        "except SystemExit: pass\n"
        "measuring = {'demo', 'evaluation', 'study', 'words'}\n"
        "folders = {name.split('.')[1] for name in sys.modules if 'superclip.' in name}\n"
        "loaded = folders & measuring\n"
        "assert 'openclip_superclip.trainer.hook_calls' in sys.modules and not loaded, loaded"
    )
    done = call(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
