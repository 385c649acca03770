"""The authors' small checkpoint, as it is and altered."""

from pathlib import Path

import torch

from . import GOLDEN

THEIRS, CONFIG = GOLDEN / "reference_tiny.pt", GOLDEN / "reference_tiny.json"


def altered(folder: Path, **changes: torch.Tensor | None) -> Path:
    """Writes their checkpoint with some names set, or taken away where they are None, and returns its file."""
    checkpoint = torch.load(THEIRS, weights_only=True)
    state = checkpoint["state_dict"] | {f"module.{name}": value for name, value in changes.items()}
    checkpoint["state_dict"] = {name: value for name, value in state.items() if value is not None}
    torch.save(checkpoint, folder / "altered.pt")
    return folder / "altered.pt"
