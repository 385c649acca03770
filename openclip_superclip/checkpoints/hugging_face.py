"""Exports OpenCLIP's ViT models as transformers' CLIPModel, and tokenizers as transformers' own."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from open_clip.utils import to_2tuple
from torch import nn

from ..data.captions import PADDING
from ..errors import InputError
from ..files import write_text
from .architecture import Architecture
from .weights import Weights, check_match, save_weights

# Options of the towers that CLIPModel supports, or that have no effect after training. All others
# must have their default values.
EXPRESSED = {
    "layers",
    "width",
    "head_width",
    "heads",
    "mlp_ratio",
    "patch_size",
    "image_size",
    "patch_dropout",
    "context_length",
    "vocab_size",
    "pad_id",
    "eos_id",
    "hf_tokenizer_name",
    "tokenizer_kwargs",  # which clip_config checks
}
# PIL's constants, as OpenCLIP uses them in evaluation
RESAMPLING = {"bilinear": 2, "bicubic": 3, "random": 3}
# OpenCLIP's classes of the configurations of its own towers
TOWERS = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg}
WHOLE_MODEL = {"embed_dim", "quick_gelu", "custom_text", "init_logit_scale", *TOWERS}
RENAMED = {  # from OpenCLIP's names to transformers', applied in this order
    r"^text\.": "",
    r"^visual\.class_embedding$": "vision_model.embeddings.class_embedding",
    r"^visual\.conv1\.": "vision_model.embeddings.patch_embedding.",
    r"^visual\.positional_embedding$": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.ln_pre\.": "vision_model.pre_layrnorm.",
    r"^visual\.ln_post\.": "vision_model.post_layernorm.",
    r"^visual\.proj$": "visual_projection.weight",
    r"^visual\.transformer\.resblocks\.": "vision_model.encoder.layers.",
    r"^token_embedding\.": "text_model.embeddings.token_embedding.",
    r"^positional_embedding$": "text_model.embeddings.position_embedding.weight",
    r"^ln_final\.": "text_model.final_layer_norm.",
    r"^text_projection$": "text_projection.weight",
    r"^transformer\.resblocks\.": "text_model.encoder.layers.",
    r"\.ln_([12])\.": r".layer_norm\1.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
    r"\.attn\.": ".self_attn.",
}
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")
# How SimpleTokenizer splits clean text: words, single digits, and runs of other characters.
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def write_clip_model(
    folder: Path, architecture: Architecture, model: nn.Module, weights: Weights
) -> None:
    """Writes a folder for CLIPModel and CLIPProcessor; InputError for an architecture that they
    do not support."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(**clip_config(architecture), architectures=["CLIPModel"])
    # OpenCLIP opens half-precision weights as float32; transformers would keep them
    renamed = {name: tensor.float() for name, tensor in clip_weights(weights).items()}
    with torch.device("meta"):
        expected = CLIPModel(config).state_dict()
    check_match(renamed, expected, architecture.name, "transformers' CLIPModel")
    config.save_pretrained(folder)
    _write_processor(folder, architecture, model)
    save_weights(renamed, folder / "model.safetensors")


def clip_config(architecture: Architecture) -> dict:
    """Returns the arguments of transformers' CLIPConfig.

    Raises InputError for options that it does not support."""
    model_cfg = architecture.model_cfg
    text_cfg = model_cfg["text_cfg"]
    wrong = sorted(model_cfg.keys() - WHOLE_MODEL)
    for tower, config_class in TOWERS.items():
        defaults = vars(config_class())
        wrong += [
            f"{tower}.{name} = {value!r}"
            for name, value in model_cfg[tower].items()
            if name not in EXPRESSED and value != defaults.get(name)
        ]
    kwargs = text_cfg.get("tokenizer_kwargs") or {}
    # OpenCLIP's defaults
    clean = "whitespace" if text_cfg.get("hf_tokenizer_name") else "lower"
    wrong += [
        f"text_cfg.tokenizer_kwargs.{name} = {value!r}"
        for name, value in kwargs.items()
        if name not in ("bpe_path", "context_length") and (name, value) != ("clean", clean)
    ]
    vision = CLIPVisionCfg(**model_cfg["vision_cfg"])
    text = CLIPTextCfg(**text_cfg)
    sizes = {  # those of a ResNet and of oblong images are lists
        "num_hidden_layers": vision.layers,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }
    wrong += [f"{name} = {size!r}" for name, size in sizes.items() if not isinstance(size, int)]
    if wrong:
        raise InputError(
            f"--format hf: transformers' CLIPModel does not support {architecture.name} "
            f"({', '.join(wrong)}); use --format openclip"
        )
    shared = {
        "hidden_act": "quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
        "projection_dim": model_cfg["embed_dim"],
    }
    return {
        "projection_dim": model_cfg["embed_dim"],
        "vision_config": {
            **shared,
            **sizes,
            "hidden_size": vision.width,
            "intermediate_size": int(vision.width * vision.mlp_ratio),
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
            # makes transformers pool at the highest id, like OpenCLIP and OpenAI
            "eos_token_id": 2,
        },
    }


