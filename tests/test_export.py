"""Exports are plain CLIP: stock OpenCLIP and transformers open them, without this package, and compute the same."""

import io
import json
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
import transformers
from conftest import run_ranks, superclip_train, write_model
from PIL import Image
from released import FULL_SHAPES, plain_model, random_weights, write_tokenizer
from safetensors.torch import load_file, save_file
from test_fine_tune import write_hf_text_model

import openclip_superclip as superclip
from openclip_superclip.__main__ import main


def run(*argv) -> int:
    return main(["export", *map(str, argv)])


def head_of(width: int, vocab_size: int) -> dict[str, torch.Tensor]:
    """A class head and counts, as a checkpoint of a SuperCLIP run holds them."""
    return {
        "class_head.weight": torch.randn(1, width).repeat(vocab_size, 1),
        "class_head.bias": torch.zeros(vocab_size),
        "class_head.ln.weight": torch.ones(width),
        "class_head.ln.bias": torch.zeros(width),
        "statistics.num_captions": torch.tensor(1234),
        "statistics.document_frequency": torch.arange(vocab_size),
    }


OPEN = """
import sys
sys.modules["openclip_superclip"] = None  # importing it fails
import open_clip, torch
from PIL import Image

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    model.eval()
    image = preprocess(Image.open(f"{folder}/../picture.png"))[None]
    text = open_clip.get_tokenizer(name)(["a red cat", "a blue dog and a house"])
    with torch.no_grad():
        torch.save([image, text, model.encode_image(image), model.encode_text(text)], f"{folder}/../features.pt")
    assert not [name for name in sys.modules if name.startswith("openclip_superclip.")]
"""


def open_without_this_package(*folders: Path) -> list[list[torch.Tensor]]:
    """Pixels, tokens and features of the picture beside each folder, from a process that cannot import us."""
    for folder in folders:
        Image.effect_mandelbrot((300, 260), (-2, -1, 1, 1), 60).convert("RGB").save(folder.parent / "picture.png")
    run = subprocess.run([sys.executable, "-c", OPEN, *map(str, folders)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder.parent / "features.pt", weights_only=True) for folder in folders]


@torch.no_grad()
def assert_same_features(model, image, text, image_features, text_features):
    assert torch.equal(model.encode_image(image), image_features)
    assert torch.equal(model.encode_text(text), text_features)


def test_stock_openclip_opens_released_shapes_with_bit_equal_features(tmp_path, monkeypatch):
    """One process opens them all: ViTs, a ResNet, a ConvNeXt, timm's ViT, SigLIP."""
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS["ViT-B-16-SigLIP"]["text_cfg"], "hf_tokenizer_name", str(tmp_path / "words")
    )
    write_tokenizer(tmp_path / "words")
    folders = [tmp_path / name / "out" for name in FULL_SHAPES]
    for name, folder in zip(FULL_SHAPES, folders, strict=True):
        folder.parent.mkdir()
        weights = random_weights(name) | head_of(8, 100)
        torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, folder.parent / "run.pt")
        del weights
        assert run(folder.parent / "run.pt", "--model", name, "--out", folder) == 0
        (folder.parent / "run.pt").unlink()
    for name, folder, opened in zip(FULL_SHAPES, folders, open_without_this_package(*folders), strict=True):
        shutil.rmtree(folder)
        assert_same_features(plain_model(name, random_weights(name)), *opened)


def test_a_hugging_face_text_tower_and_its_tokenizer_travel(tmp_path):
    name = write_hf_text_model(tmp_path / "model")
    weights = random_weights(name)
    save_file(weights | head_of(64, 10), tmp_path / "model" / "open_clip_model.safetensors")
    assert run(tmp_path / "model", "--out", tmp_path / "out") == 0
    for file in (tmp_path / "model").glob("*.json"):
        file.unlink()
    (opened,) = open_without_this_package(tmp_path / "out")
    assert opened[1].tolist()[0][:5] == [2, 4, 5, 7, 3]  # start, a, red, cat, end
    assert_same_features(plain_model(f"local-dir:{tmp_path}/out", weights), *opened)


