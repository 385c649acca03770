"""Exports are plain CLIP: stock OpenCLIP and transformers open them, without this package, and compute the same."""

import json
import os
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
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from support import GOLDEN
from support.models import VOCAB_SIZE, write_model
from support.released_models import FULL_SHAPES, plain_model, random_weights, write_hf_text_model, write_tokenizer
from support.training_runs import run_ranks, superclip_train

import openclip_superclip as superclip
from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.architecture import read_architecture
from openclip_superclip.checkpoints.checkpoint import read_checkpoint
from openclip_superclip.checkpoints.export import as_hugging_face, save_tokenizer
from openclip_superclip.checkpoints.hugging_face import clip_config
from openclip_superclip.checkpoints.run_outputs import run_behind
from openclip_superclip.demo.data import write_model as write_demo_model
from openclip_superclip.errors import InputError


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
        "statistics.document_frequency": torch.arange(vocab_size) % 1000,
    }


ALWAYS = {"README.md", "open_clip_config.json", "tokenizer.json", "tokenizer_config.json"}  # of a vocabulary of its own

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


@pytest.mark.slow
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


def test_a_vocabulary_of_ones_own_travels(tmp_path):
    demo = write_demo_model(tmp_path / "model")
    weights = random_weights(demo)
    torch.save(weights, tmp_path / "plain.pt")
    assert run(tmp_path / "plain.pt", "--model", demo, "--out", tmp_path / "out") == 0
    tokens = open_clip.get_tokenizer(demo)(["a red cat", "a blue dog and a house"])
    shutil.rmtree(tmp_path / "model")
    os.rename(tmp_path / "out", tmp_path / "moved")
    (opened,) = open_without_this_package(tmp_path / "moved")
    assert torch.equal(opened[1], tokens)
    assert_same_features(plain_model(f"local-dir:{tmp_path}/moved", weights), *opened)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_a_vocabularys_tokenizer_gives_openclips_ids(clean, tmp_path):
    write_demo_model(tmp_path / "model")
    stock = SimpleTokenizer(bpe_path=tmp_path / "model" / "bpe.txt.gz", context_length=12, clean=clean)
    tokenizer = as_hugging_face(stock)
    for folder in ("files", "again"):
        (tmp_path / folder).mkdir()
        save_tokenizer(tokenizer, tmp_path / folder)
        ours = HFTokenizer(str(tmp_path / folder), context_length=12, clean=clean, strip_sep_token=True)
        tokenizer = ours.tokenizer
        assert tokenizer.pad_token_id == 0  # where OpenCLIP 4 pads
    texts = st.one_of(
        st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=30),  # unassigned ones are each library's own
        st.text("abcdestl23 I!?,.-'éİſK<>_\n\t", max_size=60),
        st.sampled_from(["<start_of_text> x <end_of_text>", "it's I'LL 2024 &amp; 年", ""]),
    )

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(texts)
    def same(text):
        assert torch.equal(ours([text]), stock([text]))

    same()


@pytest.fixture(scope="module")
def trained(train_flags, shards, tmp_path_factory):
    """The checkpoint of a run that measured itself, at a size and a preprocessing that the command line gave."""
    folder = tmp_path_factory.mktemp("trained")
    model = write_model(folder / "model")
    flags = "--force-image-size 24 --image-mean 0.1 0.2 0.3 --image-resize-mode squash --image-interpolation bilinear"
    flags += " --force-quick-gelu --force-context-length 16"
    (run,) = run_ranks(
        superclip_train, *train_flags, "--model", model, "--superclip", "--dataset-type", "auto",
        "--val-data", shards, "--val-num-samples", "64",
        *flags.split(), cwd=folder,
    )  # fmt: skip
    assert run.returncode == 0, run.output[-3000:]
    return folder / "logs" / "run" / "checkpoints" / "epoch_1.pt"


