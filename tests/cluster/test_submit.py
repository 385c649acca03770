"""`superclip submit`: the sbatch command, compared whole, and what is refused before anything is
submitted."""

import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.tiny_run import write_recipe

from openclip_superclip.__main__ import main
from openclip_superclip.files import shipped_folder
from openclip_superclip.plans.recipe import read_recipe
from openclip_superclip.plans.run import Run
from openclip_superclip.runs.slurm import SlurmRequest, minutes_of

GOLDEN = Path(__file__).parents[1] / "golden" / "submit"
B16 = "datacomp1b/superclip_vit-b-16_512m_bs16k"
CASES = {
    "one_run": [
        B16,
        "--nodes",
        "4",
        "--data",
        "/data/{00000..41455}.tar",
        "--partition",
        "big",
        "--account",
        "vision",
        "--qos",
        "long",
        "--time",
        "12:00:00",
        "--constraint",
        "a100&ib",
        "--set",
        "lr=5e-4",
        "--gpu-batch-max",
        "256",
        "--sbatch",
        "exclude=node7",
        "--sbatch",
        "gres=gpu:8",
    ],
    "cpus_of_shared_nodes": [
        B16,
        "--gpus-per-node",
        "4",
        "--device",
        "cpu",
        "--cpus-per-node",
        "16",
        "--sbatch=--mem=64G",
        "--sbatch",
        "overcommit",
        "--out",
        "/runs/50% of it",
    ],
}


def filled(printed: str) -> str:
    """Returns what is printed of scripts, without what every one has of slurm/train.sbatch."""
    text = (shipped_folder("slurm") / "train.sbatch").read_text()
    head, body = text.partition("# <options>")[0], text.partition("# </command>\n")[2]
    assert head in printed and body in printed
    return printed.replace(head, "# …\n").replace(body, "# …\n")


@pytest.mark.parametrize("name", CASES)
def test_the_script_of_a_job_is(name, monkeypatch, capsys):
    monkeypatch.chdir("/")  # it is in the command, as is where `superclip` is
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    assert main(["submit", *CASES[name], "--dry-run"]) == 0
    assert filled(capsys.readouterr().out) == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.parametrize("name", ["mem", "mem-per-gpu", "mem-per-cpu"])
def test_a_script_requests_memory_in_one_way(name, capsys):
    assert (
        main(["submit", B16, "--gpus-per-node", "4", "--dry-run", "--sbatch", f"{name}=40G"]) == 0
    )
    assert re.findall("^#SBATCH (--mem.*)", capsys.readouterr().out, re.MULTILINE) == [
        f"--{name}=40G"
    ]


def test_the_commands_of_a_study_are(monkeypatch, capsys):
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    study = [
        "datacomp_batch_size",
        "--slurm",
        "--device",
        "cuda",
        "--nodes",
        "2",
        "--gpus-per-node",
        "8",
        "--jobs",
        "2",
        "--gpu-type",
        "a100",
        "--set",
        "flags.imagenet-val=/imagenet/val",
        "--out",
        "runs/figure 4",
        "--dry-run",
    ]
    assert main(["study", *study]) == 0
    assert filled(capsys.readouterr().out) == (GOLDEN / "study.sh").read_text()
    settings = [
        "--stall-minutes",
        "9",
        "--unreadable-max",
        "0.5",
        "--accept-changes",
        "--stage",
        "$TMPDIR",
    ]
    command = ["study", "one_batch", "--slurm", "--dry-run", "--seeds", "2", "--cpus-per-node", "1"]
    assert main([*command, *settings]) == 0
    printed = capsys.readouterr().out
    submits = printed.partition("\n\n")[0].replace("studies/one_batch/", "")
    # the runs follow once the trials are finished
    assert submits == "trials=$(sbatch --parsable trials.sh)"
    assert re.search(r"^#SBATCH --array=0-\d+$", printed, flags=re.MULTILINE)


