"""Counts FLOPs, and builds models without weights, whose parameters can be counted."""

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.utils import to_2tuple
from torch.utils.flop_counter import FlopCounterMode

from .model import with_class_head

ATTENTION = ("bmm", "baddbmm", "_scaled_dot_product")  # products of activations with activations


def model_without_weights(model_name: str, patch_dropout: float = 0.0, with_head: bool = True):
    """Returns an OpenCLIP model on the device "meta", without weights; `patch_dropout` is --force-patch-dropout."""
    model_cfg = open_clip.get_model_config(model_name)
    if patch_dropout:
        model_cfg["vision_cfg"]["patch_dropout"] = patch_dropout
    custom_text = model_cfg.pop("custom_text", False)
    kind = CoCa if "multimodal_cfg" in model_cfg else CustomTextCLIP if custom_text else CLIP
    if with_head:
        kind, model_cfg = with_class_head(kind), model_cfg | {"superclip": {}}
    with torch.device("meta"):
        return kind(**model_cfg)


def count_gmacs(model_name: str, with_attention: bool = True, patch_dropout: float = 0.0) -> dict[str, float]:
    """Returns GMACs of one pair through `vision`, `text` and `head` of an OpenCLIP model, forward.

    `with_attention=False` excludes attention's own matrix products, as the paper does.
    """
    model = model_without_weights(model_name, patch_dropout)
    image = torch.empty(1, 3, *to_2tuple(model.visual.image_size), device="meta")
    text = torch.zeros(1, model.context_length, dtype=torch.long, device="meta")
    head_input = torch.empty(1, model.class_head.weight.shape[1], device="meta")
    parts = {
        "vision": lambda: model.encode_image(image),
        "text": lambda: model.encode_text(text),
        "head": lambda: model.class_head.logits(head_input),
    }
    gmacs = {}
    for name, part in parts.items():
        with FlopCounterMode(display=False) as counter:
            part()
        gmacs[name] = sum(
            count / 2e9
            for operator, count in counter.get_flop_counts()["Global"].items()
            if with_attention or not str(operator).removeprefix("aten.").startswith(ATTENTION)
        )
    return gmacs
