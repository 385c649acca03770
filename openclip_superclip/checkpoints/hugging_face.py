"""Exports OpenCLIP's ViT models as transformers' CLIPModel."""

import dataclasses
import re
import unicodedata
from pathlib import Path

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from ..errors import InputError
from .architecture import Architecture
from .checkpoint import check_match, save_files, save_weights

# Options that CLIPModel supports, or that have no effect after training. All others must have their default values.
EXPRESSED = {
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout"},
    "text_cfg": {"layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size", "pad_id", "eos_id"}
    | {"hf_tokenizer_name", "tokenizer_kwargs"},  # clip_config checks tokenizer_kwargs
}
RESAMPLING = {"bilinear": 2, "bicubic": 3, "random": 3}  # PIL's constants, as OpenCLIP uses them in evaluation
TOWERS = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg}
WHOLE_MODEL = {"embed_dim", "quick_gelu", "custom_text", *TOWERS}
RENAMED = [  # from OpenCLIP's names to transformers', applied in this order
    (r"^text\.", ""),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
]
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")


def write_clip_model(folder: Path, architecture: Architecture, model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Writes a folder for `from_pretrained` of CLIPModel, CLIPVisionModel and CLIPProcessor.

    Raises InputError for an architecture that CLIPModel does not support.
    """
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(**clip_config(architecture), architectures=["CLIPModel"])
    renamed = clip_weights(weights)
    with torch.device("meta"):
        expected = CLIPModel(config).state_dict()
    check_match(renamed, expected, architecture.name, "transformers' CLIPModel")
    config.save_pretrained(folder)
    _write_processor(folder, architecture, model)
    save_weights(renamed, folder / "model.safetensors")


def clip_config(architecture: Architecture) -> dict:
    """Returns the arguments of transformers' CLIPConfig. Raises InputError for options that it does not support."""
    model_cfg = architecture.model_cfg
    wrong = sorted(model_cfg.keys() - WHOLE_MODEL)
    for tower, config_class in TOWERS.items():
        defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
        wrong += [
            f"{tower}.{name} = {value!r}"
            for name, value in model_cfg[tower].items()
            if name not in EXPRESSED[tower] and value != defaults.get(name)
        ]
    kwargs = model_cfg["text_cfg"].get("tokenizer_kwargs") or {}
    clean = "whitespace" if model_cfg["text_cfg"].get("hf_tokenizer_name") else "lower"  # OpenCLIP's defaults
    wrong += [
        f"text_cfg.tokenizer_kwargs.{name} = {value!r}"
        for name, value in kwargs.items()
        if name not in ("bpe_path", "context_length") and (name, value) != ("clean", clean)
    ]
    vision, text = CLIPVisionCfg(**model_cfg["vision_cfg"]), CLIPTextCfg(**model_cfg["text_cfg"])
    sides = {}
    for name in ("image_size", "patch_size"):
        size = getattr(vision, name)
        side = set(size) if isinstance(size, list | tuple) else {size}
        sides[name] = side.pop() if len(side) == 1 else None
    if not isinstance(vision.layers, int):
        wrong.append("a ResNet")
    elif None in sides.values():
        wrong.append(f"vision_cfg of image_size {vision.image_size} and patch_size {vision.patch_size}")
    if wrong:
        raise InputError(
            f"--format hf: {architecture.name} is not a model that transformers' CLIPModel can express "
            f"({', '.join(wrong)}); --format openclip can"
        )
    activation = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    shared = {"hidden_act": activation, "layer_norm_eps": 1e-5, "projection_dim": model_cfg["embed_dim"]}
    return {
        "projection_dim": model_cfg["embed_dim"],
        "vision_config": {
            **shared, **sides,
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.width // vision.head_width,
        },
        "text_config": {
            **shared,
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": int(text.width * text.mlp_ratio),
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "pad_token_id": text.pad_id,
            "bos_token_id": None,
            "eos_token_id": 2,  # makes transformers pool at the highest id, like OpenCLIP and OpenAI
        },
    }  # fmt: skip


def clip_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns OpenCLIP's weights under transformers' names, with in_proj split into q, k and v."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        part, found, kind = name.partition(".self_attn.in_proj_")
        if found:
            for which, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{part}.self_attn.{which}_proj.{kind}"] = third
        else:
            renamed[name] = tensor.T if name in TRANSPOSED else tensor
    return renamed


def _write_processor(folder: Path, architecture: Architecture, model: nn.Module) -> None:
    from transformers import CLIPImageProcessor, CLIPProcessor

    cfg = model.visual.preprocess_cfg
    size = cfg["size"][0] if isinstance(cfg["size"], (tuple, list)) else cfg["size"]
    square = {"height": size, "width": size}
    if cfg["resize_mode"] not in ("shortest", "squash"):
        raise InputError(f"--format hf: CLIPImageProcessor cannot resize the {cfg['resize_mode']} edge")
    squash = cfg["resize_mode"] == "squash"
    image_processor = CLIPImageProcessor(
        size=square if squash else {"shortest_edge": size},
        crop_size=square,
        do_center_crop=not squash,
        resample=RESAMPLING[cfg["interpolation"]],
        image_mean=list(cfg["mean"]),
        image_std=list(cfg["std"]),
    )
    save_files(CLIPProcessor(image_processor, _tokenizer(architecture)), folder)
    save_files(image_processor, folder)  # preprocessor_config.json, which LLaVA-style projects read


# Approximates the text cleaning of OpenCLIP's tokenizer (ftfy, html.unescape twice), except mojibake and rare entities.
ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&#x27;": "'", "&apos;": "'", "&nbsp;": " "}
AMPERSAND = "&(amp;)+"
COMPATIBLE = [*"ﬀﬁﬂﬃﬄﬅﬆĲĳǱǲǳǄǅǆǇǈǉǊǋǌ", *map(chr, range(0xFF01, 0xFF5F))]  # ligatures and full-width characters
QUOTES = {"[\u2018\u2019\u201a\u201b]": "'", "[\u201c\u201d\u201e\u201f]": '"'}
CONTROL = r"[\x00-\x08\x0e-\x1f\x7f\ufeff]"


def _tokenizer(architecture: Architecture):
    """Returns a fast tokenizer of transformers that stores all cleaning rules; CLIPTokenizer cleans differently."""
    from tokenizers import Regex, normalizers
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    tokenizer = architecture.tokenizer()
    if not isinstance(tokenizer, SimpleTokenizer):
        return tokenizer.tokenizer
    start, end = "<|startoftext|>", "<|endoftext|>"
    names = {"<start_of_text>": start, "<end_of_text>": end}
    length = architecture.model_cfg["text_cfg"].get("context_length", tokenizer.context_length)
    bpe = CLIPTokenizer(
        vocab={names.get(token, token): index for token, index in tokenizer.encoder.items()},
        merges=[merge for merge in tokenizer.bpe_ranks if len(merge) == 2],  # not the empty line at a file's end
    ).backend_tokenizer
    replaced = ENTITIES | {letter: unicodedata.normalize("NFKC", letter) for letter in COMPATIBLE}
    bpe.normalizer = normalizers.Sequence([
        normalizers.NFC(),
        normalizers.Replace(Regex(AMPERSAND), "&"),
        *(normalizers.Replace(found, meant) for found, meant in replaced.items()),
        *(normalizers.Replace(Regex(found), meant) for found, meant in {**QUOTES, CONTROL: "", r"\s+": " "}.items()),
        normalizers.Strip(),
        normalizers.Lowercase(),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=start, eos_token=end, unk_token=end, pad_token=end, model_max_length=length
    )
