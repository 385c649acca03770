"""Everything that OpenCLIP can train, through a few real steps of `superclip train`; what cannot be trained is refused."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import WORDS, run_ranks, superclip_train, write_model
from PIL import Image

MODELS = {
    "vit": {},
    "output-tokens": {"vision": {"output_tokens": True}},
    "avg-pool": {"vision": {"pool_type": "avg"}},
    "attentional-pool": {"vision": {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}},
    "norm-after-pool": {"vision": {"final_ln_after_pool": True, "pool_type": "avg"}},
    "custom-block": {"vision": {"qk_norm": True, "scale_attn": True}},
    "resnet": {"vision": {"layers": [1, 1, 1, 1], "width": 16}},
    "timm-vit": {"vision": {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token"}},
    "timm-vit-avg": {"vision": {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "avg"}},
    "timm-vit-map": {"vision": {"timm_model_name": "test_vit3", "image_size": 160, "timm_pool": ""}},
    "timm-convnext": {"vision": {"timm_model_name": "test_convnext", "image_size": 64}},
    "timm-efficientnet": {"vision": {"timm_model_name": "test_efficientnet", "image_size": 64}},
    "timm-resnet": {"vision": {"timm_model_name": "test_resnet", "image_size": 64}},
    "timm-attn-pool": {"vision": {"timm_model_name": "resnet10t", "image_size": 64, "timm_pool": "rot_attn", "timm_proj": ""}},
    "coca": {
        "vision": {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2, "output_tokens": True},
        "text": {"embed_cls": True, "output_tokens": True, "width": 32, "heads": 2},
        "multimodal_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
}  # fmt: skip

TRAINS = [  # what is trained: --model, further flags, ranks
    ("a native ViT", "vit", "", 1),
    ("a ViT with output_tokens", "output-tokens", "", 1),
    ("a ViT with output_tokens and a custom text tower", "output-tokens", "--force-custom-text", 1),
    ("average pooling", "avg-pool", "", 1),
    ("attentional pooling", "attentional-pool", "", 1),
    ("the final norm after pooling", "norm-after-pool", "", 1),
    ("custom attention blocks", "custom-block", "", 1),
    ("patch dropout", "vit", "--force-patch-dropout 0.5", 1),
    ("gradient checkpointing", "vit", "--grad-checkpointing", 1),
    ("gradient checkpointing with patch dropout", "vit", "--grad-checkpointing --force-patch-dropout 0.5", 1),
    ("ModifiedResNet", "resnet", "", 1),
    ("timm's ViT", "timm-vit", "", 1),
    ("timm's ViT with average pooling", "timm-vit-avg", "", 1),
    ("timm's ViT with attention pooling", "timm-vit-map", "", 1),
    ("timm's ViT with patch dropout", "timm-vit", "--force-patch-dropout 0.5", 1),
    ("timm's ViT with gradient checkpointing", "timm-vit", "--grad-checkpointing", 1),
    ("timm's ConvNeXt", "timm-convnext", "", 1),
    ("timm's EfficientNet", "timm-efficientnet", "", 1),
    ("timm's ResNet", "timm-resnet", "", 1),
    ("timm's ResNet with OpenCLIP's attention pool", "timm-attn-pool", "", 1),
    ("a custom text tower", "vit", "--force-custom-text", 1),
    ("a Hugging Face text tower", "hf-text", "", 1),
    ("a Hugging Face text tower, locked", "hf-text", "--lock-text", 1),
    ("SigLIP", "vit", "--siglip", 1),
    ("CoCa", "coca", "", 1),
    ("CoCa with gradient checkpointing", "coca", "--grad-checkpointing", 1),
    ("distillation", "vit", "--distill-model {teacher} --distill-pretrained {teacher}", 1),
    ("distillation on two ranks", "vit", "--distill-model {teacher} --distill-pretrained {teacher}", 2),
    ("a locked text tower", "vit", "--lock-text --lock-text-freeze-layer-norm", 1),
    ("a text tower locked but for a layer", "vit", "--lock-text --lock-text-freeze-layer-norm --lock-text-unlocked-layers 1", 1),
    ("an image tower locked but for a group", "vit", "--lock-image --lock-image-unlocked-groups 1", 1),
    ("a compiled model", "vit", "--torchcompile", 1),
    ("a larger image", "vit", "--force-image-size 64", 1),
    ("precision fp32", "vit", "--precision fp32", 1),
    ("precision amp", "vit", "--precision amp", 1),
    ("precision amp_bf16", "vit", "--precision amp_bf16", 1),
    ("precision amp_bfloat16", "vit", "--precision amp_bfloat16", 1),
    ("precision bf16", "vit", "--precision bf16", 1),
    ("precision pure_bf16", "vit", "--precision pure_bf16", 1),
    ("precision fp16", "vit", "--precision fp16", 1),
    ("precision pure_fp16", "vit", "--precision pure_fp16", 1),
    ("timm's ViT in amp_bf16", "timm-vit", "--precision amp_bf16", 1),
    ("CoCa in amp_bf16", "coca", "--precision amp_bf16", 1),
    ("CoCa in pure_bf16", "coca", "--precision pure_bf16", 1),
    ("adamw", "vit", "--opt adamw", 1),
    ("timm/adamw", "vit", "--opt timm/adamw --eps 1e-8", 1),
    ("timm/lamb", "vit", "--opt timm/lamb --eps 1e-6", 1),
    ("timm/sgd", "vit", "--opt timm/sgd --momentum 0.9", 1),
    ("gradient clipping", "vit", "--grad-clip-norm 1", 1),
    ("two ranks", "vit", "", 2),
    ("two ranks, local loss", "vit", "--local-loss", 2),
    ("two ranks, gather with gradients", "vit", "--gather-with-grad", 2),
    ("two ranks, local loss, gather with gradients", "vit", "--local-loss --gather-with-grad", 2),
    ("two ranks, static graph", "vit", "--ddp-static-graph", 2),
    ("two ranks, the released recipe", "vit", "--local-loss --gather-with-grad --ddp-static-graph --grad-checkpointing --precision amp_bfloat16", 2),
    ("two ranks, synchronised batch norm", "vit", "--use-bn-sync", 2),
    ("two ranks, timm", "timm-vit", "", 2),
    ("two ranks, CoCa", "coca", "", 2),
    ("two ranks, SigLIP bidir", "vit", "--siglip --loss-dist-impl bidir", 2),
    ("two ranks, SigLIP shift", "vit", "--siglip --loss-dist-impl shift", 2),
    ("two ranks, SigLIP reduce", "vit", "--siglip --loss-dist-impl reduce", 2),
    ("two ranks, SigLIP gather", "vit", "--siglip --loss-dist-impl gather", 2),
    ("two ranks, a locked text tower", "vit", "--lock-text --lock-text-freeze-layer-norm", 2),
    ("accumulation", "vit", "--accum-freq 2", 1),
    ("accumulation, patch dropout", "vit", "--accum-freq 2 --force-patch-dropout 0.5", 1),
    ("accumulation, SigLIP", "vit", "--accum-freq 2 --siglip", 1),
    ("accumulation, CoCa", "coca", "--accum-freq 2", 1),
    ("accumulation, amp_bf16", "vit", "--accum-freq 2 --precision amp_bf16", 1),
    ("accumulation, pure_bf16", "vit", "--accum-freq 2 --precision pure_bf16", 1),
    ("accumulation on two ranks", "vit", "--accum-freq 2", 2),
    ("accumulation on two ranks, local loss, gather with gradients", "vit", "--accum-freq 2 --local-loss --gather-with-grad", 2),
    ("accumulation on two ranks, static graph", "vit", "--accum-freq 2 --ddp-static-graph", 2),
    ("WebDataset", "vit", "--dataset-type webdataset --train-data {shards} --train-num-samples 64", 1),
    ("WebDataset by its extension, a worker", "vit", "--dataset-type auto --train-data {shards} --train-num-samples 64 --workers 1", 1),
    ("WebDataset, resampled", "vit", "--dataset-type webdataset --train-data {shards} --train-num-samples 64 --dataset-resampled", 1),
    ("WebDataset on two ranks", "vit", "--dataset-type webdataset --train-data {shards} --train-num-samples 64", 2),
    ("CSV with workers", "vit", "--workers 1", 1),
    ("equal weights", "vit", "--superclip-idf off", 1),
    ("special tokens as words", "vit", "--superclip-special-tokens", 1),
    ("a larger weight", "vit", "--superclip-weight 2.5", 1),
]  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    """--model of each of MODELS, and of a model whose text tower and tokenizer are Hugging Face's."""
    root = tmp_path_factory.mktemp("models")
    return {**{name: write_model(root / name, **cfg) for name, cfg in MODELS.items()}, "hf-text": _hf_model(root / "hf")}