def test_a_runs_own_record_gives_the_architecture_and_the_preprocessing(trained, tmp_path):
    names = {"openclip": "open_clip_model.safetensors", "torch": "open_clip_pytorch_model.bin"}
    folders = {format: tmp_path / format / "out" for format in names}
    for format, folder in folders.items():
        assert run(trained, "--out", folder, "--format", format) == 0
        assert {path.name for path in folder.iterdir()} == ALWAYS | {names[format]}
    model, _, preprocess = superclip.create_model_and_transforms(
        f"local-dir:{trained.parents[3]}/model", load_weights=False, force_image_size=24, force_quick_gelu=True,
        force_context_length=16, image_mean=(0.1, 0.2, 0.3), image_resize_mode="squash", image_interpolation="bilinear",
    )  # fmt: skip
    model.load_state_dict(torch.load(trained, weights_only=True)["state_dict"])
    for folder, opened in zip(folders.values(), open_without_this_package(*folders.values()), strict=True):
        assert torch.equal(preprocess(Image.open(folder.parent / "picture.png"))[None], opened[0])
        assert opened[1].shape == (2, 16)
        assert_same_features(model.eval(), *opened)


def test_the_model_card_says_what_is_known_and_nothing_else(trained, csv_data, tmp_path):
    assert run(trained, "--out", tmp_path / "out", "--license", "apache-2.0") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: open_clip\n")
    for fact in (
        f"- data: {csv_data.name}\n", "- captions seen with the class loss: 64", "- learning rate: 0.001",
        "- weight of the class loss λ: 1.0", "- global batch: 16", f"openclip-superclip {superclip.__version__}",
        "| image_to_text_R@1 | ",
    ):  # fmt: skip
        assert fact in card
    assert "- superclip\n" in card and "this is the model without it" in card
    for absent in ("base_model", "None", str(tmp_path), str(csv_data.parent)):
        assert absent not in card


def test_the_model_card_of_a_lone_plain_file_claims_no_recipe_and_no_class_loss(tmp_path):
    model = write_model(tmp_path / "model")
    torch.save(random_weights(model), tmp_path / "plain.pt")
    assert run(tmp_path / "plain.pt", "--model", model, "--out", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: unknown" in card
    for claim in ("Recipe", "Measured", "data:", "captions seen", "trained with the class loss", "- superclip"):
        assert claim not in card


def test_nothing_that_a_file_records_of_its_run_is_markup_on_the_card(small):
    record = {"seed": "<script>alert(1)</script>", "lr": "1\n\n# A heading", "train_data": "/home/me/a.tar::/b/c.tar"}
    file = small / "claims.safetensors"
    save_file(load_file(small / "plain.safetensors"), file, metadata={"superclip_options": json.dumps(record)})
    assert run(file, "--model", f"local-dir:{small}/model", "--out", small / "out") == 0
    card = (small / "out" / "README.md").read_text()
    assert "<script>" not in card and "\n# A heading" not in card
    assert "- data: a.tar::c.tar\n" in card


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
    card = (tmp_path / "out" / "README.md").read_text()
    assert "kept beside the model, in `superclip_head.safetensors`" in card and "without it" not in card
    if format != "hf":
        open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}/out")


# transformers


def test_transformers_opens_a_clip_model_with_the_same_features(trained, tmp_path):
    assert run(trained, "--out", tmp_path / "out", "--format", "hf") == 0
    options = {"force_image_size": 24, "force_quick_gelu": True, "force_context_length": 16}
    stock = open_clip.create_model(f"local-dir:{trained.parents[3]}/model", load_weights=False, **options).eval()
    state = torch.load(trained, weights_only=True)["state_dict"]
    stock.load_state_dict({k: v for k, v in state.items() if not k.startswith(("class_head.", "statistics."))})
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    tower = transformers.CLIPVisionModel.from_pretrained(tmp_path / "out").eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(
        images=[Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 60).convert("RGB")],
        text=["A red CAT, isn't it?", "two dogs!!"],
        return_tensors="pt",
        padding="max_length",
        truncation=True,
    )
    tokenizer = open_clip.get_tokenizer(f"local-dir:{trained.parents[3]}/model", context_length=16)
    texts = tokenizer(["A red CAT, isn't it?", "two dogs!!"])
    words = texts != 0
    assert torch.equal(inputs["input_ids"][words], texts[words])
    with torch.no_grad():
        outputs = model(**inputs)
        image_features, text_features, _ = stock(inputs["pixel_values"], texts)
        pooled = tower(inputs["pixel_values"]).pooler_output
        hidden = stock.visual.forward_intermediates(inputs["pixel_values"], indices=1, output_fmt="NLC")
    torch.testing.assert_close(outputs.image_embeds, image_features, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.text_embeds, text_features, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.logit_scale, stock.logit_scale)
    projected = torch.nn.functional.normalize(pooled @ stock.visual.proj, dim=-1)
    torch.testing.assert_close(projected, image_features, atol=1e-5, rtol=0)
    patches = tower(inputs["pixel_values"]).last_hidden_state[:, 1:]  # what LLaVA-style projects read
    torch.testing.assert_close(patches, hidden["image_intermediates"][-1], atol=1e-5, rtol=0)