def test_the_kept_script_submits_what_was_submitted(recipe, tmp_path, monkeypatch, capsys):
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >>{tmp_path}/asked\necho 17\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    assert (
        main(
            [
                "submit",
                str(recipe),
                "--gpus-per-node",
                "1",
                "--out",
                "my run",
                "--constraint",
                "a100&ib",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.startswith(
        "job 17 is in the queue: my run, 1 × 1 processes; my run/job.sh\n"
    )
    first = (tmp_path / "asked").read_text()
    subprocess.run(["sbatch", "--parsable", "my run/job.sh"], check=True)
    assert (tmp_path / "asked").read_text() == 2 * first == 2 * "--parsable\nmy run/job.sh\n"
    text = (tmp_path / "my run/job.sh").read_text()
    assert "\n#SBATCH '--constraint=a100&ib'\n" in text
    assert "\n    'my run'\n" in text
    assert Run.open(tmp_path / "my run").gpus_per_node == 1


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("90", 90),
        ("90:30", 90.5),
        ("1:30:00", 90),
        ("2-0", 2880),
        ("1-12:30", 2190),
        ("1-00:00:30", 1440.5),
        ("UNLIMITED", None),
        ("soon", None),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(time, minutes):
    assert minutes_of(time) == minutes


def test_a_slice_that_takes_longer_than_the_job_is_a_warning(monkeypatch, capsys):
    submit = ["submit", B16, "--gpus-per-node", "4", "--dry-run"]
    long = (
        r"superclip submit: a slice takes at least \d\.\d hours at the speed .*, and --time "
        r"is {}: a job that ends "
    )
    assert main([*submit, "--time", "2:00:00"]) == 0
    assert re.search(long.format("2:00:00"), capsys.readouterr().err)
    assert main([*submit, "--time", "2:00:00", "--set", "slices=600"]) == main(submit) == 0
    assert "a slice takes" not in capsys.readouterr().err
    monkeypatch.setenv("SBATCH_TIMELIMIT", "60")  # which sbatch prefers
    assert main([*submit, "--time", "20:00:00"]) == 0
    assert re.search(long.format("60"), capsys.readouterr().err)


def test_released_weights_are_fetched_before_the_job_is_submitted(tmp_path):
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    (tmp_path / "sbatch").write_text("#!/bin/bash\necho 17\n")
    (tmp_path / "sbatch").chmod(0o755)
    command = [
        "submit",
        "finetune/superclip_vit-b-16_51.2m_bs4k",
        "--out",
        "run",
        "--skip-data-check",
    ]
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        address = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
        variables = {
            **os.environ,
            **address,
            "HF_HOME": str(tmp_path),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        }
        superclip = [sys.executable, "-m", "openclip_superclip", *command]
        done = subprocess.run(
            superclip, cwd=tmp_path, env=variables, capture_output=True, text=True
        )
        hub.shutdown()
    assert done.returncode == 0, done.stderr
    assert any("CLIP-ViT-B-16" in path for path in asked)
    assert re.search(
        "superclip submit: pretrained is ViT-B-16:.*, which cannot be downloaded .*; the job needs",
        done.stderr,
    )
    assert done.stdout.startswith("job 17 is in the queue: run")


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    return write_recipe(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus-per-node", "5"], "a global batch of 16 does not divide among 5 GPUs"),
        (
            ["--data", "nowhere/{0..9}.tar", "--gpus-per-node", "1"],
            "there is no file nowhere/0.tar",
        ),
        (
            ["--data", "x/{0..9}.tar", "--gpus-per-node", "4", "--skip-data-check"],
            "10 shards are too few for 3 slices",
        ),
        (["--sbatch", "nodes=2"], "--sbatch nodes=2: use --nodes instead"),
        (
            ["--sbatch", "no-requeue"],
            "--sbatch no-requeue=: use a copy of slurm/train.sbatch instead",
        ),
        (["--sbatch", "="], "--sbatch is '='; expected NAME=VALUE"),
        (["--sbatch=-p=big"], "--sbatch is '-p=big'; expected NAME=VALUE with sbatch's long name"),
        (["--setup", "nowhere.sh"], "--setup is nowhere.sh; expected a bash file"),
        (["--gpus-per-node", "1", "--out", "model/open_clip_config.json"], "--out: model/"),
    ],
)
def test_what_cannot_run_is_refused(recipe, arguments, said, refused):
    assert said in refused(recipe.parent, "submit", recipe, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "2"], "--nodes applies to SLURM's jobs: add --slurm"),
        (["--slurm", "--only", "report", "--dry-run"], "expected neither --slurm nor --jobs"),
        (["--slurm", "--device", "cpu"], "--slurm: squeue does not respond"),
    ],
)
def test_a_study_that_cannot_be_submitted_is_refused(
    arguments, said, tmp_path, refused, monkeypatch
):
    (tmp_path / "squeue").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert said in refused(tmp_path, "study", "placebos", *arguments)


