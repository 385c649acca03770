"""Parameters, bytes and multiplications of OpenCLIP's own towers, by arithmetic from a model's
configuration: OpenCLIP is not imported, which takes seconds."""

from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.model_configurations import CONFIGURATIONS, openclip_name
from ..errors import InputError
from ..files import json_or_empty, read_json
from ..openclip import package_folder
from ..option_table import effect_of
from .recipe import Recipe

FLOAT = 4  # bytes of float32
COUNT = 8  # bytes of int64
FLOAT_WEIGHTS = ("fp32", "amp", "amp_bf16", "amp_bfloat16")  # precisions with float32 weights
# What a configuration may contain: options that determine the size, and others that do not change
# it. With any other option, the model is built.
OF_MODEL = """
    embed_dim vision_cfg text_cfg quick_gelu custom_text init_logit_bias init_logit_scale
"""
OF_VISION = """
    image_size layers width head_width patch_size mlp_ratio patch_dropout ls_init_value no_ln_pre
    final_ln_after_pool pool_type act_kwargs norm_kwargs
"""
OF_TEXT = """
    context_length vocab_size width heads layers mlp_ratio ls_init_value no_causal_mask
    final_ln_after_pool pool_type proj_bias pad_id eos_id hf_tokenizer_name tokenizer_kwargs
    act_kwargs norm_kwargs
"""
# OpenCLIP's flags that change the training and not the size, or whose effect on it is counted
FLAGS = """
    aug-cfg epochs-cooldown force-context-length force-image-size force-patch-dropout
    gather-with-grad grad-clip-norm image-interpolation image-mean image-resize-mode image-std
    local-loss loss-dist-impl pretrained siglip torchcompile
"""


@dataclass
class Size:
    """A model, or a part of it."""

    parameters: int = 0
    products: int = 0  # multiplications of one sample's forward pass
    saved_bytes: int = 0  # of buffers in checkpoints
    unsaved_bytes: int = 0  # of other buffers

    def __add__(self, other: "Size") -> "Size":
        return Size(
            self.parameters + other.parameters,
            self.products + other.products,
            self.saved_bytes + other.saved_bytes,
            self.unsaved_bytes + other.unsaved_bytes,
        )

    def __mul__(self, number: int) -> "Size":
        return Size(
            self.parameters * number,
            self.products * number,
            self.saved_bytes * number,
            self.unsaved_bytes * number,
        )


@dataclass
class ModelSize:
    """The towers of a model, its class head, and what is neither."""

    vision: Size
    text: Size
    head: Size
    scale: Size


def model_size(recipe: Recipe) -> ModelSize | None:
    """Returns the size of the model that a recipe trains; None if only building the model shows
    it."""
    if recipe.precision not in FLOAT_WEIGHTS or not all(map(_is_counted, recipe.flags)):
        return None
    try:
        config = _configuration(recipe)
        vision, text = config["vision_cfg"], config["text_cfg"]
        known = ((config, OF_MODEL), (vision, OF_VISION), (text, OF_TEXT))
        if not all(options.keys() <= {*names.split()} for options, names in known):
            return None
        has_bias = recipe.flags.get("siglip") or config.get("init_logit_bias") is not None
        is_resnet = isinstance(vision.get("layers"), list)
        tower = _resnet if is_resnet else _vision_transformer
        width = vision.get("width", 768)
        return ModelSize(
            tower(vision, config["embed_dim"]),
            _text_transformer(text, config["embed_dim"]),
            _class_head(recipe, 32 * width if is_resnet else width, text["vocab_size"]),
            Size(2 if has_bias else 1),
        )
    except (
        AttributeError,
        InputError,
        KeyError,
        TypeError,
        ValueError,
    ):  # building it reports what is wrong
        return None  # OpenCLIP reports what is wrong


def _is_counted(flag: str) -> bool:
    """Returns whether the size is known with a flag of OpenCLIP; not with those of plugins."""
    return flag in FLAGS.split() or not effect_of(flag.replace("-", "_")).changes_weights


def _configuration(recipe: Recipe) -> dict:
    """Returns OpenCLIP's configuration of a recipe's model, with the recipe's flags; {} for an
    unknown one."""
    schema, _, folder = recipe.model.rpartition(":")
    if schema == "local-dir":
        content = json_or_empty(Path(folder, "open_clip_config.json"))["model_cfg"]
    elif schema:
        content = {}
    elif recipe.model.endswith(".json"):
        content = json_or_empty(Path(recipe.model))
        content = content.get("model_cfg", content)
    else:
        name = f"{openclip_name(recipe.model)}.json"
        folders = (CONFIGURATIONS, package_folder() / "model_configs")
        content = next(
            (read_json(folder / name) for folder in folders if (folder / name).is_file()), {}
        )
    vision = {"image_size": 224, **content["vision_cfg"]}
    text = {"context_length": 77, "vocab_size": 49408, **content["text_cfg"]}
    if recipe.flags.get("force-image-size") is not None:
        vision["image_size"] = recipe.flags["force-image-size"]
    if recipe.flags.get("force-context-length") is not None:
        text["context_length"] = recipe.flags["force-context-length"]
    if recipe.flags.get("force-patch-dropout") is not None:
        vision["patch_dropout"] = recipe.flags["force-patch-dropout"]
    return {**content, "vision_cfg": vision, "text_cfg": text}


