"""Small models with all kinds of towers, for --model."""

import gzip
import json
from pathlib import Path

import open_clip
import torch

from openclip_superclip.demo.data import NUM_TOKENS_WITHOUT_MERGES
from openclip_superclip.files import whole_file

VOCAB_SIZE = 4096
SPECIAL_TOKENS = [0, VOCAB_SIZE - 2, VOCAB_SIZE - 1]  # padding, start and end


def write_vocabulary(folder: Path) -> Path:
    """Writes CLIP's vocabulary, truncated to VOCAB_SIZE tokens, and returns its file."""
    vocabulary = (folder / "bpe.txt.gz").resolve()
    with gzip.open(open_clip.tokenizer.default_bpe()) as file:
        lines = file.read().splitlines()
    with whole_file(vocabulary) as file:  # the first line is a comment
        file.write(gzip.compress(b"\n".join(lines[: 1 + VOCAB_SIZE - NUM_TOKENS_WITHOUT_MERGES]), mtime=0))
    return vocabulary


def write_model(folder: Path, vision: dict | None = None, text: dict | None = None, **model_cfg) -> str:
    """Writes a small OpenCLIP model configuration and returns the value of --model that opens it.

    Its vocabulary is CLIP's, truncated to VOCAB_SIZE tokens, unless `text` contains a vocab_size or a tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = dict(text or {})
    if not {"vocab_size", "hf_tokenizer_name"} & text.keys():
        text |= {"vocab_size": VOCAB_SIZE, "tokenizer_kwargs": {"bpe_path": str(write_vocabulary(folder))}}
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8, **(vision or {})},
        "text_cfg": {
            "context_length": 20, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2, **text,
        },
        **model_cfg,
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return f"local-dir:{folder}"


MODELS = {
    "vit": {},
    "one-layer": {"vision": {"layers": 1}, "text": {"layers": 1}},
    "output-tokens": {"vision": {"output_tokens": True}},
    "avg-pool": {"vision": {"pool_type": "avg"}},
    "attentional-pool": {"vision": {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}},
    "norm-after-pool": {"vision": {"final_ln_after_pool": True, "pool_type": "avg"}},
    "custom-block": {"vision": {"qk_norm": True, "scale_attn": True}},
    "resnet": {"vision": {"layers": [1, 1, 1, 1], "width": 16}},
    "timm-vit": {"vision": {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token"}},
    "timm-vit-map": {"vision": {"timm_model_name": "test_vit3", "image_size": 160, "timm_pool": ""}},
    "timm-convnext": {"vision": {"timm_model_name": "test_convnext", "image_size": 64}},
    "timm-efficientnet": {"vision": {"timm_model_name": "test_efficientnet", "image_size": 64}},
    "timm-resnet": {"vision": {"timm_model_name": "test_resnet", "image_size": 64}},
    "timm-attn-pool": {
        "vision": {"timm_model_name": "resnet10t", "image_size": 64, "timm_pool": "rot_attn", "timm_proj": ""},
    },
    "coca": {
        "vision": {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2, "output_tokens": True},
        "text": {"embed_cls": True, "output_tokens": True, "width": 32, "heads": 2},
        "multimodal_cfg": {"context_length": 20, "vocab_size": VOCAB_SIZE, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
}  # fmt: skip


def write_weights(model: str) -> None:
    """Writes random weights next to a model's configuration."""
    torch.manual_seed(1)
    weights = open_clip.create_model(model).state_dict()
    if "text_decoder.text_projection" in weights:  # OpenCLIP 3 leaves it uninitialized
        weights["text_decoder.text_projection"].normal_(std=0.02)
    torch.save(weights, Path(model.removeprefix("local-dir:")) / "pytorch_model.bin")
