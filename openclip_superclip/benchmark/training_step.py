"""A whole training step of an OpenCLIP model, with and without the class head."""

from collections.abc import Callable

import open_clip
import torch
from open_clip.utils import to_2tuple
from open_clip_train.precision import get_autocast

from ..integration.model_factory import create_model_and_transforms
from ..method.superclip_loss import SuperCLIPLoss


def make_step(
    model_name: str, with_head: bool, batch: int, device: str, precision: str, grad_checkpointing: bool = False
) -> Callable[..., None]:
    """Returns a call that does one step: forward, loss, backward, AdamW; on random images and captions.

    Called with a number, it does so on as many of the batch's pairs.
    """
    torch.manual_seed(0)
    create = create_model_and_transforms if with_head else open_clip.create_model_and_transforms
    model, _, _ = create(model_name, precision=precision, device=device, output_dict=True)
    if grad_checkpointing:
        model.set_grad_checkpointing()
    loss = open_clip.ClipLoss()
    if with_head:
        loss = SuperCLIPLoss(loss)
    optimizer = torch.optim.AdamW(model.parameters())
    autocast = get_autocast(precision, device_type=torch.device(device).type)
    images = torch.randn(batch, 3, *to_2tuple(model.visual.image_size), device=device)
    texts = torch.randint(1, 1000, (batch, model.context_length), device=device)
    texts[:, 20:] = 0

    def step(num_pairs: int = batch) -> None:
        optimizer.zero_grad()
        with autocast():
            losses = loss(**model(images[:num_pairs], texts[:num_pairs]), output_dict=True)
        sum(losses.values()).backward()
        optimizer.step()

    return step
