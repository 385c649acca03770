"""Counts FLOPs of models without weights."""

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.utils import to_2tuple
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ATTENTION = ("bmm", "baddbmm", "_scaled_dot_product")  # products of activations with activations


def count_gmacs(model: nn.Module, head: dict[str, Tensor], with_attention: bool = True) -> dict[str, float]:
    """Returns GMACs of one pair through `vision`, `text` and `head`, forward, of an OpenCLIP model on "meta".

    `head` are the class head's tensors by name, empty without one. `with_attention=False` excludes attention's own
    matrix products, as the paper does. Of a Hugging Face text tower, only the linear layers are counted: transformers
    cannot run it on "meta".
    """
    image = torch.empty(1, 3, *to_2tuple(model.visual.image_size), device="meta")
    text = torch.zeros(1, model.context_length, dtype=torch.long, device="meta")
    towers = {"vision": lambda: model.encode_image(image), "text": lambda: model.encode_text(text)}
    if isinstance(text_tower := getattr(model, "text", None), HFTextEncoder):
        layers = [layer for layer in text_tower.transformer.modules() if isinstance(layer, nn.Linear)]
        towers["text"] = lambda: [
            layer(torch.empty(text.shape[1], layer.in_features, device="meta")) for layer in layers
        ]
    gmacs = {}
    for name, tower in towers.items():
        with FlopCounterMode(display=False) as counter:
            tower()
        gmacs[name] = sum(
            count / 2e9
            for operator, count in counter.get_flop_counts()["Global"].items()
            if with_attention or not str(operator).removeprefix("aten.").startswith(ATTENTION)
        )
    return gmacs | {"head": head["class_head.weight"].numel() / 1e9 if head else 0.0}
