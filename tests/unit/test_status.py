"""`superclip status`: a table of runs."""

import json
import os
import re
import socket
from datetime import datetime, timedelta

import pytest

from openclip_superclip.__main__ import main


def ago(seconds: float) -> str:
    return (datetime.now().astimezone() - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def write_run(folder, *, job=None, submitted=None, **state):
    """Writes what a run leaves behind in its folder, as far as the table tells of it."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").touch()
    if submitted:
        (folder / "submitted.json").write_text(json.dumps({"job": submitted}))
    if state:
        how_far = {"epoch": 1, "slices": 4, "step": 40, "steps": 128, "samples_per_second": 1234.5}
        told = {"job": job, "error": None, "expected_end": ago(-90_000), **how_far, **state}
        (folder / "state.json").write_text(json.dumps(told))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of every kind in the folder of a study and beside it."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/fast", state="running", heartbeat=ago(1), job="18", submitted="18")
    write_run(tmp_path / "runs/quiet", state="running", heartbeat=ago(90))
    write_run(tmp_path / "runs/gone", state="running", heartbeat=ago(1000))
    write_run(tmp_path / "runs/killed", state="running", heartbeat=ago(1))
    (tmp_path / "runs/killed/lock").write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1}))
    write_run(tmp_path / "runs/bad", state="failed", error="loss is nan\nsince step 7")
    refused = {"since": ago(5), "error": "--lr was 1 and is 2"}
    write_run(tmp_path / "runs/refused", state="preempted", error="stopped by SIGUSR1", refused=refused)
    write_run(tmp_path / "runs/new")
    write_run(tmp_path / "studies/lr/runs/clip_seed0", submitted="19_0")
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/state.json").write_text('{"state": "runn')
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/bash\necho '18|18|RUNNING|None'\necho '20|19_0|PENDING|Dependency'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def rows_of(printed: str) -> dict[str, list[str]]:
    """Returns the table's rows by their runs."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells[2:]}


def test_every_run_is_told_as_what_it_is(runs, capsys):
    assert main(["status"]) == 0
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    tomorrow = datetime.now() + timedelta(seconds=90_000)
    progress = "31 %, 1 of 4 slices"
    assert rows["runs/fast"][:3] == ["running", progress, "1,234"]
    assert rows["runs/fast"][3].startswith(f"{tomorrow:%Y-%m-%d}")
    assert rows["runs/fast"][4] == "18 RUNNING"
    assert rows["runs/quiet"][0].startswith("running, silent for 9")
    assert rows["runs/gone"] == ["lost", progress, "", "", ""]
    assert rows["runs/killed"][0] == "lost"
    assert rows["runs/bad"][0] == "failed"
    assert rows["runs/new"][0] == "not started"
    assert rows["runs/broken"][0] == "unreadable"
    assert rows["studies/lr/runs/clip_seed0"] == ["submitted", "", "", "", "19_0 PENDING (Dependency)"]
    assert "runs/bad: loss is nan since step 7\n" in printed
    assert re.search(r"runs/refused: the start at \S+ was refused: --lr was 1 and is 2\n", printed)
    assert "runs/gone: no heartbeat" in printed
    assert "runs/broken: state.json is not a JSON object; the next start rewrites it" in printed


def test_only_the_runs_that_are_named_are_told_and_watching_ends_with_them(runs, capsys):
    assert main(["status", "runs/bad", "runs/gone", "--watch"]) == 0
    assert rows_of(capsys.readouterr().out).keys() == {"runs/bad", "runs/gone"}


@pytest.mark.parametrize(("argv", "said"), [
    (["nowhere"], "nowhere is not a folder"), (["squeue"], "squeue is not a folder"), (["empty"], "empty holds no run"),
    ([], "there is no folder runs or studies here"),
])  # fmt: skip
def test_what_holds_no_run_is_told(argv, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "squeue").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["status", *argv]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