def test_where_slurm_is_missing_a_study_writes_its_scripts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    study = ["study", "datacomp_batch_size", "--slurm", "--gpus-per-node", "8", "--skip-data-check"]
    study += ["--val-data", "/only/on/nodes.tar"]
    assert (
        main([*study, "--set", "flags.imagenet-val=/imagenet/val", "--out", f"{tmp_path}/out"]) == 1
    )
    assert f"submit on a login node, with sbatch {tmp_path}/out/runs.sh" in capsys.readouterr().err
    assert (tmp_path / "out/runs.sh").exists()


def test_a_run_is_not_submitted_twice_nor_once_it_is_finished(
    recipe, tmp_path, monkeypatch, capsys
):
    def install(name: str, printed: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/bash\necho '{printed}'\n")
        (tmp_path / name).chmod(0o755)

    submit = ["submit", str(recipe), "--gpus-per-node", "1", "--out", "run"]
    assert main([*submit, "--set", "lr=1e-4"]) == 1
    assert "sbatch was not found here" in capsys.readouterr().err
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    install("sbatch", "17")
    install("squeue", "17|17|PENDING|Priority")
    assert main(submit) == 0  # a recipe that no job trains blocks nothing
    assert read_recipe("run/recipe.yaml").lr == 1e-3
    assert main([*submit, "--set", "lr=1e-4"]) == 1
    assert "job 17 already trains run" in capsys.readouterr().err
    install("squeue", "")
    assert main([*submit, "--set", "lr=1e-4"]) == 0
    assert read_recipe("run/recipe.yaml").lr == 1e-4
    Path("run/state.json").write_text('{"state": "finished"}')
    assert main([*submit, "--set", "lr=1e-4"]) == 1
    assert "run is finished: give --out another folder" in capsys.readouterr().err
    Path("rehearsal/uninterrupted").mkdir(parents=True)
    Path("rehearsal/uninterrupted/run.json").write_text('{"attempts": [{"job": "16"}]}')
    assert main([*submit[:-1], "rehearsal", "--rehearse"]) == 1
    assert "--out: rehearsal contains a rehearsal" in capsys.readouterr().err


def test_a_submission_prints_warnings_and_refuses_missing_shards(recipe, refused, capsys):
    submit = ["submit", str(recipe), "--gpus-per-node", "1", "--out", "run"]
    assert main([*submit, "--set", "warmup=1000", "--dry-run"]) == 0
    assert (
        "superclip submit: warm-up takes 1,000 steps, but the run has 24" in capsys.readouterr().err
    )
    (recipe.parent / "shards/000003.tar").unlink()
    assert "1 of 12 shards cannot be read, more than --unreadable-max 0.01" in refused(
        recipe.parent, *submit
    )


def test_the_kept_setup_can_be_submitted_again(tmp_path):
    setup = tmp_path / "setup.sh"
    setup.write_text("module load cuda\n")
    for given in (setup, tmp_path / "run/setup.sh"):
        SlurmRequest("cpu", 1, 1, setup=given).keep_setup(tmp_path / "run")
    assert (tmp_path / "run/setup.sh").read_text() == setup.read_text()
