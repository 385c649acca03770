"""Checkpoints: the weights in a file or folder, memory-mapped, and whether they hold a class head."""

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError

HEAD_PREFIXES = ("class_head.", "statistics.")
NUM_SHOWN = 3  # mismatches: enough to see what kind they are


class Checkpoint(NamedTuple):
    """Weights under OpenCLIP's names and, in a checkpoint of the trainer, the epochs behind them."""

    path: Path
    weights: dict[str, Tensor]
    epoch: int | None = None
    of_ddp: bool = False  # its names begin with `module.`: the run's ranks were torch.distributed's

    def without_head(self) -> dict[str, Tensor]:
        """The weights that are OpenCLIP's."""
        return {name: tensor for name, tensor in self.weights.items() if not name.startswith(HEAD_PREFIXES)}

    def head(self) -> dict[str, Tensor]:
        """The class head and the token statistics; empty for a plain model."""
        return {name: tensor for name, tensor in self.weights.items() if name.startswith(HEAD_PREFIXES)}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Returns what a checkpoint holds; InputError, in one line, for a file that is not one.

    Takes what OpenCLIP takes: files of torch (the trainer's, with or without `module.`, or weights alone), safetensors,
    TorchScript archives, and folders with one of them. Files are mapped: a tensor costs memory when it is used. No
    pickle runs code.
    """
    file = file_of_weights(Path(path))
    content = _load(file)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{file} is no checkpoint of a model: expected tensors under their names")
    weights = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    epoch = content.get("epoch") if content is not state else None
    return Checkpoint(Path(path), weights, epoch, all(name.startswith("module.") for name in state))


def latest_checkpoint(folder: str, save_most_recent: bool) -> str | None:
    """Returns what OpenCLIP takes for `--resume latest`, given the run's folder of checkpoints."""
    from open_clip_train.main import LATEST_CHECKPOINT_NAME, get_latest_checkpoint

    if save_most_recent:
        return os.path.join(folder, LATEST_CHECKPOINT_NAME)
    return get_latest_checkpoint(folder, remote=False)


def is_complete(path: str | Path) -> bool:
    """Tells whether a checkpoint was written to its end: torch.save's zip archive ends with its list of contents."""
    try:
        with zipfile.ZipFile(path):
            return True
    except Exception:  # zipfile has many for what is not one
        return False


def is_torchscript(path: str | Path) -> bool:
    """Returns whether a file is a TorchScript archive, as OpenAI's released models are."""
    if not zipfile.is_zipfile(path):
        return False
    try:  # as torch.load tells it: what passes here is never unpickled by Python
        return "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:
        return False


def check_match(weights: dict[str, Tensor], expected: dict[str, Tensor], what: str, model: str) -> None:
    """Raises InputError, with the first mismatches and both shapes, unless the weights are what `model` expects."""
    mismatches = [
        f"{name} is {_shape(weights.get(name), 'missing')}, expected {_shape(expected.get(name), 'no such name')}"
        for name in sorted(weights.keys() | expected.keys())
        if name not in weights or name not in expected or weights[name].shape != expected[name].shape
    ]
    if mismatches:
        shown = "; ".join(mismatches[:NUM_SHOWN])
        more = f"; and {len(mismatches) - NUM_SHOWN} more" if len(mismatches) > NUM_SHOWN else ""
        raise InputError(f"{what} does not match {model}: {shown}{more}")


def _shape(tensor: Tensor | None, otherwise: str) -> str:
    return otherwise if tensor is None else str(list(tensor.shape))


def file_of_weights(path: Path) -> Path:
    """Returns the file that holds the weights, which OpenCLIP chooses in a folder; InputError where there is none."""
    if path.is_dir():
        from open_clip.factory import _find_checkpoint_in_dir  # OpenCLIP's own choice among the files of a folder

        found = _find_checkpoint_in_dir(path)
        if found is None:
            last = latest_checkpoint(str(path / "checkpoints"), save_most_recent=False)
            expected = f"a run's checkpoint, {last}" if last else "open_clip_model.safetensors or the like"
            raise InputError(f"{path} holds no weights: expected {expected}")
        return Path(found)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return path


def _load(file: Path) -> object:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        if is_torchscript(file):
            state = torch.jit.load(file, map_location="cpu").state_dict()
            return {k: v for k, v in state.items() if k not in ("input_resolution", "context_length", "vocab_size")}
        mapped = zipfile.is_zipfile(file)  # torch's format of before 1.6 cannot be
        return torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except Exception as error:  # a corrupt pickle raises anything
        raise InputError(f"{file} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    unsafe = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError):
        what = f"is a pickle that asks for {unsafe[1]}" if unsafe else "holds no weights as torch saves them"
        return f"it {what}, and nothing but weights is ever loaded"
    return f"it is truncated, corrupt, or no checkpoint ({text[:100] or type(error).__name__})"
