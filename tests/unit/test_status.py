"""`superclip status`: a table of runs."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from support import markdown_cells, write_json, write_program
from support.training_runs import call, execute, failure

from openclip_superclip.files import shipped_folder

END = "2030-01-02T03:04:05+00:00"


def ago(seconds):
    return (datetime.now().astimezone() - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def write_run(folder, *, job=None, submitted=None, **state):
    """Writes the files of a run's folder that the table reads."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").touch()
    if submitted:
        write_json(folder / "submitted.json", {"job": submitted})
    if state:
        values = {
            "job": job,
            "error": None,
            "expected_end": END,
            "epoch": 1,
            "slices": 4,
            "step": 40,
            "steps": 128,
            "samples_per_second": 1234.5,
        }
        write_json(folder / "state.json", values | state)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of every kind in the folder of a study and beside it."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/fast", state="running", heartbeat=ago(1), job="18", submitted="18")
    write_run(tmp_path / "runs/gone", state="running", heartbeat=ago(1000))
    os.utime(tmp_path / "runs/gone/state.json", (time.time() - 1000, time.time() - 1000))
    # this clock is three minutes ahead
    write_run(tmp_path / "runs/ahead", state="running", heartbeat=ago(180))
    write_run(tmp_path / "runs/died", submitted="15")
    write_run(tmp_path / "runs/bad", state="failed", error="loss is nan\nsince step 7")
    write_run(
        tmp_path / "runs/refused",
        state="preempted",
        error="stopped by SIGUSR1",
        refused={"since": ago(5), "error": "--lr was 1 and is 2"},
    )
    write_run(tmp_path / "runs/new")
    write_run(tmp_path / "runs/cut")
    (tmp_path / "runs/cut/state.json").write_text('{"state": "runn')
    write_run(tmp_path / "runs/rehearsed", submitted="14")
    write_run(tmp_path / "runs/rehearsed/whole", state="finished")
    write_run(tmp_path / "runs/studies/lr/runs/clip_seed0", submitted="19_0")
    queue = "echo '18|RUNNING|None'\necho '19_0|PENDING|Dependency'"
    write_program(tmp_path / "squeue", f"[[ $* != *--jobs* ]] || exit 0\n{queue}")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def rows_of(printed):
    """Returns the table's rows by their runs."""
    return {row[0]: row[1:] for row in markdown_cells(printed)[2:]}


def test_the_table_shows_every_run_and_its_error(runs, capsys):
    printed = execute("status")
    progress, end = "31 %, 1 of 4 slices", datetime.fromisoformat(END).astimezone()
    assert rows_of(printed) == {
        "runs/fast": ["running", progress, "1,234", f"{end:%Y-%m-%d %H:%M}", "18 RUNNING"],
        "runs/gone": ["lost", progress, "", "", ""],
        "runs/ahead": ["running", progress, "1,234", f"{end:%Y-%m-%d %H:%M}", ""],
        "runs/died": ["not started", "", "", "", ""],
        "runs/bad": ["failed", progress, "", "", ""],
        "runs/refused": ["preempted", progress, "", "", ""],
        "runs/cut": ["damaged", "", "", "", ""],
        "runs/new": ["not started", "", "", "", ""],
        "runs/rehearsed/whole": ["finished", progress, "", "", ""],
        "runs/studies/lr/runs/clip_seed0": ["submitted", "", "", "", "19_0 PENDING (Dependency)"],
    }
    assert "runs/bad: loss is nan since step 7\n" in printed
    assert re.search(r"runs/refused: the start at \S+ was refused: --lr was 1 and is 2\n", printed)
    assert "runs/gone: no heartbeat" in printed
    assert "runs/cut: state.json cannot be read; superclip run resumes from the last" in printed
    assert (
        "runs/died: job 15 has ended before superclip run started: see the end of "
        "runs/died/slurm-*.out\n" in printed
    )
    number, _, counts = printed.splitlines()[-1].partition(": ")
    expected = (
        "1 damaged, 1 failed, 1 finished, 1 lost, 1 preempted, 1 submitted, 2 not started, "
        "2 running"
    )
    assert (number, ", ".join(sorted(counts.split(", ")))) == ("runs", expected)
    assert rows_of(execute("status runs/bad runs/gone")).keys() == {"runs/bad", "runs/gone"}
    (runs / "runs/studies/lr").rename(runs / "lr")
    assert [call("status", *folders) for folders in ([], ["runs/studies"], ["nowhere"])] == [
        0,
        1,
        1,
    ]
    errors = re.findall("error: (.*):", capsys.readouterr().err)
    assert errors == ["runs/studies contains no run", "nowhere is not a folder"]


def test_stop_asks_a_running_run_to_end_after_its_next_checkpoint(runs):
    execute("stop runs/fast")
    assert list(runs.rglob("stop_after_slice")) == [runs / "runs/fast/stop_after_slice"]


@pytest.mark.parametrize(
    "flags, error",
    [
        ("runs/studies/lr/runs/clip_seed0", "--now removes job 19_0 from the queue"),
        ("runs/bad", "runs/bad is not running"),
        ("runs/ahead --now", "is trained by process 17 on elsewhere: call superclip stop there"),
    ],
)
def test_stop_names_what_it_cannot_stop(flags, error, runs):
    owner = {"job": None, "restarts": 0, "host": "elsewhere", "pid": 17, "since": "noon"}
    write_json(runs / "runs/ahead/lock", owner)
    assert error in failure(f"stop {flags}")


def test_stop_now_cancels_the_job_or_ends_the_process(runs):
    write_program(runs / "scancel", "echo $@ >>cancelled")
    execute("stop --now runs/fast")
    execute("stop --now runs/studies/lr/runs/clip_seed0")
    assert (runs / "cancelled").read_text() == "18\n19_0\n"
    with subprocess.Popen(["sleep", "100"]) as process:
        owner = {"job": None, "restarts": 0, "host": socket.gethostname(), "since": "noon"}
        write_json(runs / "runs/ahead/lock", owner | {"pid": process.pid})
        execute("stop --now runs/ahead")
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("finished", [True, False])
def test_the_evaluation_script_takes_finished_runs_only(finished, runs):
    run = runs / ("runs/rehearsed/whole" if finished else "runs/bad")
    (run / "checkpoints").mkdir()
    for epoch in (9, 10):
        (run / f"checkpoints/epoch_{epoch}.pt").touch()
    write_program(runs / "srun", 'shift 2; [ "$2" = status ] && exec "$@"; echo "$@"')
    path = os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])
    done = subprocess.run(
        ["bash", shipped_folder("slurm") / "evaluate.sbatch", run, "--data", "x"],
        env=os.environ | {"SLURM_CPUS_PER_TASK": "1", "PATH": path},
        capture_output=True,
        text=True,
    )
    expected = f"superclip evaluate {run}/checkpoints/epoch_10.pt --data x\n"
    assert (done.returncode, done.stdout) == ((0, expected) if finished else (1, ""))


@pytest.mark.parametrize("content", ["[]", "{}", "{"])
def test_a_damaged_lock_or_submission_is_none(content, tmp_path):
    write_run(tmp_path / "run", state="running", heartbeat=ago(1))
    for name in ("lock", "submitted.json"):
        (tmp_path / "run" / name).write_text(content)
    assert "runs: 1 running" in execute(f"status {tmp_path}/run")
