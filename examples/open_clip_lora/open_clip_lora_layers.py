"""Adapters in a model's towers: which layers get them, how they train, what checkpoints contain."""

import functools
import logging
import math
import re

import open_clip
import peft
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip_lora import SAVED
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

# which are trained as usual
PROJECTIONS = re.compile(
    r"visual\.(proj$|head\.|attnpool\.c_proj\.|trunk\.(head|head\.fc|fc|classifier)\.(weight|bias)$)"
    r"|(text\.)?text_projection|text\.proj\."
)
TOWERS = re.compile(
    r"visual\.|text\.|transformer\.|token_embedding\.|positional_embedding|ln_final\."
)


class LowRank(nn.Module):
    """Parametrises a weight [out, in] as weight + lora_B @ lora_A.

    For the weights of attention layers, which are not linear layers or are never called. peft's
    layer for them adds the product to the weight in each step and subtracts it again, so rounding
    errors would change the weight.
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        out_features, in_features = weight.shape
        self.lora_A = nn.Parameter(weight.new_empty(rank, in_features))
        self.lora_B = nn.Parameter(weight.new_zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as in peft

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.lora_B @ self.lora_A


def layers_to_adapt(args) -> list[str]:
    """Returns the names of the attention and linear layers of the towers of --lora-towers.

    Raises SystemExit for a tower without any. Nothing is loaded: the model has no weights, and only
    the layers that it calls count.
    """
    model = model_without_weights(args)
    if not hasattr(model, "visual") or hasattr(model, "text_decoder"):
        raise SystemExit(f"error: --lora: {args.model} has more than an image and a text tower")
    layers = {}
    if args.lora_towers != "text":
        layers["image"] = image_layers(model)
    if args.lora_towers != "image":
        layers["text"] = text_layers(model)
    for tower, other in (("image", "text"), ("text", "image")):
        if layers.get(tower) == []:
            raise SystemExit(
                f"error: --lora: the {tower} tower of {args.model} has no attention or linear "
                f"layers for adapters: give --lora-towers {other}, or train without --lora"
            )
    return [*layers.get("image", []), *layers.get("text", [])]


def model_without_weights(args) -> nn.Module:
    """Returns the model on the meta device."""
    names = ("force_quick_gelu", "force_custom_text", "force_image_size", "force_context_length")
    options = {name: getattr(args, name) for name in names}
    size = options["force_image_size"]
    if isinstance(size, list | tuple) and len(size) == 1:
        options["force_image_size"] = size[0]
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # OpenCLIP warns that the weights are missing
    try:
        with torch.device("meta"):
            return open_clip.create_model(
                args.model,
                load_weights=False,
                pretrained_text=False,
                device="meta",
                cache_dir=args.cache_dir,
                **options,
            )
    finally:
        logging.root.setLevel(level)


def image_layers(model: nn.Module) -> list[str]:
    size = open_clip.utils.to_2tuple(model.visual.image_size)
    image = torch.empty(2, 3, *size, device="meta")
    return called_layers(model, lambda: model.encode_image(image))


def text_layers(model: nn.Module) -> list[str]:
    text = getattr(model, "text", None)
    if isinstance(text, HFTextEncoder):  # transformers cannot run it without weights
        return linear_layers({f"text.{name}": layer for name, layer in text.named_modules()})
    tokens = torch.zeros(2, model.context_length, dtype=torch.long, device="meta")
    return called_layers(model, lambda: model.encode_text(tokens))


def called_layers(model: nn.Module, call) -> list[str]:
    """Returns the names of the attention and linear layers that `call` uses, without the
    projection; a linear layer of attention is part of it."""
    called = set()
    hook = nn.modules.module.register_module_forward_hook(lambda layer, *_: called.add(layer))
    with hook, torch.no_grad():
        call()
    layers = {name: layer for name, layer in model.named_modules() if layer in called}
    attention = [name for name, layer in layers.items() if is_attention(layer)]
    inside = tuple(f"{name}." for name in attention)
    others = {name: layer for name, layer in layers.items() if not name.startswith(inside)}
    return attention + linear_layers(others)


def linear_layers(layers: dict[str, nn.Module]) -> list[str]:
    """Returns the names of the linear layers, without those of a projection."""
    names = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    return [name for name in names if not PROJECTIONS.match(f"{name}.weight")]


def is_attention(layer: nn.Module) -> bool:
    """Returns whether a layer is torch's or OpenCLIP's attention with one weight for queries, keys
    and values."""
    return getattr(layer, "in_proj_weight", None) is not None and hasattr(layer, "out_proj")


def add_adapters(model: nn.Module, layers: list[str], rank: int) -> None:
    """Adds adapters to the layers, and freezes the towers except for the projections."""
    trained = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (PROJECTIONS.match(name) or not TOWERS.match(name))
    ]
    attention = [name for name in layers if is_attention(model.get_submodule(name))]
    linear = [name for name in layers if name not in attention]
    if linear:
        config = peft.LoraConfig(
            r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, linear))
        )
        peft.inject_adapter_in_model(config, model)
    for name in attention:
        layer = model.get_submodule(name)
        for owner, weight in ((layer, "in_proj_weight"), (layer.out_proj, "weight")):
            adapter = LowRank(getattr(owner, weight), rank)
            parametrize.register_parametrization(owner, weight, adapter)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    for parameter in trained:
        parameter.requires_grad_()
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and TOWERS.match(name):
            module.register_forward_pre_hook(keep_statistics)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    number = f"{num_trained:,} of {total:,} parameters are trained"
    logging.info(f"LoRA: adapters of rank {rank} in {len(layers)} layers; {number}")


def keep_statistics(layer: _BatchNorm, _) -> None:
    layer.eval()


def save_merged_weights(model: nn.Module, check) -> None:
    """Makes the model's state dicts contain the merged weights under OpenCLIP's names.

    What a resumed run needs is added under names that begin with SAVED: the adapters, and the
    weights without them. `check` is called with a state dict that is loaded.
    """
    load = functools.partial(load_adapters, names=list(model.state_dict()), check=check)
    model.register_state_dict_post_hook(merge)
    model.register_load_state_dict_pre_hook(load)


def plain_name(name: str) -> str:
    """Returns OpenCLIP's name of a parameter."""
    return re.sub(r"parametrizations\.(\w+)\.original", r"\1", name.replace(".base_layer", ""))


@torch.no_grad()
def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights with adapters, merged, by the names of the weights without them."""
    merged = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            weight = module.base_layer.weight
            delta = module.get_delta_weight("default")
            merged[f"{name}.base_layer.weight"] = weight + delta.to(weight.dtype)
        elif isinstance(module, parametrize.ParametrizationList):
            merged[f"{name}.original"] = module()
    return merged


def merge(model: nn.Module, state: dict[str, Tensor], prefix: str, _) -> None:
    merged = merged_weights(model)
    for key in [key for key in state if key.startswith(prefix)]:
        name, tensor = key.removeprefix(prefix), state.pop(key)
        if "lora_" in name:
            state[f"{prefix}{SAVED}{name}"] = tensor
            continue
        if name in merged:
            state[f"{prefix}{SAVED}{name}"] = tensor
            tensor = merged[name]
        state[f"{prefix}{plain_name(name)}"] = tensor


def load_adapters(model, state: dict, prefix: str, *_, names: list[str], check) -> None:
    check(state)
    for name in names:
        own = state.pop(f"{prefix}{SAVED}{name}", None)
        merged = state.pop(f"{prefix}{plain_name(name)}", None)
        if own is not None or merged is not None:
            state[f"{prefix}{name}"] = merged if own is None else own
