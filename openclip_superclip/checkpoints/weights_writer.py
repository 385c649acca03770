"""Files of weights, as safetensors or as torch writes them."""

import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..atomic_files import NotWritten
from .checkpoint import OPTIONS


def save_weights(weights: dict[str, Tensor], file: Path, options: dict | None = None) -> None:
    """Writes tensors to a file of safetensors or, by its suffix, of torch; OSError where the disk does not take them.

    Args:
        weights: by name.
        file: what is written.
        options: what is known of the run, under the names of its command line; `read_checkpoint` returns them.
    """
    try:
        if file.suffix == ".safetensors":
            metadata = {"format": "pt"} | ({OPTIONS: json.dumps(options)} if options else {})
            save_file(_apart(weights), file, metadata=metadata)
            file.chmod(file.parent.stat().st_mode & 0o666)  # safetensors makes it the owner's alone
        else:
            state = OrderedDict((name, _alone(tensor)) for name, tensor in _apart(weights).items())
            if options:  # an attribute, as torch's own metadata of a state dict: what opens weights alone opens these
                setattr(state, OPTIONS, options)
            torch.save(state, file)
    except (SafetensorError, RuntimeError) as error:  # torch's for a full disk
        raise NotWritten(str(error)) from error


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights are written twice: safetensors holds no two names for one memory."""
    seen, apart = set(), {}
    for name, tensor in weights.items():
        tied = tensor.data_ptr() in seen and tensor.numel() > 0
        apart[name] = tensor.clone() if tied else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return apart


def _alone(tensor: Tensor) -> Tensor:
    """torch writes the whole memory behind a tensor, which may be a mapped file."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