STRINGS = [
    "a photo of a cat", "it’s a dog", "“quoted” text", "salt &amp; pepper", "ﬁne ﬂower", "café", "cafe\u0301", "naïve",
    "a  b\tc", "100% real", "don't", "ＦＵＬＬ width", "a&lt;b", "em—dash", "ellipsis…", "😀", "ÄÖÜ ß", "x²", "№ 5",
    "I've 2 dogs", "&quot;hi&quot;", "A.B.C.", "1,000", " trailing ", "\u00a0nbsp", "rock &#39;n&#39; roll",
    "A&amp;amp;B",
]  # fmt: skip


def test_the_processor_gives_openclips_pixels_and_tokens(tmp_path):
    """To the pixel with backend="pil": torchvision, the default, resizes tensors and rounds otherwise.

    OpenCLIP rounds half a pixel of the crop's place to the even number, and transformers down.
    """
    model = write_model(tmp_path / "model")
    torch.save(random_weights(model), tmp_path / "plain.pt")
    assert run(tmp_path / "plain.pt", "--model", model, "--out", tmp_path / "out", "--format", "hf") == 0
    _, _, preprocess = open_clip.create_model_and_transforms(model)
    exact, default = (
        transformers.CLIPProcessor.from_pretrained(tmp_path / "out", **b) for b in ({"backend": "pil"}, {})
    )
    for size in ((60, 40), (80, 200), (32, 32), (400, 300)):
        picture = Image.effect_mandelbrot(size, (-2, -1, 1, 1), 60).convert("RGB")
        ours = preprocess(picture)
        assert torch.equal(exact(images=picture, return_tensors="pt")["pixel_values"][0], ours), size
        assert (default(images=picture, return_tensors="pt")["pixel_values"][0] - ours).abs().max() < 0.05
    tokenizer = open_clip.get_tokenizer(model)
    for text in STRINGS:
        assert default.tokenizer(text)["input_ids"] == [token for token in tokenizer(text)[0].tolist() if token], text


def test_every_configuration_that_openclip_ships_is_written_for_transformers_or_refused_by_name():
    expressed = []
    for name in open_clip.list_models():
        try:
            config = transformers.CLIPConfig(**clip_config(read_architecture(name)))
        except InputError as error:
            assert "is not a model that transformers' CLIPModel can express (" in str(error), name
        else:
            expressed.append(name)
            assert config.vision_config.patch_size and config.vision_config.image_size, name
    assert "ViT-B-16" in expressed and "RN50" not in expressed


def test_custom_text_towers_of_openclips_own_are_expressed_too(tmp_path):
    model = write_model(tmp_path / "model", custom_text=True, text={"vocab_size": 600})
    weights = random_weights(model)
    torch.save(weights, tmp_path / "plain.pt")
    assert run(tmp_path / "plain.pt", "--model", model, "--out", tmp_path / "out", "--format", "hf") == 0
    stock, ours = plain_model(model, weights), transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    texts = torch.randint(1, 599, (3, 20))
    texts[:, 11] = 599
    with torch.no_grad():
        outputs = ours(pixel_values=torch.ones(1, 3, 32, 32), input_ids=texts)
        expected = stock(torch.ones(1, 3, 32, 32), texts)
    torch.testing.assert_close(outputs.image_embeds, expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.text_embeds, expected[1], atol=1e-5, rtol=0)


