"""Reads, checks, averages, imports and exports checkpoints."""

from pathlib import Path

WEIGHTS_NAMES = {"openclip": "open_clip_model.safetensors", "torch": "open_clip_pytorch_model.bin"}  # by --format
HEAD_NAME = "superclip_head.safetensors"  # class head and token statistics, saved next to an exported model

SHARDED, RECORD_BESIDE = ".metadata", "_metadata_extra.pt"  # files written by OpenCLIP 4's --fsdp-checkpoint sharded


def is_sharded(path: Path) -> bool:
    """Returns whether a path is a sharded checkpoint."""
    return (path / SHARDED).is_file()