def _linear(inputs: int, outputs: int, times: int, *, has_bias: bool = True) -> Size:
    """Returns a linear layer, or a convolution of so many inputs, that is applied `times` times to
    a sample."""
    bias = outputs if has_bias else 0
    return Size(inputs * outputs + bias, times * inputs * outputs)


def _transformer(options: dict, width: int, length: int) -> Size:
    """Returns the blocks of a transformer for sequences of a length."""
    hidden = int(width * options.get("mlp_ratio", 4.0))
    layer_scales = 0 if options.get("ls_init_value") is None else 2
    norms = Size((2 * 2 + layer_scales) * width)
    attention = _linear(width, 3 * width, length) + _linear(width, width, length)
    scores = Size(products=2 * length * length * width)
    mlp = _linear(width, hidden, length) + _linear(hidden, width, length)
    return (norms + attention + scores + mlp) * options.get("layers", 12)


def _vision_transformer(options: dict, embed_dim: int) -> Size:
    width = options.get("width", 768)
    height, length = _pair(options["image_size"])
    patch_height, patch_length = _pair(options.get("patch_size", 16))
    patches = (height // patch_height) * (length // patch_length)
    if patches == 0 or options.get("pool_type", "tok") not in ("tok", "avg"):
        raise ValueError
    num_norms = 1 if options.get("no_ln_pre") else 2
    embedding = Size(width + (patches + 1) * width + 2 * num_norms * width)
    convolution = _linear(3 * patch_height * patch_length, width, patches, has_bias=False)
    dropped = options.get("patch_dropout") or 0
    kept = max(1, int(patches * (1 - dropped)))
    blocks = _transformer(options, width, kept + 1)
    return embedding + convolution + blocks + _linear(width, embed_dim, 1, has_bias=False)


def _text_transformer(options: dict, embed_dim: int) -> Size:
    width = options.get("width", 512)
    length = options["context_length"]
    if options.get("pool_type", "argmax") not in ("first", "last", "argmax", "eos"):
        raise ValueError
    embedding = Size((options["vocab_size"] + length + 2) * width)
    mask = Size(unsaved_bytes=0 if options.get("no_causal_mask") else FLOAT * length * length)
    projection = _linear(width, embed_dim, 1, has_bias=bool(options.get("proj_bias")))
    return embedding + mask + _transformer(options, width, length) + projection


def _resnet(options: dict, embed_dim: int) -> Size:
    """Returns OpenCLIP's ModifiedResNet."""
    width = options.get("width", 768)
    if len(options["layers"]) != 4:
        raise ValueError
    side = -(-options["image_size"] // 2)  # after the first convolution, of stride 2
    stem = ((3, width // 2), (width // 2, width // 2), (width // 2, width))
    size = Size()
    for inputs, outputs in stem:
        size += _convolution(inputs, outputs, side, kernel=3)
    side //= 2
    inputs = width
    for number, blocks in enumerate(options["layers"]):
        planes = width * 2**number
        for block in range(blocks):
            before = side
            if block == 0 and number > 0:
                side //= 2
            size += _convolution(inputs, planes, before)
            size += _convolution(planes, planes, before, kernel=3)
            size += _convolution(planes, 4 * planes, side)
            if side != before or inputs != 4 * planes:
                size += _convolution(inputs, 4 * planes, side)
            inputs = 4 * planes
    patches = (options["image_size"] // 32) ** 2
    if patches != side * side:
        raise ValueError
    pooled = 32 * width
    position = Size((patches + 1) * pooled)
    projections = _linear(pooled, pooled, patches + 1) * 3
    scores = Size(products=2 * (patches + 1) ** 2 * pooled)
    return size + position + projections + scores + _linear(pooled, embed_dim, patches + 1)


def _convolution(inputs: int, outputs: int, side: int, kernel: int = 1) -> Size:
    """Returns a convolution with batch norm, for a feature map of `side` × `side`."""
    normed = Size(2 * outputs, saved_bytes=2 * FLOAT * outputs + COUNT)
    return _linear(kernel * kernel * inputs, outputs, side * side, has_bias=False) + normed


def _class_head(recipe: Recipe, width: int, vocab_size: int) -> Size:
    """Returns the class head and the token statistics; nothing without them."""
    if recipe.superclip is None:
        return Size()
    head = _linear(width, vocab_size, 1)
    norm = Size(2 * width)
    statistics = Size(saved_bytes=COUNT + COUNT * vocab_size, unsaved_bytes=vocab_size)
    is_recorded = recipe.config.head_input != "patches"
    return head + norm + statistics + Size(saved_bytes=COUNT if is_recorded else 0)


def _pair(size: int | list[int]) -> tuple[int, int]:
    height, width = size if isinstance(size, list) else (size, size)
    return height, width
