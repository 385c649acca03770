"""Outputs: a command replaces only what it has written, and copies of
private files stay private."""

import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from support import cases, input_error, parametrize, write_json
from support.data import squares
from support.models import random_weights, write_model
from support.tiny_run import write_recipe
from support.training_runs import execute, failure

from openclip_superclip.checkpoints.weights import save_weights
from openclip_superclip.files import atomic_output, check_results
from openclip_superclip.runs.slurm import SlurmRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table, an image, a model and its weights, and a recipe."""
    folder = tmp_path_factory.mktemp("outputs")
    model = write_model(folder / "model")
    for name in ("one", "two"):
        save_weights(random_weights(model), folder / f"{name}.pt")
    (folder / "images").mkdir()
    squares({"red": (0, 0)}).save(folder / "images/a.png")
    (folder / "pairs.csv").write_text("image,caption\nimages/a.png,red\n")
    write_recipe(folder / "of recipe").rename(folder / "recipe.yaml")
    return folder


FOREIGN = [
    ("export one.pt --model local-dir:model --overwrite --out theirs", "theirs/README.md"),
    ("words images --model model --overwrite --out site", "site/index.html"),
    ("words images/a.png --model model --heatmap --overwrite --out site", "site/a.words.png"),
    ("average one.pt two.pt --overwrite --out site", "site/mean.pt"),
    ("evaluate run --out site", "site/scores.json"),
    ("study demo --device cpu --out site", "site/study.md"),
    ("demo --out site", "site/study.png"),
    ("demo --data-only --out site", "site/model/open_clip_config.json"),
    ("demo --data-only --out site", "site/data/scenes/000000.tar"),
    ("run recipe.yaml --rehearse --device cpu --out site", "site/rehearsal.json"),
    ("run recipe.yaml --device cpu --set lr=1e-4 --out site", "site/recipe.yaml"),
    ("submit recipe.yaml --device cpu --out site", "site/job.sh"),
]


@parametrize("command, file", FOREIGN)
def test_a_file_of_another_program_is_not_replaced(command, file, folder, refused):
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"mine": 1}\n')
    try:
        assert re.search("this command|site is a folder", refused(folder, command))
        assert path.read_text() == '{"mine": 1}\n'
    finally:
        path.unlink()


REPLACING = {
    "export": ("export one.pt --model local-dir:model --out", "exported"),
    "average": ("average one.pt two.pt --out", "mean.safetensors"),
    "frequencies": ("frequencies pairs.csv --tokenizer-of ViT-B-32 --out", "counts.safetensors"),
}


@pytest.fixture
def outputs(folder, monkeypatch):
    """The outputs of all commands that replace their own."""
    monkeypatch.chdir(folder)
    for command, out in REPLACING.values():
        execute(f"{command} {out}")
    yield folder
    for _, out in REPLACING.values():
        path = folder / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@cases("command, out", REPLACING)
def test_an_output_is_replaced_only_with_overwrite(command, out, outputs):
    assert "exists, and --overwrite is not given" in failure(f"{command} {out}")
    assert execute(f"{command} {out} --overwrite")


def test_no_command_replaces_its_input(outputs):
    for command, _ in REPLACING.values():
        error = failure(f"{command} {command.split()[1]} --overwrite")
        assert re.search("which is an input|one.pt is a file", error)


@parametrize("name", ["notes.txt", "superclip.json"])
def test_an_export_with_an_added_file_or_without_a_record_is_not_replaced(name, outputs):
    path = outputs / "exported" / name
    path.write_text("mine")
    command, out = REPLACING["export"]
    assert "which this command has not written" in failure(f"{command} {out} --overwrite")
    assert path.read_text() == "mine"


def test_results_are_replaced_beside_their_own_record_only(tmp_path):
    names = ("scores.json", "scores.png")
    check_results(tmp_path, names, "command")
    (tmp_path / "scores.png").write_text("mine")
    with input_error("contains scores.png, which this command has not written"):
        check_results(tmp_path, names, "command")
    write_json(tmp_path / "scores.json", {"command": "superclip evaluate"})
    check_results(tmp_path, names, "command")


def test_partial_outputs_of_killed_calls_are_removed_and_those_of_running_calls_are_kept(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        host = socket.gethostname()
        killed, alive, own, elsewhere = (
            tmp_path / f"out.{name}.part"
            for name in (
                f"{host}-{ended.pid}",
                f"{host}-{running.pid}",
                f"{host}-{os.getpid()}",
                f"other-{ended.pid}",
            )
        )
        for part in (killed, alive, own, elsewhere):
            part.mkdir()
            (part / "weights").touch()
        with atomic_output(tmp_path / "out") as part:
            part.mkdir()
        running.communicate(b"\n")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "out", alive, elsewhere])


@parametrize("mode", [0o600, 0o640])
def test_the_copy_of_a_private_setup_file_is_as_private(mode, tmp_path):
    setup = tmp_path / "setup"
    setup.write_text("export TOKEN=secret\n")
    setup.chmod(mode)
    umask = os.umask(0o022)
    try:
        for _ in range(2):
            SlurmRequest("cpu", 1, 1, None, None, {}, setup).keep_setup(tmp_path)
    finally:
        os.umask(umask)
    assert (tmp_path / "setup.sh").stat().st_mode & 0o777 == mode
