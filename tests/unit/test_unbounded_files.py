"""Files that never end, unpack to much more than their size, or describe more
than a machine can hold: refused in one line that names them."""

import gzip
import io
import os
import shutil
import signal
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from support import cases, input_error, parametrize, read_json, write_json
from support.models import random_weights, write_model
from support.training_runs import execute, failure

from openclip_superclip.checkpoints.weights import check_values, read_checkpoint
from openclip_superclip.files import read_json as read_our_json


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model's folder with weights, a run, and a recipe."""
    folder = tmp_path_factory.mktemp("whole")
    name = write_model(folder / "model", {"layers": 1, "width": 8, "head_width": 8})
    (folder / "run/checkpoints").mkdir(parents=True)
    weights = random_weights(name)
    torch.save(weights, folder / "model/pytorch_model.bin")
    torch.save({"epoch": 1, "state_dict": weights}, folder / "run/checkpoints/epoch_1.pt")
    (folder / "run/params.txt").write_text(f"model: local-dir:{folder}/model\n")
    (folder / "pairs.csv").write_text("image,caption\na.png,red\n")
    return folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A copy of it, in which no command may take a minute."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    file = Path("model/open_clip_config.json")
    content = read_json(file)
    content["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["bpe_path"] = "model/bpe.txt.gz"
    shutil.copy(next(Path("model").glob("*.gz")), "bpe")
    shutil.move("bpe", "model/bpe.txt.gz")
    write_json(file, content)
    Path("run/params.txt").write_text("model: local-dir:model\nlogs: .\nname: run\n")

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def link(name, target="/dev/zero"):
    Path(name).unlink(missing_ok=True)
    Path(name).symlink_to(target)


def write_bomb(name):
    Path(name).unlink(missing_ok=True)
    with gzip.open(name, "wb") as file:
        for _ in range(40):
            file.write(bytes(2**20))


def configure(part, **fields):
    """Changes fields of a part of the model's configuration."""
    file = Path("model/open_clip_config.json")
    content = read_json(file)
    place = content["model_cfg"] if part in content["model_cfg"] else content
    place[part] = place.get(part, {}) | fields
    write_json(file, content)


def record(option):
    """Adds an option to those that the run records."""
    with open("run/params.txt", "a") as file:
        file.write(f"{option}\n")


def compress(name):
    """Packs a file of torch as a zip file may be packed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(name) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for member in plain.namelist():
            out.writestr(member, plain.read(member))
    Path(name).write_bytes(packed.getvalue())


def write_odd(name, **attributes):
    """Writes weights with attributes, which may have the names of methods."""
    weights = OrderedDict(torch.load("model/pytorch_model.bin"))
    vars(weights).update({f"{attribute}?": value for attribute, value in attributes.items()})
    torch.save(weights, name)
    plain = {}
    with zipfile.ZipFile(name) as archive:
        for member in archive.namelist():
            plain[member] = archive.read(member)
    with zipfile.ZipFile(name, "w") as archive:
        for member, content in plain.items():
            for attribute in attributes:  # a text with its length in front
                marked = f"{attribute}?".encode()
                content = content.replace(
                    len(marked).to_bytes(4, "little") + marked,
                    len(attribute).to_bytes(4, "little") + attribute.encode(),
                )
            archive.writestr(member, content)


EXPORT = "export model --out out"
EXPORT_RUN = "export run/checkpoints/epoch_1.pt --out out"
COUNT = "frequencies pairs.csv --tokenizer-of local-dir:model --out counts.safetensors"
FAULTS = {  # the command, what becomes of the files, and the error
    "weights": (EXPORT, lambda: link("model/pytorch_model.bin"), "pytorch_model.bin is not a reg"),
    "compressed weights": (EXPORT, lambda: compress("model/pytorch_model.bin"), "is compressed"),
    "configuration": (COUNT, lambda: link("model/open_clip_config.json"), "is not a regular file"),
    "another file": (COUNT, lambda: link("model/tokenizer.json"), "tokenizer.json is not a reg"),
    "a pipe": (COUNT, lambda: os.mkfifo("model/vocab.json"), "vocab.json is not a regular file"),
    "a vocabulary": (COUNT, lambda: write_bomb("model/bpe.txt.gz"), "unpacks to more than"),
    "layers of images": (
        EXPORT,
        lambda: configure("vision_cfg", layers=100_000),
        "its layers is 100,000; expected at most 1,000",
    ),
    "blocks of a ResNet": (
        EXPORT,
        lambda: configure("vision_cfg", layers=[3, 4, 10**6, 3]),
        "its layers is 1,000,000; expected",
    ),
    "layers of texts": (
        COUNT,
        lambda: configure("text_cfg", layers=10**6),
        "its layers is 1,000,000; expected",
    ),
    "NaN in the model": (
        EXPORT,
        lambda: configure("vision_cfg", ls_init_value=float("nan")),
        "its ls_init_value is nan; expected a finite number",
    ),
    "NaN in the mean": (
        EXPORT,
        lambda: configure("preprocess_cfg", mean=[0.5, float("nan"), 0.5]),
        "model has a preprocess_cfg whose mean is [0.5, nan, 0.5]; expected a finite number",
    ),
    "std of a run": (
        EXPORT_RUN,
        lambda: record("image_std: [1e999, 1.0, 1.0]"),
        "run/checkpoints/epoch_1.pt records a preprocessing (image_mean and the like) whose std is "
        "[inf, 1.0, 1.0]; expected a finite number above 0, or three",
    ),
}


@cases("command, damage, error", FAULTS)
def test_what_never_ends_or_holds_no_number_is_refused_in_one_line(command, damage, error, folder):
    damage()
    line = failure(command)
    assert error in line and line.count("\n") == 1
    assert "model" in line or "run" in line
    assert not list(folder.glob("out*"))


ODD = {
    "a vocabulary's size": (
        EXPORT,
        lambda: configure("text_cfg", vocab_size="x"),
        "its vocab_size is 'x'; expected a number",
    ),
    "a link to itself": (
        EXPORT.replace("--out out", "--out loop"),
        lambda: link("loop", "loop"),
        "loop exists, and --overwrite is not given",
    ),
    "a name": (f"export {'x' * 300} --out out", lambda: None, "x cannot be used (File name too"),
    "a model's name in weights": (
        "export odd.pt --out out",
        lambda: write_odd("odd.pt", superclip_options={"model": "local-dir:" + "x" * 5000}),
        "the model of odd.pt is not recorded",
    ),
    "a recorded model that does not exist": (
        "export odd.pt --out out",
        lambda: write_odd("odd.pt", superclip_options={"model": "ViT-B-33"}),
        "odd.pt: OpenCLIP has no model 'ViT-B-33'",
    ),
    "a recorded option that no model has": (
        "export odd.pt --out out",
        lambda: write_odd(
            "odd.pt", superclip_options={"model": "ViT-Ti-16-96", "force_image_size": "large"}
        ),
        "odd.pt: OpenCLIP cannot build ViT-Ti-16-96",
    ),
    "a tensor as an option": (
        "export odd.pt --out out",
        lambda: write_odd("odd.pt", superclip_options={"model": torch.zeros(3)}),
        "the model of odd.pt is not recorded",
    ),
    "an attribute that hides a method": (
        "export odd.pt --out out",
        lambda: write_odd("odd.pt", items=5),
        "--model is missing: the model of odd.pt",
    ),
}


@cases("command, damage, error", ODD)
def test_what_cannot_be_used_is_named_in_one_line(command, damage, error, folder):
    damage()
    line = failure(command)
    assert error in line and line.startswith("error: ") and line.count("\n") == 1


def test_the_folders_without_a_fault_are_opened(folder):
    for command in (EXPORT, EXPORT_RUN.replace("--out out", "--out out2"), COUNT):
        execute(command)


def test_a_tensor_with_more_numbers_than_bytes_is_refused(folder):
    weights = torch.load("model/pytorch_model.bin")
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save(weights | {"logit_scale": huge}, "huge.pt")
    with input_error(r"^huge.pt: logit_scale is .*, but has only 4 bytes of values$"):
        check_values(read_checkpoint("huge.pt").weights, "huge.pt")


@parametrize("size", [2**28 + 1, 2**40])
def test_a_json_file_of_any_size_is_refused_before_it_is_read(size, tmp_path):
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(size)  # without content
    with input_error("large.json cannot be read .it is larger than 268,435,456 bytes"):
        read_our_json(tmp_path / "large.json")


def test_weights_in_a_folder_may_be_linked_to_a_file(folder):
    shutil.move("model/pytorch_model.bin", "elsewhere.bin")
    link("model/pytorch_model.bin", folder / "elsewhere.bin")
    assert read_checkpoint(folder / "model").weights
