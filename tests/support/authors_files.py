"""The authors' small checkpoint, original and modified."""

from pathlib import Path

import torch

from . import GOLDEN

THEIRS, CONFIG = GOLDEN / "reference_tiny.pt", GOLDEN / "reference_tiny.json"


def altered(folder: Path, **changes: torch.Tensor | None) -> Path:
    """Writes the checkpoint with some tensors replaced, or removed if None, and returns its file."""
    checkpoint = torch.load(THEIRS, weights_only=True)
    state = checkpoint["state_dict"] | {f"module.{name}": value for name, value in changes.items()}
    checkpoint["state_dict"] = {name: value for name, value in state.items() if value is not None}
    torch.save(checkpoint, folder / "altered.pt")
    return folder / "altered.pt"
