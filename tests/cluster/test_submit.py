"""`superclip submit`: the sbatch command, compared whole, and what is refused before anything is submitted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_run import write_recipe

from openclip_superclip.__main__ import main
from openclip_superclip.files import shipped_folder
from openclip_superclip.runs.recipe import read_recipe
from openclip_superclip.runs.run import Run

GOLDEN = Path(__file__).parents[1] / "golden" / "submit"
B16 = "datacomp1b/superclip_vit-b-16_512m_bs16k"
CASES = {
    "one_run": [
        B16, "--nodes", "4", "--data", "/data/{00000..41455}.tar", "--partition", "big", "--account", "vision",
        "--qos", "long", "--time", "12:00:00", "--constraint", "a100&ib", "--set", "lr=5e-4", "--gpu-batch-max", "256",
        "--sbatch", "exclude=node7", "--sbatch", "gres=gpu:8",
    ],
    "cpus_of_shared_nodes_in_apptainer": [
        B16, "--gpus-per-node", "4", "--device", "cpu", "--cpus-per-node", "16", "--sbatch", "mem=64G",
        "--out", "/runs/b16", "--apptainer", "superclip.sif", "--mounts", "/data",
    ],
}  # fmt: skip


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


def test_the_commands_of_a_study_are(monkeypatch, capsys):
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    study = [
        "datacomp_batch_size", "--slurm", "--device", "cuda", "--nodes", "2", "--gpus-per-node", "8", "--jobs", "2",
        "--set", "flags.imagenet-val=/imagenet/val", "--out", "runs/figure 4", "--dry-run",
    ]  # fmt: skip
    container = ["--container-image", "/images/superclip.sqsh", "--mounts", "/data,/scratch:/scratch"]
    assert main(["study", *study, *container]) == 0
    assert filled(capsys.readouterr().out) == (GOLDEN / "study_in_pyxis.sh").read_text()
    settings = ["--stall-minutes", "9", "--unreadable-max", "0.5", "--accept-changes", "--stage", "$TMPDIR"]
    command = ["study", "one_batch", "--slurm", "--dry-run", "--seeds", "2", "--cpus-per-node", "1"]
    assert main([*command, *settings]) == 0
    printed = capsys.readouterr().out
    submits = printed.partition("\n\n")[0].replace("studies/one_batch/", "")
    assert submits == "trials=$(sbatch --parsable trials.sh)"  # the runs follow once the trials are finished
    assert re.search(r"^#SBATCH --array=0-\d+$", printed, flags=re.MULTILINE)


def test_the_kept_script_submits_what_was_submitted(recipe, tmp_path, monkeypatch, capsys):
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >>{tmp_path}/asked\necho 17\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    assert main(["submit", str(recipe), "--gpus-per-node", "1", "--out", "my run", "--constraint", "a100&ib"]) == 0
    assert capsys.readouterr().out.startswith("job 17 is in the queue: my run, 1 × 1 processes; my run/job.sh\n")
    first = (tmp_path / "asked").read_text()
    subprocess.run(["sbatch", "--parsable", "my run/job.sh"], check=True)
    assert (tmp_path / "asked").read_text() == 2 * first == 2 * "--parsable\nmy run/job.sh\n"
    text = (tmp_path / "my run/job.sh").read_text()
    assert "\n#SBATCH '--constraint=a100&ib'\n" in text
    assert "\n    'my run'\n" in text
    assert Run.open(tmp_path / "my run").gpus_per_node == 1


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    return write_recipe(tmp_path)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--apptainer", "my image.sif", "--gpus-per-node", "1"], "'my image.sif' has a space in it"),
    (["--mounts", "/data"], "--mounts is /data; expected --container-image or --apptainer"),
    (["--set", "lr"], "--set is lr; expected KEY=VALUE"),
    (["--gpus-per-node", "5"], "a global batch of 16 does not divide among 5 GPUs"),
    (["--data", "nowhere/{0..9}.tar", "--gpus-per-node", "1"], "there is no file nowhere/0.tar"),
    (["--data", "x/{0..9}.tar", "--gpus-per-node", "4", "--skip-data-check"], "10 shards are too few for 3 slices"),
    (["--data", "x/{0..9}.tar", "--gpus-per-node", "4", "--dry-run"], "10 shards are too few for 3 slices"),
    (["--gpus-per-node", "1"], "sbatch was not found here"),
    (["--gpus-per-node", "4", "--sbatch", "gres=gpu:a100:2"], "asks for 2 GPUs, and --gpus-per-node is 4"),
    (["--sbatch", "nodes=2"], "--sbatch nodes=2: expected --nodes to say it"),
    (["--sbatch", "="], "--sbatch is '='; expected NAME=VALUE"),
    (["--setup", "nowhere.sh"], "--setup is nowhere.sh; expected a file of bash"),
    (["--gpus-per-node", "1", "--out", "model/open_clip_config.json"], "--out: model/"),
])  # fmt: skip
def test_what_cannot_run_is_refused(recipe, arguments, said, capsys):
    assert main(["submit", str(recipe), *arguments]) == 1
    assert said.format(recipe=recipe) in capsys.readouterr().err


def test_a_finished_run_is_not_submitted_again(recipe, capsys):
    run = Path("runs") / recipe.stem
    run.mkdir(parents=True)
    (run / "state.json").write_text('{"state": "finished"}')
    assert main(["submit", str(recipe), "--gpus-per-node", "1"]) == 1
    assert f"{run} is finished: give --out another folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "submit"])
def test_help_does_not_import_torch(command):
    program = (
        "import sys; from openclip_superclip.__main__ import main\n"
        f"try: main(['{command}', '--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize(("arguments", "said"), [
    (["--nodes", "2"], "--nodes applies to SLURM's jobs: add --slurm"),
    (["--slurm", "--only", "report"], "expected one of them"),
    (["--slurm", "--gpus-per-node", "5"], "a global batch of 32 does not divide among 5 GPUs"),
    (["--slurm", "--mounts", "/data"], "--mounts is /data; expected --container-image or --apptainer"),
    (["--slurm", "--nodes", "0"], "--nodes is 0; expected 1 or more"),
])  # fmt: skip
def test_a_study_that_cannot_be_submitted_is_refused(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "placebos", *arguments, *(["--dry-run"] if "--slurm" in arguments else [])]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not [*tmp_path.iterdir()]


def dry_run(arguments: list[str], capsys) -> str:
    """Returns what `superclip submit --dry-run` prints."""
    assert main(["submit", B16, *arguments, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_an_option_of_sbatch_may_have_its_dashes_and_a_percent_sign_in_a_folder_is_no_pattern(capsys):
    for given in (["--sbatch", "exclude=node7"], ["--sbatch=--exclude=node7"]):
        assert "\n#SBATCH --exclude=node7\n" in dry_run(given, capsys)
    assert "\n#SBATCH --overcommit\n" in dry_run(["--sbatch", "overcommit"], capsys)
    assert "#SBATCH '--output=runs/50%% of it/slurm-%j.out'\n" in dry_run(["--out", "runs/50% of it"], capsys)


def test_a_container_sees_what_the_run_reads_and_writes(capsys, monkeypatch):
    monkeypatch.chdir("/usr")
    data, val = ["--data", "/data/a/{00000000..00140146}.tar"], ["--set", "flags.val-data=/val/0.tar"]
    elsewhere = ["--out", "/runs/b16", *data, *val]
    image = ["--container-image", "/images/superclip.sqsh"]
    mounts = "/usr:/usr,/runs/b16:/runs/b16,/data/a:/data/a,/val:/val"
    assert f"--container-mounts={mounts} " in dry_run([*image, *elsewhere], capsys)
    assert f"--container-mounts={mounts},/nvme:/nvme " in dry_run([*image, *elsewhere, "--stage", "/nvme"], capsys)
    mounts = "/usr:/usr,/runs/b16:/runs/b16,/val:/val,/scratch:/data "
    assert f"--container-mounts={mounts}" in dry_run([*image, *elsewhere, "--mounts", "/scratch:/data"], capsys)
    bound = "apptainer exec --nv --pwd /usr --bind /usr,/data/datacomp1b x.sif"
    assert bound in dry_run(["--apptainer", "x.sif", "--out", "runs/b16"], capsys)


def test_the_sites_file_holds_defaults_that_flags_replace(tmp_path, monkeypatch, capsys):
    setup = tmp_path / "setup.sh"
    setup.write_text("module load cuda\n")
    site = tmp_path / "superclip" / "site.yaml"
    site.parent.mkdir()
    site.write_text(
        f"partition: gpu\naccount: vision\ngpus_per_node: 4\ngpu_type: a100\nsetup: {setup}\nsbatch: [exclude=node7]\n"
        "stage: /nvme\ncontainer_image: /images/superclip.sqsh\nmounts: /scratch\n"
    )
    monkeypatch.delenv("SUPERCLIP_SITE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    script = dry_run(["--out", "run"], capsys)
    for option in ("--partition=gpu", "--account=vision", "--gpus-per-node=a100:4", "--exclude=node7", "/nvme:/nvme"):
        assert option in script
    assert "\nsource run/setup.sh || {" in script
    others = ["--account", "speech", "--partition=", "--apptainer", "x.sif", "--sbatch", "exclude=node1", "--stage="]
    script = dry_run([*others, "--out", "run"], capsys)
    for option in ("--account=speech", "--exclude=node1\n", "apptainer exec"):
        assert option in script
    for option in ("#SBATCH --partition", "sqsh", "/nvme"):
        assert option not in script


@pytest.mark.parametrize(("text", "said"), [
    ("partitions: gpu", "there is no field 'partitions'"), ("time: 90", "time is 90; expected text, in quotes"),
    ("sbatch: mem=400G", "expected a list"), ("- gpu", "expected a YAML mapping"), ("{", "not a readable YAML file"),
    ("{apptainer: a, container_image: b}", "are both there"), ("setup: nowhere", "--setup is nowhere"),
])  # fmt: skip
def test_a_sites_file_that_cannot_be_is_refused(text, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "site.yaml").write_text(text)
    monkeypatch.setenv("SUPERCLIP_SITE", str(tmp_path / "site.yaml"))
    assert main(["submit", B16, "--dry-run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("queue", ["17|17|PENDING|Priority", ""])
def test_a_recipe_that_no_job_is_to_train_blocks_nothing(queue, recipe, tmp_path, monkeypatch, capsys):
    for name, text in (("sbatch", "echo 17"), ("squeue", f"echo '{queue}'")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    one_process = ["submit", str(recipe), "--gpus-per-node", "1", "--out", "run"]
    assert main([*one_process, "--set", "lr=1e-4"]) == 1  # sbatch is not there
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main(one_process) == 0
    assert read_recipe("run/recipe.yaml").lr == 1e-3
    capsys.readouterr()
    assert main([*one_process, "--set", "lr=1e-4"]) == (1 if queue else 0)
    assert ("job 17 trains run already" in capsys.readouterr().err) == bool(queue)
    assert read_recipe("run/recipe.yaml").lr == (1e-3 if queue else 1e-4)
