"""`superclip run --rehearse`: two ranks that are stopped and resumed, what they
measure, and what a plan makes of it."""

import json
import re
import signal

import pytest
from support import cases, read_json, table, write_json
from support.plugins import write_plugin
from support.tiny_run import write_recipe
from support.training_runs import execute, failure, run_superclip, shell_words

from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.rendering import significant

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forks")]


def rehearse(folder, flags, **variables):
    """The exit code of `superclip run --rehearse` in a process of its own, and
    what it prints."""
    command = shell_words(f"run --rehearse {flags} --device cpu")
    code = run_superclip(command, folder / "printed", folder, **variables)
    return code, (folder / "printed").read_text()


def write_slow_slice(folder, factor=1):
    """Writes a plugin that slows the slice in which a rehearsal stops, and
    multiplies the losses of the resumed training."""
    slow = (
        "steps = itertools.count()\n"
        "def disturbed(**features):\n"
        "    if args.name.startswith('interrupted') and not args.resume and next(steps) >= 12:\n"
        "        time.sleep(0.2)\n"
        f"    factor = {factor} if args.resume else 1\n"
        "    losses = loss(**features)\n"
        "    return {name: factor * value for name, value in losses.items()}\n"
        "return disturbed\n"
    )
    return write_plugin(folder, slow)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """A rehearsal by job 17, which was requeued during its first start."""
    folder = tmp_path_factory.mktemp("rehearsal")
    recipe = write_recipe(folder, batch=4, flags={"log-every-n-steps": 4})
    out, slow = folder / "out", write_slow_slice(folder / "slow")
    (out / "uninterrupted").mkdir(parents=True)
    write_json(out / "uninterrupted/run.json", {"attempts": [{"job": "17"}]})
    flags = f"{recipe} --nproc 2 --steps 12 --out {out}"
    job = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}
    code, printed = rehearse(folder, flags, PYTHONPATH=str(slow), **job)
    assert code == 0, printed
    summary = read_json(out / "rehearsal.json")
    return {"recipe": recipe, "out": out, "printed": printed, "summary": summary}


def test_a_rehearsal_stops_itself_resumes_and_repeats_every_loss(rehearsed):
    attempts = read_json(rehearsed["out"] / "interrupted-1/run.json")["attempts"]
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


def test_it_measures_what_the_whole_run_will_take_and_a_plan_uses_it(rehearsed):
    summary = rehearsed["summary"]
    run = make_run(read_recipe(str(rehearsed["recipe"])), 1, 2, device="cpu")
    speed, checkpoint = summary["samples_per_second"], summary["checkpoint"]
    assert 0 < speed["low"] <= speed["median"] <= speed["high"]
    assert summary["hours"]["high"] == pytest.approx(
        (run.samples / speed["low"] + run.num_slices * checkpoint["seconds"]) / 3600
    )
    assert " hours without validation (" in rehearsed["printed"]
    assert f" {significant(2 * summary['hours']['median'])} process-hours\n" in rehearsed["printed"]
    assert 0 <= summary["waiting_for_data"] <= 1
    assert summary["memory"]["peak"] > 100e6 and summary["memory"]["of"] == "process"
    assert checkpoint["bytes"] > 1e6 and checkpoint["at_most"] == run.max_checkpoints
    assert not list(rehearsed["out"].rglob("*.pt"))  # the checkpoints have told what they can
    advised = re.search(
        r"^superclip (plan RECIPE .*) uses this", rehearsed["printed"], re.MULTILINE
    )
    plan = execute(f"{advised[1].replace('RECIPE', str(rehearsed['recipe']))} --json")
    assert json.loads(plan)["cost"]["samples_per_second"] == speed["median"]


def test_a_rehearsal_fails_if_the_resumed_training_is_another(tmp_path):
    plugin = write_slow_slice(tmp_path / "plugin", factor=2)
    flags = f"{write_recipe(tmp_path, batch=4)} --steps 12 --out {tmp_path}/out"
    code, printed = rehearse(tmp_path, flags, PYTHONPATH=str(plugin))
    assert code == 1
    other = r"the losses differ in \d+ of 24 steps, by up to \S+, and the weights differ\n"
    assert re.search(f"the resumed training differs from the uninterrupted one: {other}$", printed)
    assert re.search(f"resumed     NOT equal: {other}", printed)
    assert read_json(tmp_path / "out/rehearsal.json")["resumed"]["repeats"]


@cases("environment", table("runs: starts that repeat a rehearsal"))
def test_only_a_requeued_job_uses_the_folder_of_a_rehearsal_again(
    environment, rehearsed, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    error = failure(f"run --rehearse {rehearsed['recipe']} --device cpu --out {rehearsed['out']}")
    assert "contains a rehearsal: remove it, or give --out another folder" in error


def test_a_rehearsal_that_reaches_its_time_limit_fails_instead_of_being_requeued(
    rehearsed, tmp_path
):
    plugin = write_plugin(
        tmp_path / "plugin",
        "if args.name == 'interrupted' and not os.path.exists('interrupted/ranks/local-1'):\n"
        f"    os.kill(os.getppid(), {signal.SIGUSR1:d})\nreturn loss\n",
    )
    flags = f"{rehearsed['recipe']} --steps 4 --out ."
    code, printed = rehearse(tmp_path, flags, PYTHONPATH=str(plugin))
    assert code == 1
    assert "superclip run --rehearse: stopped by SIGUSR1" in printed


def test_a_rehearsal_is_submitted_with_a_folder_of_its_own(rehearsed):
    submit = f"submit {rehearsed['recipe']} --gpus-per-node 2 --rehearse"
    printed = execute(f"{submit} --dry-run")
    assert f"\n    runs/{rehearsed['recipe'].stem}-rehearsal\n" in printed
    assert 'command=("${superclip[@]}" run --rehearse "$run")' in printed
    error = failure(f"{submit} --accept-changes")
    assert "--accept-changes has no effect with --rehearse" in error
