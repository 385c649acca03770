"""With a damaged file of weights, a command fails with one error line and
leaves no incomplete output."""

import contextlib
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import GOLDEN, cases, input_error, parametrize, table
from support.models import write_model
from support.training_runs import call, execute

import openclip_superclip as superclip
from openclip_superclip.checkpoints.weights import read_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with one undamaged file of each kind, for very small
    models."""
    folder = tmp_path_factory.mktemp("whole")
    name = write_model(
        folder / "model",
        vision={"layers": 1, "width": 8, "head_width": 8},
        text={"layers": 1, "width": 6},
    )
    state = superclip.create_model_and_transforms(name)[0].state_dict()
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        folder / "run.pt",
    )
    save_file(state, folder / "run.safetensors")
    execute(f"export {folder}/run.pt --model {name} --with-head --out {folder}/exported")
    shutil.copy(GOLDEN / "reference_tiny.pt", folder / "authors.pt")
    shutil.copy(GOLDEN / "reference_tiny.json", folder / "authors.json")
    return folder


DAMAGES = {  # what becomes of a file's content
    "half": lambda content: content[: len(content) // 2],
    "without its beginning": lambda content: content[5:],
    "zeros": lambda content: (
        content[: len(content) // 3] + bytes(64) + content[len(content) // 3 + 64 :]
    ),
}


@pytest.mark.filterwarnings("ignore")
@parametrize("damage", DAMAGES)
@cases("file, command", table("runs: files of weights"))
def test_a_damaged_file_is_one_error_and_leaves_no_part(
    file, command, damage, whole, tmp_path, monkeypatch, capsys
):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path(file).write_bytes(DAMAGES[damage](Path(file).read_bytes()))
    out = Path(command.split()[-1])
    code, said = call(command), capsys.readouterr().err
    written = [path for path in Path().iterdir() if path.name.startswith("out")]
    # values of safetensors have no checksum, and zeros are valid ones
    if file.endswith(".safetensors") and damage == "zeros":
        assert (code, written, said) == (0, [out], "")
    else:
        assert (code, written) == (1, [])
        assert said.startswith("error: ") and said.count("\n") == 1, said


def write_script(file):
    """Writes a TorchScript module whose code writes a file when torch.jit.load
    compiles it."""
    torch.jit.script(torch.nn.Linear(1, 1)).save("plain.pt")
    with zipfile.ZipFile("plain.pt") as plain, zipfile.ZipFile(file, "w") as hostile:
        for name in plain.namelist():
            runs = b'input: Tensor=torch.from_file("written", True, 4))'
            hostile.writestr(name, plain.read(name).replace(b"input: Tensor)", runs))


@pytest.mark.filterwarnings("ignore")
@parametrize(
    "command",
    [
        "export e.pt --model ViT-B-32 --out out",
        "average e.pt e.pt --out out.pt",
        "words e.png --model e.pt",
        "train --superclip --model ViT-B-32 --pretrained e.pt --dataset-type synthetic "
        "--train-num-samples 2",
    ],
)
def test_code_in_a_torchscript_archive_never_runs(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_script("e.pt")
    Path("e.png").touch()
    with contextlib.suppress(SystemExit):
        call(command)
    with input_error("e.pt is a TorchScript archive"):
        read_checkpoint(Path("e.pt"))
    with input_error("e.pt is a TorchScript archive"):
        superclip.create_model_and_transforms("ViT-Ti-16-96", "e.pt")
    assert not Path("written").exists()
    torch.jit.load("e.pt")
    assert Path("written").exists()
