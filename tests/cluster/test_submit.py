"""`superclip submit`: the sbatch command, compared whole, and what is
refused before anything is submitted."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import GOLDEN, cases, parametrize, refusals, succeed, table, write_json, write_program
from support.hub import serving
from support.tiny_run import write_recipe
from support.training_runs import execute, failure

from openclip_superclip.commands.submit import minutes_of
from openclip_superclip.files import shipped_folder
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.plans.run import Run
from openclip_superclip.runs.lock import lock
from openclip_superclip.runs.slurm import Placement, SlurmRequest

SUBMIT_B16 = "submit datacomp1b/superclip_vit-b-16_512m_bs16k --gpus-per-node 4 --dry-run"


def golden(name):
    return (GOLDEN / f"submit/{name}.sh").read_text()


def filled(printed):
    """Returns what is printed of scripts, without what every one has of
    slurm/train.sbatch."""
    text = (shipped_folder("slurm") / "train.sbatch").read_text()
    head, body = text.partition("# <options>")[0], text.partition("# </command>\n")[2]
    assert head in printed and body in printed
    return printed.replace(head, "# …\n").replace(body, "# …\n")


@pytest.fixture
def at_root(monkeypatch):
    """The working directory and the place of `superclip`, which are in the
    scripts."""
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")


@cases("name, arguments", table("plans: submitted jobs"))
def test_the_script_of_a_job_is(name, arguments, at_root):
    plan, _, script = execute(f"submit {arguments} --dry-run").partition("#!/bin/bash")
    assert "\n  batch " in plan
    assert filled(f"#!/bin/bash{script}") == golden(name)


@parametrize("name", ["mem", "mem-per-gpu", "mem-per-cpu"])
def test_a_script_requests_memory_in_one_way(name):
    script = execute(f"{SUBMIT_B16} --sbatch {name}=40G")
    assert re.findall("^#SBATCH (--mem.*)", script, re.MULTILINE) == [f"--{name}=40G"]


def test_the_commands_of_a_study_are(at_root):
    study = (
        "study datacomp_batch_size --slurm --device cuda --nodes 2 --gpus-per-node 8 --jobs 2 "
        "--gpu-type a100 --set flags.imagenet-val=/imagenet/val --out 'runs/figure 4' --dry-run"
    )
    assert filled(execute(study)) == golden("study")


def test_the_kept_script_submits_what_was_submitted(recipe, tmp_path, monkeypatch):
    asked = Path("asked")
    write_program(tmp_path / "bin/sbatch", 'printf "%s\\n" $SLURM_CLUSTERS "$@" >>asked\necho 17')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_CLUSTERS", "large")
    submit = f"submit {recipe} --gpus-per-node 1 --out 'my run' --constraint 'a100&ib'"
    assert execute(submit).startswith(
        "job 17 is in the queue: my run, 1 × 1 processes; my run/job.sh\n"
    )
    first = asked.read_text()
    subprocess.run(["sbatch", "--parsable", "my run/job.sh"], check=True)
    assert asked.read_text() == 2 * first == 2 * "large\n--parsable\nmy run/job.sh\n"
    text = (tmp_path / "my run/job.sh").read_text()
    assert "\n#SBATCH '--constraint=a100&ib'\n" in text
    assert "\n    'my run'\n" in text
    assert Run.open(tmp_path / "my run").gpus_per_node == 1


BREAKS = ["\ntouch run\n", "\rtouch run", "\x1b2J", "\x85touch run"]
NAMING = [
    "submit {recipe} --out",
    "submit {recipe} --partition",
    "submit {recipe} --account",
    "submit {recipe} --gpu-type",
    "submit {recipe} --sbatch comment",
    "study datacomp_batch_size --set flags.imagenet-val=val --slurm --device cuda --out",
    "study datacomp_batch_size --set flags.imagenet-val=val --slurm --device cuda --qos",
]


@parametrize(
    "command, text",
    [*((command, BREAKS[0]) for command in NAMING), *((NAMING[0], text) for text in BREAKS[1:])],
    ids=ascii,
)
def test_no_control_character_reaches_a_script(command, text, recipe, tmp_path):
    command = f"{command.format(recipe=recipe)}={shlex.quote(text)} --dry-run"
    escaped = text.encode("unicode_escape").decode()
    error = failure(command)
    assert "contains control characters" in error and escaped in error
    assert text not in error


def test_a_recipes_file_with_a_line_break_in_its_name_is_refused(recipe, tmp_path):
    renamed = recipe.rename(tmp_path / f"{BREAKS[0]}.yaml")
    assert "contains control characters" in failure(f"submit {shlex.quote(str(renamed))}")
    assert not Path("runs").exists()


@cases("time, minutes", table("plans: time limits"))
def test_a_time_limit_is_read_as_sbatch_reads_it(time, minutes):
    assert minutes_of(time) == minutes


def test_a_slice_that_takes_longer_than_the_job_is_a_warning(monkeypatch):
    def advice(flags):
        printed = " ".join(execute(f"{SUBMIT_B16} --set slices=600 {flags}").split())
        return re.findall(
            r"a slice takes 0\.61 hours, .*: --set slices=(\d+) .* to (\S+ min)", printed
        )

    assert advice("--time 30") == [("1559", "15 min")]
    assert advice("--time 1:00:00") == advice("--time 0") == advice("") == []
    monkeypatch.setenv("SBATCH_TIMELIMIT", "30")  # which sbatch prefers
    assert advice("--time 20:00:00")


def test_released_weights_are_fetched_before_the_job_is_submitted(tmp_path):
    write_program(tmp_path / "sbatch", "echo 17")
    command = (
        f"{sys.executable} -m openclip_superclip submit "
        "finetune/superclip_vit-b-16_51.2m_bs4k --out run --skip-data-check"
    )
    with serving(tmp_path / "hub") as hub:  # which has nothing
        variables = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        }
        done = succeed(command.split(), cwd=tmp_path, env=variables)
    assert any("CLIP-ViT-B-16" in path for path in hub.requests)
    assert re.search(
        "superclip submit: pretrained is ViT-B-16:.*, which cannot be downloaded .*; the job needs",
        done.stderr,
    )
    assert done.stdout.startswith("job 17 is in the queue: run")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    return write_recipe(tmp_path)


@cases("arguments, said", refusals("submit"))
def test_what_cannot_run_is_refused(recipe, arguments, said, refused):
    assert said in refused(recipe.parent, f"submit {recipe} {arguments}")


@cases("arguments, said", refusals("study_on_slurm"))
def test_a_study_that_cannot_be_submitted_is_refused(
    arguments, said, tmp_path, refused, monkeypatch
):
    (tmp_path / "squeue").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert said in refused(tmp_path, f"study demo {arguments}")


def test_where_slurm_is_missing_a_study_writes_its_scripts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    study = (
        "study datacomp_batch_size --slurm --gpus-per-node 8 --skip-data-check --val-data "
        f"/only/on/nodes.tar --set flags.imagenet-val=/imagenet/val --out {tmp_path}/out"
    )
    assert f"submit on a login node, with sbatch {tmp_path}/out/runs.sh" in failure(study)
    assert (tmp_path / "out/runs.sh").exists()


def test_a_run_is_not_submitted_twice_nor_once_it_is_finished(recipe, tmp_path, monkeypatch):
    submit = f"submit {recipe} --gpus-per-node 1 --out run"
    other = f"{submit} --set lr=1e-4"
    assert "sbatch was not found here" in failure(other)
    monkeypatch.setenv("PATH", ".")
    Path("sbatch").touch()
    assert "sbatch cannot be started here (Permission denied): submit" in failure(other)
    write_program(tmp_path / "sbatch", "echo 17")
    write_program(tmp_path / "squeue", "echo '17|PENDING|Priority'")
    with lock(tmp_path / "run/submitting", Placement()):
        assert "run belongs to another run" in failure(submit)
    execute(submit)  # a recipe that no job trains blocks nothing
    assert read_recipe("run/recipe.yaml").lr == 1e-3
    assert "job 17 already trains run" in failure(other)
    write_program(tmp_path / "squeue", "echo")
    execute(other)
    assert read_recipe("run/recipe.yaml").lr == 1e-4
    write_json(Path("run/state.json"), {"state": "finished"})
    assert "run is finished: give --out another folder" in failure(other)
    Path("rehearsal/whole").mkdir(parents=True)
    write_json(Path("rehearsal/whole/run.json"), {"attempts": [{"job": "16"}]})
    error = failure(f"submit {recipe} --gpus-per-node 1 --out rehearsal --rehearse")
    assert "--out: rehearsal contains a rehearsal" in error


def test_a_submission_prints_warnings_and_refuses_missing_shards(recipe, refused):
    submit = f"submit {recipe} --gpus-per-node 1 --out run"
    plan = " ".join(execute(f"{submit} --set warmup=1000 --dry-run").split())
    assert "warning warm-up takes 1,000 steps, but the run has 24" in plan
    (recipe.parent / "shards/000003.tar").unlink()
    error = refused(recipe.parent, submit)
    assert "1 of 12 shards cannot be read, more than --unreadable-max 0.01" in error


def test_the_kept_setup_can_be_submitted_again(tmp_path):
    setup = tmp_path / "cuda.sh"
    setup.write_text("module load cuda\n")
    for given in (setup, tmp_path / "setup.sh"):
        SlurmRequest("cpu", 1, 1, setup=given).keep_setup(tmp_path)
    assert (tmp_path / "setup.sh").read_text() == "module load cuda\n"
