"""Outputs: a command replaces only what it has written, and copies of
private files stay private."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
from safetensors.torch import save_file
from support import cases, input_error, parametrize, table, write_json
from support.data import squares
from support.models import random_weights, write_model
from support.tiny_run import write_recipe
from support.training_runs import execute, failure

from openclip_superclip.checkpoints.weights import save_weights
from openclip_superclip.files import check_results, whole_output, write_with_record
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


@cases("command, file", table("shards_and_tables: foreign outputs"))
def test_a_file_that_the_command_has_not_written_is_not_replaced(command, file, folder, refused):
    place = folder / file
    place.parent.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file(random_weights(f"local-dir:{folder}/model"), place)
    else:
        place.write_text('{"mine": 1}\n')
    before = place.read_bytes()
    try:
        error = refused(folder, command)
        assert "this command" in error or f"{file} exists" in error
        assert place.read_bytes() == before
    finally:
        place.unlink()


REPLACING = {
    "export": ("export one.pt --model local-dir:model --out", "exported"),
    "average": ("average one.pt two.pt --out", "mean.safetensors"),
    "average in torch's format": ("average one.pt two.pt --out", "mean.pt"),
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
        place = folder / out
        shutil.rmtree(place) if place.is_dir() else place.unlink()


@cases("name, command, out", REPLACING)
def test_a_command_replaces_its_own_output_only_with_overwrite_and_no_other_commands(
    name, command, out, outputs
):
    assert "exists, and --overwrite is not given" in failure(f"{command} {out}")
    assert execute(f"{command} {out} --overwrite")
    others = {other for _, other in REPLACING.values() if not name.startswith("average")}
    others |= {"exported", "exported/open_clip_model.safetensors", "counts.safetensors", "one.pt"}
    for other in sorted(others - {out}):
        assert "--out: " in failure(f"{command} {other} --overwrite")


def test_an_output_without_a_record_is_left_to_the_user(outputs):
    command, out = REPLACING["export"]
    (outputs / out / "superclip.json").unlink()
    assert "version 0.2, which kept no record; remove it yourself, or give another name" in failure(
        f"{command} {out} --overwrite"
    )


@parametrize("name", ["README.md", "open_clip_model.safetensors", "superclip.json", "notes.txt"])
def test_an_export_with_a_changed_or_an_added_file_is_not_replaced(name, outputs):
    place = outputs / "exported" / name
    place.write_text(f"{place.read_text(errors='replace') if place.exists() else ''}\nmine\n")
    before = place.read_bytes()
    command, out = REPLACING["export"]
    assert "which was not written by this command" in failure(f"{command} {out} --overwrite")
    assert place.read_bytes() == before


def test_an_export_with_an_added_link_to_nothing_is_not_replaced(outputs):
    (outputs / "exported" / "mine").symlink_to("nowhere")
    command, out = REPLACING["export"]
    assert "contains mine, which was not written" in failure(f"{command} {out} --overwrite")


def test_a_file_beside_its_own_record_is_replaced_unless_it_was_changed(tmp_path):
    names = ("scores.json", "scores.csv")

    def write(text):
        check_results(tmp_path, names, "mine")
        write_with_record(tmp_path / "scores.json", {"command": "mine"}, {"scores.csv": text})

    write(b"first")
    write(b"second")
    for text in (b"third", b"fourth"):
        before = (tmp_path / "scores.csv").read_bytes()
        write(text)
        (tmp_path / "scores.csv").write_bytes(before)  # as if killed before it was replaced
    write(b"fifth")
    (tmp_path / "scores.csv").write_text("a person's")
    with input_error("contains scores.csv, which was not written by this command"):
        write(b"sixth")
    assert (tmp_path / "scores.csv").read_text() == "a person's"
    write_json(tmp_path / "scores.json", {"command": "mine"})  # of an earlier version
    write(b"seventh")


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
        with whole_output(tmp_path / "out", overwrite=False) as part:
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
