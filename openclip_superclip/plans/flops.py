"""FLOPs of a model's towers and of its class head."""

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.utils import to_2tuple
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints.weights import Weights


def count_gmacs(model: nn.Module, head: Weights) -> dict[str, float]:
    """Returns GMACs of one pair through `vision`, `text` and `head`, forward, of an OpenCLIP model
    on "meta".

    `head` are the class head's tensors by name, empty without one. Of a Hugging Face text tower,
    only the linear layers are counted: transformers cannot run it on "meta".
    """
    num_pairs = 2  # BatchNorm refuses one image whose last feature map is a single patch
    image = torch.empty(num_pairs, 3, *to_2tuple(model.visual.image_size), device="meta")
    text = torch.zeros(num_pairs, model.context_length, dtype=torch.long, device="meta")
    counters = {tower: FlopCounterMode(display=False) for tower in ("vision", "text")}
    with counters["vision"]:
        model.encode_image(image)
    text_tower = getattr(model, "text", None)
    with counters["text"]:
        if isinstance(text_tower, HFTextEncoder):
            for layer in text_tower.transformer.modules():
                if isinstance(layer, nn.Linear):
                    layer(torch.empty(text.numel(), layer.in_features, device="meta"))
        else:
            model.encode_text(text)
    gmacs = {}
    for tower, counter in counters.items():
        gmacs[tower] = counter.get_total_flops() / 2e9 / num_pairs
    return gmacs | {"head": head["class_head.weight"].numel() / 1e9 if head else 0.0}