def _hf_model(folder: Path) -> str:
    """A BERT of random weights and a tokenizer of a few words: OpenCLIP takes both from folders, as it would download."""
    import tokenizers
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    words = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    bert = transformers.BertConfig(
        vocab_size=len(words), hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        max_position_embeddings=20,
    )  # fmt: skip
    tower = folder / "text"
    transformers.BertModel(bert).save_pretrained(tower)
    return write_model(
        folder, text={"hf_model_name": str(tower), "hf_tokenizer_name": str(folder), "hf_pooler_type": "cls_pooler"}
    )


@pytest.fixture(scope="session")
def teacher(models, tmp_path_factory) -> str:
    """--model of a folder with the weights of a plain OpenCLIP model."""
    import open_clip

    folder = tmp_path_factory.mktemp("teacher")
    shutil.copy(Path(models["vit"].removeprefix("local-dir:")) / "open_clip_config.json", folder)
    torch.manual_seed(1)
    torch.save(open_clip.create_model(models["vit"]).state_dict(), folder / "pytorch_model.bin")
    return f"local-dir:{folder}"


@pytest.mark.parametrize(("model", "flags", "world_size"), [row[1:] for row in TRAINS], ids=[row[0] for row in TRAINS])
def test_superclip_trains(model, flags, world_size, models, teacher, shards, train_flags, tmp_path):
    batch_size = 64 // world_size // (4 if "--accum-freq" in flags else 2)
    argv = ["--model", models[model], "--batch-size", batch_size, "--precision", "fp32", "--logs", "none", "--superclip"]
    flags = [flag.format(teacher=teacher, shards=shards) for flag in flags.split()]
    runs = run_ranks(superclip_train, *train_flags, *argv, *flags, world_size=world_size, cwd=tmp_path)
    assert [run.returncode for run in runs] == [0] * world_size, runs[0].output[-2000:]
    class_losses, contrastive_losses = runs[0].values("Class_loss"), runs[0].values("Contrastive_loss")
    assert len(class_losses) == len(contrastive_losses) == 2
    assert all(map(math.isfinite, class_losses + contrastive_losses))
    assert min(class_losses) > 0
