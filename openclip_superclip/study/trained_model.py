"""Opens what a run of a study has trained, for its measures: CLIP, SigLIP or FLIP, with or without a class head."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..checkpoints.checkpoint import read_checkpoint
from ..tagging.tagging_model import open_checkpoint


def open_trained(weights: Path, model: str) -> tuple[nn.Module, Callable, Callable]:
    """Returns (model, preprocess, tokenizer) of a checkpoint; `model` is the run's --model."""
    opened = open_checkpoint(read_checkpoint(weights), model)
    return opened.model, opened.preprocess(), opened.tokenizer