NOT_EXPRESSED = {
    "ResNet": ({"vision": {"layers": [1, 1, 1, 1], "width": 16}}, "a ResNet"),
    "timm": ({"vision": {"timm_model_name": "test_vit", "image_size": 160}}, "vision_cfg.timm_model_name = 'test_vit'"),
    "average pooling": ({"vision": {"pool_type": "avg"}}, "vision_cfg.pool_type = 'avg'"),
    "no causal mask": ({"text": {"no_causal_mask": True}}, "text_cfg.no_causal_mask = True"),
    "logit bias": ({"init_logit_bias": -10}, "init_logit_bias"),
    "cleaning": (
        {"text": {"vocab_size": 600, "tokenizer_kwargs": {"clean": "canonicalize"}}},
        "text_cfg.tokenizer_kwargs.clean = 'canonicalize'",
    ),
    "special tokens": (
        {"text": {"vocab_size": 600, "tokenizer_kwargs": {"additional_special_tokens": ["<x>"]}}},
        "text_cfg.tokenizer_kwargs.additional_special_tokens = ['<x>']",
    ),
    "oblong pictures": ({"vision": {"image_size": [32, 48]}}, "vision_cfg.image_size = [32, 48]"),
}


def test_a_square_of_two_sides_is_a_square_for_transformers(tmp_path):
    model = write_model(tmp_path / "model", vision={"image_size": [48, 48]}, text={"vocab_size": 600})
    torch.save(random_weights(model), tmp_path / "plain.pt")
    assert run(tmp_path / "plain.pt", "--model", model, "--out", tmp_path / "out", "--format", "hf") == 0
    assert transformers.CLIPModel.from_pretrained(tmp_path / "out").config.vision_config.image_size == 48


@pytest.mark.parametrize("interpolation", ["random", "nearest"])
def test_an_interpolation_is_written_as_openclip_reads_it_or_refused(interpolation, tmp_path, capsys):
    model = write_model(tmp_path / "model", text={"vocab_size": 600})
    config = tmp_path / "model" / "open_clip_config.json"
    content = json.loads(config.read_text()) | {"preprocess_cfg": {"interpolation": interpolation}}
    config.write_text(json.dumps(content))
    torch.save(random_weights(model), tmp_path / "plain.pt")
    code = run(tmp_path / "plain.pt", "--model", model, "--out", tmp_path / "out", "--format", "hf")
    if interpolation == "random":
        assert code == 0
        assert transformers.CLIPImageProcessor.from_pretrained(tmp_path / "out").resample == Image.Resampling.BICUBIC
    else:
        assert code == 1
        assert "OpenCLIP cannot prepare pictures" in capsys.readouterr().err


@pytest.mark.parametrize(("cfg", "reason"), NOT_EXPRESSED.values(), ids=NOT_EXPRESSED)
def test_what_transformers_cannot_express_is_refused_by_name(cfg, reason, tmp_path, capsys):
    model = write_model(tmp_path / "model", **cfg)
    torch.save(random_weights(model), tmp_path / "plain.pt")
    assert run(tmp_path / "plain.pt", "--model", model, "--out", tmp_path / "out", "--format", "hf") == 1
    error = capsys.readouterr().err
    assert f"({reason})" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# What is refused, and what a failure leaves behind


@pytest.fixture
def small(tmp_path):
    """A folder with a small model's configuration beside a file of its weights."""
    model = write_model(tmp_path / "model", vision={"width": 16, "head_width": 16}, text={"width": 12})
    torch.save(random_weights(model), tmp_path / "plain.pt")
    save_file(random_weights(model), tmp_path / "plain.safetensors")
    return tmp_path


IMPOSSIBLE = {  # a tensor of the checkpoint: what it holds, and what is said
    "NaN": (
        "visual.proj",
        lambda t: t.index_fill(0, torch.tensor(1), float("nan")),
        "holds NaN or infinity (32 of 512",
    ),
    "infinity": ("logit_scale", lambda t: t + float("inf"), "logit_scale holds NaN or infinity"),
    "int32": ("visual.proj", lambda t: t.int(), "visual.proj is int32, expected float32"),
    "complex": ("visual.proj", lambda t: t.to(torch.complex64), "visual.proj is complex (complex64)"),
    "sparse": ("visual.proj", lambda t: t.to_sparse(), "visual.proj is sparse (sparse_coo)"),
    "meta": ("visual.proj", lambda t: t.to("meta"), "visual.proj is on the meta device"),
    "quantized": ("visual.proj", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "is quantized (qint8)"),
    "negative": ("statistics.num_captions", lambda t: t - 2000, "statistics.num_captions is -766"),
    "most": (
        "statistics.num_captions",
        lambda t: torch.full_like(t, 2**63 - 1),
        "is 9,223,372,036,854,775,807; exp",
    ),
    "too many": ("statistics.document_frequency", lambda t: t + 300, "document_frequency[935] is 1,235; expected 0 to"),
}