@pytest.fixture(scope="module")
def trained(train_flags, shards, tmp_path_factory):
    """The checkpoint of a run that measured itself, at a size and a preprocessing that the command line gave."""
    folder = tmp_path_factory.mktemp("trained")
    model = write_model(folder / "model")
    flags = "--force-image-size 24 --image-mean 0.1 0.2 0.3 --image-resize-mode squash --image-interpolation bilinear"
    flags += " --force-quick-gelu --force-context-length 16"
    (run,) = run_ranks(
        superclip_train, *train_flags, "--model", model, "--superclip", "--val-data", shards, "--val-num-samples", "64", "--dataset-type", "auto",
        *flags.split(), cwd=folder,
    )  # fmt: skip
    assert run.returncode == 0, run.output[-3000:]
    return folder / "logs" / "run" / "checkpoints" / "epoch_1.pt"


@pytest.mark.parametrize("format", ["openclip", "torch"])
def test_a_runs_own_record_gives_the_architecture_and_the_preprocessing(format, trained, tmp_path):
    assert run(trained, "--out", tmp_path / "out", "--format", format) == 0
    names = {"openclip": "open_clip_model.safetensors", "torch": "open_clip_pytorch_model.bin"}
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"README.md", "open_clip_config.json", names[format]}
    (opened,) = open_without_this_package(tmp_path / "out")
    model, _, preprocess = superclip.create_model_and_transforms(
        f"local-dir:{trained.parents[3]}/model", load_weights=False, force_image_size=24, force_quick_gelu=True,
        force_context_length=16, image_mean=(0.1, 0.2, 0.3), image_resize_mode="squash", image_interpolation="bilinear",
    )  # fmt: skip
    model.load_state_dict(torch.load(trained, weights_only=True)["state_dict"])
    assert torch.equal(preprocess(Image.open(tmp_path / "picture.png"))[None], opened[0])
    assert opened[1].shape == (2, 16)
    assert_same_features(model.eval(), *opened)


def test_the_model_card_says_what_is_known_and_nothing_else(trained, csv_data, tmp_path):
    assert run(trained, "--out", tmp_path / "out", "--license", "apache-2.0") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: open_clip\n")
    for fact in (
        f"- data: {csv_data}", "- captions seen with the class loss: 64", "- learning rate: 0.001",
        "- weight of the class loss λ: 1.0", "- global batch: 16", f"openclip-superclip {superclip.__version__}",
        "| image_to_text_R@1 | ",
    ):  # fmt: skip
        assert fact in card
    assert "base_model" not in card
    assert "None" not in card


def test_the_model_card_of_a_lone_plain_file_claims_no_recipe_and_no_class_loss(tmp_path):
    model = write_model(tmp_path / "model")
    torch.save(random_weights(model), tmp_path / "plain.pt")
    assert run(tmp_path / "plain.pt", "--model", model, "--out", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: unknown" in card
    for claim in ("Recipe", "Measured", "data:", "captions seen", "trained with the class loss"):
        assert claim not in card


def test_released_weights_are_named_as_the_base_model(trained, tmp_path):
    shutil.copytree(trained.parents[1], tmp_path / "run")
    params = tmp_path / "run" / "params.txt"
    replaced = {"pretrained: ": "pretrained: laion2b_s34b_b79k", "model: ": "model: ViT-B-32"}
    lines = [
        next((new for old, new in replaced.items() if line.startswith(old)), line)
        for line in params.read_text().splitlines()
    ]
    params.write_text("\n".join(lines))
    model = f"local-dir:{trained.parents[3]}/model"
    assert run(tmp_path / "run" / "checkpoints" / "epoch_1.pt", "--model", model, "--out", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: laion/CLIP-ViT-B-32-laion2B-s34B-b79K" in card
    assert "- base model: ViT-B-32, laion2b_s34b_b79k" in card


@pytest.mark.parametrize("format", ["openclip", "torch", "hf"])
def test_the_head_stays_beside_the_model_where_asked(format, trained, tmp_path):
    assert run(trained, "--out", tmp_path / "out", "--with-head", "--format", format, "--overwrite") == 0
    state = torch.load(trained, weights_only=True)["state_dict"]
    kept = load_file(tmp_path / "out" / "superclip_head.safetensors")
    assert kept.keys() == {name for name in state if name.startswith(("class_head.", "statistics."))}
    assert all(torch.equal(tensor, state[name]) for name, tensor in kept.items())
    if format != "hf":
        open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}/out")
