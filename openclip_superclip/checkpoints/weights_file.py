"""Files of weights, as safetensors or as torch writes them."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_weights(weights: dict[str, Tensor], file: Path) -> None:
    """Writes tensors to a file of safetensors or, by its suffix, of torch."""
    if file.suffix == ".safetensors":
        try:
            save_file(_apart(weights), file, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, say
            raise OSError(str(error)) from error
        file.chmod(file.parent.stat().st_mode & 0o666)  # safetensors makes it the owner's alone
    else:
        torch.save({name: _alone(tensor) for name, tensor in _apart(weights).items()}, file)


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