@pytest.mark.parametrize(("name", "change", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_weights_and_counts_that_cannot_be_are_refused_by_name(name, change, reason, small, capsys):
    weights = random_weights(f"local-dir:{small}/model") | head_of(16, VOCAB_SIZE)
    weights[name] = change(weights[name])
    torch.save(weights, small / "wrong.pt")
    argv = [small / "wrong.pt", "--model", f"local-dir:{small}/model", "--out", small / "out"]
    assert run(*argv) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (small / "out").exists()


def test_a_name_with_and_without_a_prefix_is_not_exported_as_either(small, capsys):
    weights = random_weights(f"local-dir:{small}/model")
    torch.save(weights | {"module.visual.proj": weights["visual.proj"] + 1}, small / "both.pt")
    assert run(small / "both.pt", "--model", f"local-dir:{small}/model", "--out", small / "out") == 1
    assert "both.pt holds visual.proj twice, once as module.visual.proj" in capsys.readouterr().err


def test_the_names_of_a_compiled_model_are_read(small):
    weights = random_weights(f"local-dir:{small}/model")
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}, small / "compiled.pt")
    assert run(small / "compiled.pt", "--model", f"local-dir:{small}/model", "--out", small / "out") == 0
    kept = load_file(small / "out" / "open_clip_model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("outer", [True, False])
def test_a_json_file_may_hold_the_configuration_under_an_outer_key(outer, small):
    config = json.loads((small / "model" / "open_clip_config.json").read_text())
    (small / "x.json").write_text(json.dumps(config if outer else config["model_cfg"]))
    assert run(small / "plain.pt", "--model", small / "x.json", "--out", small / "out") == 0
    written = json.loads((small / "out" / "open_clip_config.json").read_text())
    assert written["model_cfg"]["vision_cfg"] == config["model_cfg"]["vision_cfg"]


BROKEN_JSON = {
    '{"embed_dim": 32,': "x.json has no readable configuration",
    "[1, 2]": "its embed_dim, vision_cfg, text_cfg is missing or wrong",
    '{"embed_dim": 32, "vision_cfg": {}, "text_cfg": 3}': "its text_cfg is missing or wrong",
    '{"embed_dim": 32, "vision_cfg": {"novelty": 1}, "text_cfg": {}}': "OpenCLIP cannot build x",
}


@pytest.mark.parametrize(("text", "reason"), BROKEN_JSON.items(), ids=["cut", "list", "number", "unknown"])
def test_a_configuration_of_nonsense_is_refused_in_one_line(text, reason, small, capsys):
    (small / "x.json").write_text(text)
    assert run(small / "plain.pt", "--model", small / "x.json", "--out", small / "out") == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


NO_PREPROCESSING = [{"interpolation": "nearest"}, {"resize_mode": "tall"}, {"mean": "grey"}, {"mode": "L"}]


@pytest.mark.parametrize("preprocess_cfg", NO_PREPROCESSING, ids=str)
@pytest.mark.parametrize("format", ["openclip", "hf"])
def test_a_preprocessing_that_openclip_cannot_do_is_refused(format, preprocess_cfg, small, capsys):
    config = json.loads((small / "model" / "open_clip_config.json").read_text())
    (small / "x.json").write_text(json.dumps(config | {"preprocess_cfg": preprocess_cfg}))
    argv = [small / "plain.pt", "--model", small / "x.json", "--out", small / "out", "--format", format]
    assert run(*argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --model: OpenCLIP cannot prepare pictures as x says in preprocess_cfg")
    assert error.count("\n") == 1
    assert not (small / "out").exists()


def test_a_tokenizer_that_openclip_cannot_open_is_refused_before_anything_is_written(small, capsys):
    config = json.loads((small / "model" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"novelty": 1}
    (small / "x.json").write_text(json.dumps(config))
    assert run(small / "plain.pt", "--model", small / "x.json", "--out", small / "out") == 1
    assert "x has no tokenizer that OpenCLIP opens" in capsys.readouterr().err
    assert not (small / "out").exists()


def test_a_checkpoint_of_the_authors_is_told_the_import(tmp_path, capsys):
    theirs = GOLDEN / "reference_tiny.pt"
    assert run(theirs, "--model", GOLDEN / "reference_tiny.json", "--out", tmp_path / "out") == 1
    assert f"superclip import {theirs} --model MODEL --out FOLDER" in capsys.readouterr().err
    name = write_model(tmp_path / "model", text={"vocab_size": 600})
    model = superclip.create_model_and_transforms(name)[0]
    with pytest.raises(InputError, match="superclip import FILE"):
        model.load_state_dict({"cap_fq": torch.zeros(1, 600)})


# The head that an export keeps


def test_a_kept_head_comes_along_wherever_the_weights_are_read(small):
    weights = random_weights(f"local-dir:{small}/model") | head_of(16, VOCAB_SIZE)
    torch.save(weights, small / "run.pt")
    argv = ["--model", f"local-dir:{small}/model", "--with-head"]
    assert run(small / "run.pt", *argv, "--out", small / "first") == 0
    assert run(small / "first", "--with-head", "--out", small / "second", "--format", "torch") == 0
    for command in (["average", small / "first", small / "second"], ["interpolate", small / "first", small / "second"]):
        assert main([*map(str, command), "--out", str(small / f"{command[0]}.pt")]) == 0
    opened = [
        superclip.create_model_and_transforms(f"local-dir:{small}/second")[0].state_dict(),
        read_checkpoint(small / "average.pt").weights,
        read_checkpoint(small / "interpolate.pt").weights,
        read_checkpoint(small / "first" / "open_clip_model.safetensors").weights,
    ]
    for state in opened:
        assert all(torch.equal(state[name], tensor) for name, tensor in weights.items() if name.startswith("statis"))
        torch.testing.assert_close(state["class_head.weight"], weights["class_head.weight"])
    assert run(small / "average.pt", "--out", small / "third") == 0  # which model it is of, the file remembers


def test_an_export_of_a_run_without_idf_remembers_it(trained, tmp_path):
    """And so do a second export and a mean."""
    shutil.copytree(trained.parents[1], tmp_path / "run")
    params = tmp_path / "run" / "params.txt"
    text = params.read_text().replace("model: local-dir:", f"model: local-dir:{trained.parents[3]}/")
    params.write_text(text.replace("superclip_idf: online", "superclip_idf: off"))
    checkpoint = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    model = ["--model", f"local-dir:{trained.parents[3]}/model", "--with-head"]
    assert run(checkpoint, *model, "--out", tmp_path / "first") == 0
    assert run(tmp_path / "first", "--with-head", "--out", tmp_path / "second") == 0
    assert main(["average", *[str(tmp_path / "second")] * 2, "--out", str(tmp_path / "mean.safetensors")]) == 0
    for file in ("first", "second", "mean.safetensors"):
        assert run_behind(read_checkpoint(tmp_path / file)).options["superclip_idf"] == "off"


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def write_bad_files(folder):
    whole = (folder / "plain.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("no checkpoint at all")
    (folder / "list.pt").write_bytes(b"")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"epoch": 1}, folder / "epoch.pt")
    torch.save({"state_dict": RunsCode()}, folder / "code.pt")
    (folder / "code.bin").write_bytes(pickle.dumps(RunsCode()))
    save_file({"a": torch.ones(1000)}, folder / "whole.safetensors")
    (folder / "truncated.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:500])
    (folder / "folder").mkdir()
    for epoch in (2, 10):
        (folder / "run/checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / f"run/checkpoints/epoch_{epoch}.pt").write_bytes(whole)


BAD_FILES = {
    "truncated.pt": "truncated, corrupt, or no checkpoint",
    "empty.pt": "truncated, corrupt, or no checkpoint",
    "text.pt": "holds no weights as torch saves them",
    "truncated.safetensors": "truncated, corrupt, or no checkpoint",
    "list.pt": "expected tensors under their names",
    "epoch.pt": "expected tensors under their names",
    "code.pt": ".mkdir, and nothing but weights is ever loaded",
    "code.bin": "nothing but weights is ever loaded",
    "nowhere.pt": "there is no file",
    "folder": "holds no weights",
    "run": "expected a run's checkpoint, run/checkpoints/epoch_10.pt",
    "whole.safetensors": "does not match",
}


@pytest.mark.parametrize(("file", "reason"), BAD_FILES.items(), ids=BAD_FILES)
def test_a_bad_file_is_refused_in_one_line_and_nothing_is_written(file, reason, small, capsys, monkeypatch):
    monkeypatch.chdir(small)
    write_bad_files(small)
    before = sorted(small.iterdir())
    assert run(file, "--model", f"local-dir:{small}/model", "--out", "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert file in error
    assert reason in error
    assert error.count("\n") == 1
    assert sorted(small.iterdir()) == before


def test_a_configuration_that_does_not_match_shows_three_mismatches_with_both_shapes(small, capsys):
    assert run(small / "plain.pt", "--model", "ViT-B-32", "--out", small / "out") == 1
    error = capsys.readouterr().err
    assert "does not match ViT-B-32: ln_final.bias is [12], expected [512]; " in error
    assert error.count(" is [") == 3
    assert error.count("\n") == 1


BAD_OPTIONS = {
    "": "nothing beside",
    "--model local-dir:model --with-head": "--with-head",
    "--model nonsense": "OpenCLIP knows no 'nonsense'",
    "--model local-dir:model --out plain.pt": "--out: plain.pt exists",
    "--model local-dir:model --out model": "--out: model exists; give another name, or --overwrite",
    "--model local-dir:model --out plain.pt/out": "--out: plain.pt/out cannot be written",
}


@pytest.mark.parametrize(("flags", "reason"), BAD_OPTIONS.items(), ids=BAD_OPTIONS)
def test_bad_options_are_refused_in_one_line(flags, reason, small, capsys, monkeypatch):
    monkeypatch.chdir(small)
    before = sorted(small.rglob("*"))
    assert run("plain.pt", "--out", "out", *flags.split()) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert sorted(small.rglob("*")) == before


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder and what the file there holds."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def test_overwrite_exchanges_the_folder_whole(small, tmp_path):
    """Nothing of the old export stays beside the new one: not its weights in another format, not its head."""
    model, torchs = f"local-dir:{small}/model", small / "open_clip_pytorch_model.bin"
    torch.save(random_weights(model) | head_of(16, VOCAB_SIZE), small / "run.pt")
    assert run(small / "run.pt", "--model", model, "--out", small / "out", "--with-head") == 0
    old = random_weights(model)
    torch.save({name: tensor + 1 if name == "logit_scale" else tensor for name, tensor in old.items()}, torchs)
    assert run(torchs, "--model", model, "--out", small / "out", "--format", "torch", "--overwrite") == 0
    assert {path.name for path in (small / "out").iterdir()} == ALWAYS | {"open_clip_pytorch_model.bin"}
    opened = open_clip.create_model_from_pretrained(f"local-dir:{small}/out")[0]
    assert opened.logit_scale == old["logit_scale"] + 1


def test_overwrite_may_replace_the_configuration_that_named_the_model(small):
    assert run(small / "plain.pt", "--model", f"local-dir:{small}/model", "--out", small / "model", "--overwrite") == 0
    open_clip.create_model_from_pretrained(f"local-dir:{small}/model")


OVERWRITE_LOSES = {
    "plain.pt --out model": "contains notes.txt, which --overwrite would delete",
    "model/plain.pt --out model": "contains model/plain.pt, which is an input and would be deleted",
    "imported --out imported": "contains imported, which is an input and would be deleted",
    "imported --out .": ". is the working folder, or contains it",
    "plain.pt --out ..": ".. is the working folder, or contains it",
    "plain.pt --out /": "/ is the working folder, or contains it",
    "plain.pt --out link": "contains notes.txt, which --overwrite would delete",
    "plain.pt --out model/notes.txt": "is a file; expected the name of a folder",
}


@pytest.mark.parametrize(("argv", "reason"), OVERWRITE_LOSES.items(), ids=OVERWRITE_LOSES)
def test_overwrite_loses_nothing_but_an_earlier_export(argv, reason, small, capsys, monkeypatch):
    monkeypatch.chdir(small)
    (small / "model" / "notes.txt").write_text("mine")
    shutil.copy(small / "plain.pt", small / "model" / "plain.pt")
    shutil.copytree(small / "model", small / "imported", ignore=lambda *_: ["notes.txt"])
    os.rename(small / "imported" / "plain.pt", small / "imported" / "pytorch_model.bin")
    (small / "link").symlink_to("model")
    before = snapshot(small)
    file, *rest = argv.split()
    assert run(file, *rest, "--model", "local-dir:model", "--overwrite") == 1
    assert reason in capsys.readouterr().err
    assert snapshot(small) == before


def test_a_link_to_an_export_stays_a_link_to_the_new_one(small):
    argv = [small / "plain.pt", "--model", f"local-dir:{small}/model"]
    assert run(*argv, "--out", small / "out") == 0
    (small / "link").symlink_to("out")
    assert run(*argv, "--out", small / "link", "--format", "torch", "--overwrite") == 0
    assert (small / "link").is_symlink()
    assert (small / "out" / "open_clip_pytorch_model.bin").is_file()


def export_on_a_full_disk(folder, format, limit):
    """No file may grow beyond the limit, which is how a full disk looks from here."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    argv = [folder / "plain.pt", "--model", f"local-dir:{folder}/model", "--format", format]
    return run(*argv, "--out", folder / "out", "--overwrite")


@pytest.mark.parametrize(("format", "limit"), [("openclip", 65536), ("torch", 65536), ("hf", 65536), ("hf", 1000)])
def test_a_full_disk_leaves_nothing_half_written(format, limit, small, tmp_path_factory):
    before = snapshot(small)
    (failed,) = run_ranks(export_on_a_full_disk, small, format, limit, cwd=tmp_path_factory.mktemp("log"))
    assert failed.returncode == 1, failed.output[-3000:]
    (error,) = failed.errors()
    assert error.startswith(f"error: --out: {small}/out cannot be written")
    assert "Traceback" not in failed.output
    assert snapshot(small) == before


READ_ONLY = 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"'


@pytest.mark.parametrize(("command", "out"), [("export", "out"), ("average", "out.pt")])
def test_a_read_only_disk_is_named_in_one_line(command, out, small):
    (small / "disk").mkdir()
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, str(small / "disk")]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode != 0:
        pytest.skip("this system mounts nothing for a test")
    given = [small / "plain.pt", "--model", f"local-dir:{small}/model"]
    argv = [command, *(given if command == "export" else given[:1] * 2), "--out", small / "disk" / out]
    python = [sys.executable, "-m", "openclip_superclip", *map(str, argv)]
    failed = subprocess.run([*namespace, *python], capture_output=True, text=True)
    assert failed.returncode == 1
    assert f"error: --out: {small}/disk/{out} cannot be written" in failed.stderr
    assert "Read-only file system" in failed.stderr
    assert "Traceback" not in failed.stderr


TERMINATED = """
import os, signal, sys
from openclip_superclip.checkpoints import export
from openclip_superclip.__main__ import main

save = export.write_model
def write_and_wait(*args):
    save(*args)
    os.kill(os.getpid(), signal.SIGTERM)
export.write_model = write_and_wait
main(sys.argv[1:])
"""


def test_a_termination_leaves_nothing_half_written(small):
    before = snapshot(small)
    argv = ["export", small / "plain.pt", "--model", f"local-dir:{small}/model", "--out", small / "out"]
    ended = subprocess.run([sys.executable, "-c", TERMINATED, *map(str, argv)], capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr[-3000:]
    assert snapshot(small) == before


def test_push_uploads_the_folder_and_nothing_does_by_default(small, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda self, repo, **_: calls.append(repo) or f"hub/{repo}"
    )
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "upload_folder",
        lambda self, repo_id, folder_path, **_: calls.append((repo_id, folder_path)),
    )
    argv = [small / "plain.pt", "--model", f"local-dir:{small}/model"]
    assert run(*argv, "--out", small / "one") == 0
    assert calls == []
    assert run(*argv, "--out", small / "two", "--push", "someone/model") == 0
    assert calls == ["someone/model", ("someone/model", small / "two")]
    assert "hf-hub:someone/model" in (small / "two" / "README.md").read_text()


def test_a_push_that_fails_says_so_in_one_line(small, monkeypatch, capsys):
    def refuse(self, repo, **_):
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    argv = [
        small / "plain.pt",
        "--model",
        f"local-dir:{small}/model",
        "--out",
        small / "out",
        "--push",
        "someone/model",
    ]
    assert run(*argv) == 1
    assert "--push: someone/model did not take" in capsys.readouterr().err
    assert (small / "out" / "open_clip_model.safetensors").is_file()
