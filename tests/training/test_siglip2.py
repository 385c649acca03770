"""The recipe that fine-tunes SigLIP 2 trains a small model of the same
kind, whose export opens in stock OpenCLIP."""

import open_clip
import pytest
import torch
from support import write_json
from support.data import write_shards
from support.models import LIST_OF_WORDS, random_weights, write_tokenizer
from support.training_runs import execute, run_superclip, shell_words

from openclip_superclip.checkpoints.architecture import trained_architecture
from openclip_superclip.runs.progress import read_log

RECIPE = "finetune/supersiglip_vit-b-16-siglip2_512k_bs128"


def write_small_siglip2(folder):
    """Writes ViT-B-16-SigLIP2's configuration with few layers and words,
    and returns its JSON file."""
    write_tokenizer(folder / "tokenizer")
    model_cfg = open_clip.get_model_config("ViT-B-16-SigLIP2")
    model_cfg["embed_dim"] = 64
    model_cfg["vision_cfg"] |= {"image_size": 160, "timm_model_name": "test_vit"}
    model_cfg["text_cfg"] |= {
        "width": 48,
        "heads": 2,
        "layers": 1,
        "vocab_size": len(LIST_OF_WORDS),
    }
    model_cfg["text_cfg"]["hf_tokenizer_name"] = f"{folder}/tokenizer"
    write_json(folder / "small.json", model_cfg)
    return folder / "small.json"


@pytest.mark.usefixtures("forks")
def test_the_recipe_trains_both_losses_from_released_weights_and_exports(tmp_path):
    model = write_small_siglip2(tmp_path)
    name = trained_architecture(str(model), None, "--model", None).name
    weights = random_weights(name)
    weights["logit_scale"].fill_(2)  # training keeps it above 0
    torch.save(weights, tmp_path / "webli.pt")
    changes = (
        f"--set model={model} --set flags.pretrained={tmp_path}/webli.pt --set precision=fp32 "
        "--set workers=0 --set global_batch_size=16 --set data_samples=64 --set samples=128 "
        "--set warmup=2 --set superclip.head_warmup=32 --set flags.log-every-n-steps=1"
    )
    data, output = write_shards(tmp_path / "shards", 4), tmp_path / "output"
    run = f"run {RECIPE} --data {data} --device cpu --out {tmp_path}/run"
    assert run_superclip(shell_words(run, changes), output, tmp_path) == 0, output.read_text()
    points = read_log(tmp_path / "run/out.log")
    assert len(points) == 8 and all(
        point["contrastive_loss"] > 0 and point["class_loss"] > 0 for point in points
    )
    execute(f"export {tmp_path}/run --out {tmp_path}/exported")
    exported = open_clip.create_model(f"local-dir:{tmp_path}/exported").state_dict()
    assert exported.keys() == weights.keys() and "logit_bias" in exported
    moved = [(tensor - weights[name]).abs().max() for name, tensor in exported.items()]
    assert min(moved) > 0 and max(moved) < 1e-4  # by 8 steps of 8.8e-6 from the weights of the file
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}/exported")(["A red, cat!"])
    assert tokens.shape == (1, 64)
    assert tokens[0, 1] == LIST_OF_WORDS.index("a")  # canonicalized: lower case, no punctuation
