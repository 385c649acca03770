"""`superclip run --rehearse`: two ranks that train, what they measure, and
what a plan makes of it."""

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
from openclip_superclip.runs.progress import read_log

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forks")]


def rehearse(folder, flags, **variables):
    """The exit code of `superclip run --rehearse` in a process of its own, and
    what it prints."""
    command = shell_words(f"run --rehearse {flags} --device cpu")
    code = run_superclip(command, folder / "printed", folder, **variables)
    return code, (folder / "printed").read_text()


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """A rehearsal by job 17, which was requeued during its first start."""
    folder = tmp_path_factory.mktemp("rehearsal")
    recipe = write_recipe(folder, batch=4, workers=2, flags={"log-every-n-steps": 4})
    out = folder / "out"
    (out / "whole").mkdir(parents=True)
    write_json(out / "whole/run.json", {"attempts": [{"job": "17"}]})
    job = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}
    # OpenCLIP rounds 11 steps up to 12, a multiple of the workers
    code, printed = rehearse(folder, f"{recipe} --nproc 2 --steps 11 --out {out}", **job)
    assert code == 0, printed
    summary = read_json(out / "rehearsal.json")
    return {"recipe": recipe, "out": out, "printed": printed, "summary": summary}


def test_it_measures_what_the_whole_run_will_take_and_a_plan_uses_it(rehearsed):
    summary, printed = rehearsed["summary"], rehearsed["printed"]
    (attempt,) = read_json(rehearsed["out"] / "whole-1/run.json")["attempts"]
    assert (attempt["state"], attempt["epoch_after"]) == ("finished", 2)
    assert len(read_log(rehearsed["out"] / "whole-1/out.log")) == 2 * 12
    run = make_run(read_recipe(str(rehearsed["recipe"])), 1, 2, device="cpu")
    speed, pause = summary["samples_per_second"], summary["seconds_between_slices"]
    assert speed > 0 <= pause < 60
    assert summary["hours"] == pytest.approx((run.samples / speed + run.num_slices * pause) / 3600)
    assert f" {significant(2 * summary['hours'], 2)} process-hours\n" in printed
    assert 0 <= summary["waiting_for_data"] <= 1
    assert summary["memory"]["peak"] > 100e6 and summary["memory"]["of"] == "process"
    assert summary["checkpoint_bytes"] > 1e6
    assert not list(rehearsed["out"].rglob("*.pt"))  # the report has read them
    advised = re.search(r"^superclip (plan RECIPE .*) uses this", printed, re.MULTILINE)
    plan = execute(advised[1].replace("RECIPE", str(rehearsed["recipe"])))
    assert f" at {float(f'{speed:g}'):,.10g} samples/s" in " ".join(plan.split())


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
    stop = f"os.kill(os.getppid(), {signal.SIGUSR1:d})\nreturn loss\n"
    plugin = write_plugin(tmp_path / "plugin", stop)
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
