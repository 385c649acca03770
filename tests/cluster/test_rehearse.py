"""`superclip rehearse`: two ranks that are stopped and resumed, what they measure, and what a
plan makes of it."""

import json
import re
import signal

import pytest
from support.plugins import write_plugin, write_slow_loss
from support.tiny_run import write_recipe
from support.training_runs import run_superclip

from openclip_superclip.__main__ import main
from openclip_superclip.files import write_json
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe import read_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forks")]

HERE = ["--device", "cpu"]


def job(number: str, restarts: str) -> dict[str, str]:
    return {"SLURM_JOB_ID": number, "SLURM_RESTART_COUNT": restarts}


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> dict:
    """A rehearsal by job 17, which was requeued during its first start."""
    folder = tmp_path_factory.mktemp("rehearsal")
    recipe = write_recipe(folder, batch=4, flags={"log-every-n-steps": 4})
    out = folder / "out"
    command = ["rehearse", str(recipe), *HERE, "--nproc", "2", "--steps", "12", "--out", str(out)]
    slow = write_slow_loss(folder / "slow", 0.1)
    (out / "uninterrupted").mkdir(parents=True)
    write_json(out / "uninterrupted/run.json", {"attempts": [{"job": "17"}]})
    code = run_superclip(
        command, folder / "printed", folder, PYTHONPATH=str(slow), **job("17", "1")
    )
    printed = (folder / "printed").read_text()
    assert code == 0, printed
    summary = json.loads((out / "rehearsal.json").read_text())
    return {"recipe": recipe, "out": out, "printed": printed, "summary": summary}


def test_a_rehearsal_stops_itself_resumes_and_repeats_every_loss(rehearsed):
    attempts = json.loads((rehearsed["out"] / "interrupted-1/run.json").read_text())["attempts"]
    assert [(one["state"], one["error"]) for one in attempts] == [
        ("preempted", "stopped by SIGUSR1"),
        ("finished", None),
    ]
    assert rehearsed["summary"]["resumed"] == {
        "steps": 24,
        "different": 0,
        "missing": 0,
        "largest": 0,
        "equal_weights": True,
        "repeats": True,
    }
    assert "with equal losses in all 24 steps and equal weights" in rehearsed["printed"]


def test_it_measures_what_the_whole_run_will_take(rehearsed):
    summary = rehearsed["summary"]
    plan = make_run(read_recipe(str(rehearsed["recipe"])), 1, 2, device="cpu")
    speed, checkpoint = summary["samples_per_second"], summary["checkpoint"]
    assert 0 < speed["low"] <= speed["median"] <= speed["high"]
    assert summary["hours"]["high"] == pytest.approx(
        (plan.samples / speed["low"] + plan.num_slices * checkpoint["seconds"]) / 3600
    )
    assert " hours without validation (" in rehearsed["printed"]
    assert summary["gpu_hours"]["median"] == 2 * summary["hours"]["median"]
    assert 0 <= summary["waiting_for_data"] <= 1
    assert summary["memory"]["peak"] > 100e6 and summary["memory"]["of"] == "process"
    assert checkpoint["bytes"] > 1e6 and checkpoint["at_most"] == plan.max_checkpoints
    assert not list(rehearsed["out"].rglob("*.pt"))  # the checkpoints have told what they can


def test_a_rehearsal_fails_if_the_resumed_training_is_another(tmp_path):
    disturbed = (
        "def disturbed(**features):\n"
        "    time.sleep(0.1)  # the signal must come before the last step\n"
        "    return {name: (2 if args.resume else 1) * value for name, value in "
        "loss(**features).items()}\nreturn disturbed\n"
    )
    plugin = write_plugin(tmp_path / "plugin", disturbed)
    recipe, out = write_recipe(tmp_path, batch=4), tmp_path / "out"
    command = ["rehearse", recipe, *HERE, "--steps", "12", "--out", out]
    assert run_superclip(command, tmp_path / "printed", tmp_path, PYTHONPATH=str(plugin)) == 1
    other = r"other losses in \d+ of 24 steps, by up to \S+, other weights\n"
    printed = (tmp_path / "printed").read_text()
    assert re.search(f"the resumed training differs from the uninterrupted one: {other}$", printed)
    assert re.search(f"resumed     NOT equal: {other}", printed)
    assert json.loads((out / "rehearsal.json").read_text())["resumed"]["repeats"]


def test_a_plan_uses_it(rehearsed, capsys):
    command = ["plan", str(rehearsed["recipe"]), *HERE, "--gpus-per-node", "2"]
    assert main([*command, "--rehearsal", str(rehearsed["out"] / "rehearsal.json"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (
        printed["cost"]["samples_per_second"]
        == rehearsed["summary"]["samples_per_second"]["median"]
    )


@pytest.mark.parametrize(
    "environment",
    [{}, job("18", "1"), job("17", "0"), job("17", "3")],
    ids=["shell", "other job", "step", "restarts"],
)
def test_only_a_requeued_job_uses_the_folder_of_a_rehearsal_again(
    environment, rehearsed, monkeypatch, capsys
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (
        main(
            [
                "rehearse",
                str(rehearsed["recipe"]),
                *HERE,
                "--nproc",
                "2",
                "--out",
                str(rehearsed["out"]),
            ]
        )
        == 1
    )
    assert (
        "contains a rehearsal: remove it, or give --out another folder" in capsys.readouterr().err
    )


def test_a_rehearsal_that_reaches_its_time_limit_fails_instead_of_being_requeued(
    rehearsed, tmp_path
):
    plugin = write_plugin(
        tmp_path / "plugin", f"os.kill(os.getppid(), {signal.SIGUSR1:d})\nreturn loss\n"
    )
    command, printed = (
        ["rehearse", rehearsed["recipe"], *HERE, "--out", tmp_path / "out"],
        tmp_path / "printed",
    )
    assert run_superclip(command, printed, rehearsed["recipe"].parent, PYTHONPATH=str(plugin)) == 1
    assert "superclip rehearse: stopped by SIGUSR1" in printed.read_text()


def test_a_rehearsal_is_submitted_with_a_folder_of_its_own(rehearsed, capsys):
    command = ["submit", str(rehearsed["recipe"]), "--gpus-per-node", "2", "--rehearse"]
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"\n    runs/{rehearsed['recipe'].stem}-rehearsal\n" in printed
    assert 'command=("${superclip[@]}" rehearse "$run")' in printed
    assert main([*command, "--accept-changes"]) == 1
    assert "--accept-changes has no effect with --rehearse" in capsys.readouterr().err