def clip_weights(weights: Weights) -> Weights:
    """Returns OpenCLIP's weights under transformers' names, with in_proj split into q, k and v."""
    renamed = {}
    for openclip_name, tensor in weights.items():
        name = openclip_name
        for pattern, replacement in RENAMED.items():
            name = re.sub(pattern, replacement, name)
        layer, is_split, kind = name.partition(".self_attn.in_proj_")
        if is_split:
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
        else:
            renamed[name] = tensor.T if name in TRANSPOSED else tensor
    return renamed


def _write_processor(folder: Path, architecture: Architecture, model: nn.Module) -> None:
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    cfg = model.visual.preprocess_cfg
    size, _ = to_2tuple(cfg["size"])
    square = {"height": size, "width": size}
    if cfg["resize_mode"] not in ("shortest", "squash"):
        raise InputError(
            f"--format hf: CLIPImageProcessor cannot resize the {cfg['resize_mode']} edge"
        )
    squash = cfg["resize_mode"] == "squash"
    image_processor = CLIPImageProcessor(
        size=square if squash else {"shortest_edge": size},
        crop_size=square,
        do_center_crop=not squash,
        resample=RESAMPLING[cfg["interpolation"]],
        # OpenCLIP accepts one number for all channels
        image_mean=np.resize(cfg["mean"], 3).tolist(),
        image_std=np.resize(cfg["std"], 3).tolist(),
    )
    tokenizer = architecture.tokenizer()
    # transformers' own cleans clean text in the same way
    if isinstance(tokenizer, SimpleTokenizer):
        names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
        ours = CLIPTokenizer(
            vocab={names.get(token, token): index for token, index in tokenizer.encoder.items()},
            merges=_merges(tokenizer),
            model_max_length=tokenizer.context_length,
        )
    else:
        ours = tokenizer.tokenizer
        ours.chat_template = None  # transformers writes each template to a file of its name
    CLIPProcessor(image_processor, ours).save_pretrained(folder)
    # preprocessor_config.json, which LLaVA-style projects read
    image_processor.save_pretrained(folder)


def _merges(tokenizer: SimpleTokenizer) -> list[tuple[str, str]]:
    """Returns the merges of a vocabulary, without the empty line at a file's end."""
    return [merge for merge in tokenizer.bpe_ranks if len(merge) == 2]


def as_hugging_face(tokenizer: SimpleTokenizer):
    """Returns a transformers tokenizer with the same ids, except that `save_tokenizer` sets that
    of padding to 0."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = (tokenizer.decoder[id] for id in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    bpe = Tokenizer(models.BPE(tokenizer.encoder, _merges(tokenizer), end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.post_processor = processors.BertProcessing(
        (end, tokenizer.eot_token_id), (start, tokenizer.sot_token_id)
    )
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    bpe.add_special_tokens([start, end, PADDING])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=start,
        eos_token=end,
        pad_token=PADDING,
        sep_token=PADDING,
        model_max_length=tokenizer.context_length,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer, folder: Path) -> None:
    """Writes a transformers tokenizer. A tokenizer made by `as_hugging_face` pads with 0, like
    OpenCLIP's.

    0 is also the id of "!" inside words, so the file contains two names for it. A tokenizer loaded
    from such a file saves only one of them, even in the merges.
    """
    tokenizer.chat_template = None  # transformers writes each template to a file of its name
    tokenizer.save_pretrained(folder)
    if tokenizer.pad_token != PADDING:
        return
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    model = content["model"]
    model["vocab"] |= {"!": 0, PADDING: 0}
    model["merges"] = json.loads(json.dumps(model["merges"]).replace(PADDING, "!"))
    for token in content["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]
    write_text(file, json.dumps(content, ensure_ascii=False))
