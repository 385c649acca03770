"""Exports are plain CLIP: stock OpenCLIP and transformers compute the same
from them without this package."""

import re
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from PIL import Image
from support import cases, input_error, parametrize, refusals, table
from support.data import MakesFolder
from support.models import (
    AUTHORS,
    MODELS,
    VOCAB_SIZE,
    add_to_cache,
    assert_equal,
    plain_model,
    random_weights,
    without_head,
    write_model,
    write_vocabulary,
)
from support.openclip_trees import held
from support.stock import opened_by_stock
from support.training_runs import call, error_of, execute, load, on_a_full_disk, run_train

import openclip_superclip as superclip
from openclip_superclip.checkpoints.architecture import read_architecture
from openclip_superclip.checkpoints.export import model_card
from openclip_superclip.checkpoints.hugging_face import (
    as_hugging_face,
    clip_config,
    save_tokenizer,
)
from openclip_superclip.checkpoints.weights import save_weights
from openclip_superclip.errors import InputError

TEXTS = ["a red cat", "a blue dog and a house"]
HUB = "someone/words"
KINDS = "attentional-pool custom-block resnet timm-vit-map timm-convnext coca".split()
ALWAYS = {  # files of a model with its own vocabulary
    "README.md",
    "superclip.json",
    "open_clip_config.json",
    "open_clip_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def head_of(width, vocab_size):
    """The class head and token statistics of a SuperCLIP checkpoint."""
    return {
        "class_head.weight": torch.randn(1, width).repeat(vocab_size, 1),
        "class_head.bias": torch.zeros(vocab_size),
        "class_head.ln.weight": torch.ones(width),
        "class_head.ln.bias": torch.zeros(width),
        "statistics.num_captions": torch.tensor(1234),
        "statistics.document_frequency": torch.arange(vocab_size) % 1000,
    }


def image():
    return Image.effect_mandelbrot((300, 260), (-2, -1, 1, 1), 60).convert("RGB")


@pytest.fixture(scope="module")
def trained(short_run, tmp_path_factory):
    """The checkpoint of a run with image size and preprocessing from the
    command line."""
    folder = tmp_path_factory.mktemp("trained")
    model = write_model(folder / "model")
    flags = (
        f"--model {model} --superclip --force-image-size 24 --image-mean 0.1 0.2 0.3 "
        "--image-std 0.3 --image-resize-mode squash --image-interpolation bilinear "
        "--force-quick-gelu --force-context-length 16"
    )
    run_train(short_run, flags, cwd=folder)
    return folder / "logs/run/checkpoints/epoch_1.pt"


@pytest.fixture(scope="module")
def exports(trained, tmp_path_factory):
    """Exports of the run's checkpoint in both formats, and one with the
    class head."""
    folder = tmp_path_factory.mktemp("exports")
    execute(f"export {trained} --out {folder}/openclip")
    for name, format in {"with-head": "openclip", "hf": "hf"}.items():
        flags = f"--format {format} --with-head --hub {HUB}"
        execute(f"export {trained} --out {folder}/{name} {flags}")
    return folder


# Stock OpenCLIP


@pytest.fixture(scope="module")
def opened(exports, tmp_path_factory):
    """Stock models with their tokens, and the pixels, tokens and features
    of their exports.

    The latter come from a process without this package, after the exports
    were moved and their sources deleted.
    """
    folder = tmp_path_factory.mktemp("opened")
    vit = {"text": {"vocab_size": 49408, "width": 12}}
    kinds = {name: MODELS[name] for name in KINDS} | {"OpenCLIP's vocabulary": vit}
    stock = {}
    for name, cfg in kinds.items():
        model = write_model(folder / "sources" / name, **cfg)
        weights = random_weights(model)
        compiled = {f"module._orig_mod.{k}": v for k, v in (weights | head_of(8, 100)).items()}
        torch.save({"epoch": 1, "state_dict": compiled}, folder / "run.pt")
        execute(f"export {folder}/run.pt --out", folder / "out" / name, "--model", model)
        stock[name] = plain_model(model, weights), open_clip.get_tokenizer(model)(TEXTS)
    shutil.rmtree(folder / "sources")
    (folder / "out").rename(folder / "moved")
    for name in ("openclip", "with-head"):
        (folder / "moved" / name).symlink_to(exports / name)
    image().save(folder / "image.png")
    names = [f"local-dir:moved/{name}" for name in (*kinds, "openclip", "with-head")]
    shutil.copytree(exports / "with-head", folder / "uploaded")
    add_to_cache(folder / "cache", HUB, *(folder / "uploaded").iterdir())
    names.append(f"hf-hub:{HUB}")
    found = opened_by_stock(names, TEXTS, folder, HF_HUB_CACHE=f"{folder}/cache")
    return stock, {name.removeprefix("local-dir:moved/"): found[name] for name in names}


@torch.no_grad()
def assert_same_features(model, image, text, image_features, text_features):
    assert torch.equal(model.encode_image(image), image_features)
    assert torch.equal(model.encode_text(text), text_features)


@parametrize("name", [*KINDS, "OpenCLIP's vocabulary"])
def test_stock_openclip_opens_an_export_with_bit_equal_features_and_its_own_tokens(name, opened):
    model, tokens = opened[0][name]
    assert torch.equal(opened[1][name][1], tokens)
    assert_same_features(model, *opened[1][name])


def test_an_export_opens_from_a_hub_as_from_a_folder(opened, exports, trained):
    assert f'get_tokenizer("hf-hub:{HUB}")' in (exports / "with-head/README.md").read_text()
    folder, hub = (opened[1][name] for name in ("with-head", f"hf-hub:{HUB}"))
    assert all(map(torch.equal, folder, hub))
    stock = open_clip.get_tokenizer(f"local-dir:{trained.parents[3]}/model", context_length=16)
    assert torch.equal(hub[1], stock(TEXTS))


@parametrize("name", ["openclip", "with-head"])
def test_a_runs_own_record_gives_the_architecture_and_the_preprocessing(
    name, opened, exports, trained
):
    head = {"superclip_head.safetensors"} if name == "with-head" else set()
    assert {path.name for path in (exports / name).iterdir()} == ALWAYS | head
    model, _, preprocess = superclip.create_model_and_transforms(
        f"local-dir:{trained.parents[3]}/model",
        load_weights=False,
        force_image_size=24,
        force_quick_gelu=True,
        force_context_length=16,
        image_mean=(0.1, 0.2, 0.3),
        image_std=(0.3,),
        image_resize_mode="squash",
        image_interpolation="bilinear",
    )
    model.load_state_dict(torch.load(trained, weights_only=True)["state_dict"])
    pixels, tokens, *features = opened[1][name]
    assert torch.equal(preprocess(image())[None], pixels)
    assert tokens.shape == (2, 16)
    assert_same_features(model.eval(), pixels, tokens, *features)


def test_a_resnet_whose_batch_norm_was_frozen_is_exported(short_run, tmp_path):
    model = write_model(tmp_path / "model", **MODELS["resnet"])
    flags = f"--model {model} --lock-image --lock-image-freeze-bn-stats"
    run_train(short_run, flags, cwd=tmp_path)
    execute(f"export {tmp_path}/logs/run --out {tmp_path}/export")
    weights = open_clip.create_model(f"local-dir:{tmp_path}/export").state_dict()
    trained = {name: value for name, value in weights.items() if "num_batches" not in name}
    assert_equal(trained, load(tmp_path / "logs/run")["state_dict"])


@parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_a_vocabularys_tokenizer_gives_openclips_ids(clean, tmp_path):
    stock = SimpleTokenizer(bpe_path=write_vocabulary(tmp_path), context_length=12, clean=clean)
    tokenizer = as_hugging_face(stock)
    for folder in ("files", "again", "and again"):
        (tmp_path / folder).mkdir()
        save_tokenizer(tokenizer, tmp_path / folder)
        ours = HFTokenizer(
            str(tmp_path / folder), context_length=12, clean=clean, strip_sep_token=True
        )
        tokenizer = ours.tokenizer
        assert tokenizer.pad_token_id == 0  # the padding id of OpenCLIP 4
    texts = st.one_of(
        # unassigned characters differ by library
        st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=30),
        st.text("abcdestl23 I!!?,.-'éİſK<>_\n\t", max_size=60),
        st.sampled_from(["<start_of_text> x <end_of_text>", "it's I'LL 2024 &amp; 年", ""]),
    )

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(texts)
    def same(text):
        assert torch.equal(ours([text]), stock([text]))

    same()


# The model card


def test_the_model_card_holds_no_paths_and_escapes_recorded_values(exports, csv_data):
    card = (exports / "openclip/README.md").read_text()
    assert not any(absent in card for absent in ("None", str(exports), str(csv_data.parent)))
    options = {
        "pretrained": "<script>alert(1)</script>",
        "lr": "1\n\n# A heading",
        "train_data": "/me/a.tar::/b/c.tar",
    }
    plain = model_card("mine", "ViT-B-32", options, None, "", with_head=False)
    assert not any(
        absent in plain for absent in ("captions seen", "<script>", "\n# A heading", "/me/")
    )


@parametrize("suffix", [".safetensors", ".pt"])
def test_equal_content_gives_equal_bytes(suffix, tmp_path):
    """safetensors writes several metadata entries in random order."""
    file, contents = tmp_path / f"weights{suffix}", set()
    for order in (1, -1) * 4:
        save_weights(
            {"a": torch.ones(2)},
            file,
            dict([("model", "ViT-B-32"), ("superclip_idf", "off")][::order]),
        )
        contents.add(file.read_bytes())
    assert len(contents) == 1


# transformers


@torch.no_grad()
def test_transformers_opens_a_clip_model_with_the_same_features(exports, trained):
    options = {"force_image_size": 24, "force_quick_gelu": True, "force_context_length": 16}
    stock = open_clip.create_model(
        f"local-dir:{trained.parents[3]}/model", load_weights=False, **options
    ).eval()
    stock.load_state_dict(without_head(torch.load(trained, weights_only=True)["state_dict"]))
    model = transformers.CLIPModel.from_pretrained(exports / "hf").eval()
    tower = transformers.CLIPVisionModel.from_pretrained(exports / "hf").eval()
    processor = transformers.CLIPProcessor.from_pretrained(exports / "hf")
    captions = ["A red CAT, isn't it?", "two dogs!!"]
    inputs = processor(
        images=[image()], text=captions, return_tensors="pt", padding="max_length", truncation=True
    )
    texts = open_clip.get_tokenizer(f"local-dir:{trained.parents[3]}/model", context_length=16)(
        captions
    )
    assert torch.equal(inputs["input_ids"][texts != 0], texts[texts != 0])
    outputs = model(**inputs)
    image_features, text_features, _ = stock(inputs["pixel_values"], texts)
    hidden = stock.visual.forward_intermediates(inputs["pixel_values"], indices=1, output_fmt="NLC")
    seen = tower(inputs["pixel_values"])
    projected = torch.nn.functional.normalize(seen.pooler_output @ stock.visual.proj, dim=-1)
    patches = seen.last_hidden_state[:, 1:]  # the input of LLaVA-style projects
    for found, expected in (
        (outputs.image_embeds, image_features),
        (outputs.text_embeds, text_features),
        (projected, image_features),
        (patches, hidden["image_intermediates"][-1]),
        (model.logit_scale, stock.logit_scale),
    ):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_processor_gives_openclips_pixels(small, tmp_path):
    """Pixels are equal with backend="pil"; torchvision, the default,
    resizes tensors with different rounding.

    OpenCLIP rounds a crop offset of half a pixel to the even number, while
    transformers rounds down.
    """
    model = f"local-dir:{small}/model"
    execute(f"export {small}/plain.pt --model {model} --out {tmp_path}/out --format hf")
    _, _, preprocess = open_clip.create_model_and_transforms(model, load_weights=False)
    exact, default = (
        transformers.CLIPProcessor.from_pretrained(tmp_path / "out", **b)
        for b in ({"backend": "pil"}, {})
    )
    for size in ((60, 40), (80, 200), (32, 32), (400, 300)):
        resized = image().resize(size)
        ours = preprocess(resized)
        assert torch.equal(exact(images=resized, return_tensors="pt")["pixel_values"][0], ours), (
            size
        )
        assert (
            default(images=resized, return_tensors="pt")["pixel_values"][0] - ours
        ).abs().max() < 0.05


def test_every_configuration_that_openclip_ships_is_written_for_transformers_or_refused_by_name():
    expressed = []
    for name in sorted(
        file.stem for file in Path(open_clip.__file__).parent.glob("model_configs/*.json")
    ):
        try:
            config = transformers.CLIPConfig(**clip_config(read_architecture(name)))
        except InputError as error:
            assert "transformers' CLIPModel does not support" in str(error), name
        else:
            expressed.append(name)
            assert config.vision_config.patch_size and config.vision_config.image_size, name
    assert "ViT-B-16" in expressed and "RN50" not in expressed


@cases("reason, cfg", table("losses: transformers lacks"))
def test_options_that_transformers_lacks_are_refused_by_name(reason, cfg, tmp_path):
    cfg = {**cfg, "text": {"vocab_size": 600, **cfg.get("text", {})}}
    with pytest.raises(InputError) as refused:
        clip_config(read_architecture(write_model(tmp_path, **cfg)))
    assert f"({reason}); use --format openclip" in str(refused.value)


# Errors, and files after a failure


CHANGES = {  # by file: the tensor to change, and how
    "nan.pt": ("visual.proj", lambda t: t.index_fill(0, torch.tensor(1), float("nan"))),
    "most.pt": ("statistics.num_captions", lambda t: torch.full_like(t, 2**63 - 1)),
    "more.pt": ("statistics.document_frequency", lambda t: t + 300),
    "meta.pt": ("visual.proj", lambda t: t.to("meta")),
    "sparse.pt": ("visual.proj", lambda t: t.to_sparse()),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A read-only folder with a small model, its weights, and files that
    cannot be exported."""
    folder = tmp_path_factory.mktemp("small")
    model = write_model(
        folder / "model", {"width": 16, "head_width": 16}, {"width": 12}, init_logit_scale=1.0
    )
    weights = random_weights(model)
    torch.save(weights, folder / "plain.pt")
    for file, (name, change) in CHANGES.items():
        changed = weights | head_of(16, VOCAB_SIZE)
        torch.save(changed | {name: change(changed[name])}, folder / file)
    whole = (folder / "plain.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": MakesFolder("ran")}, folder / "code.pt")
    (folder / "authors.pt").symlink_to(AUTHORS)
    return folder


@cases("argv, reason", refusals("export"))
def test_invalid_exports_are_refused_in_one_line_and_nothing_is_written(
    argv, reason, small, refused
):
    assert reason in refused(small, f"export --model local-dir:model --out out {argv}")


def test_weights_of_the_authors_are_not_loaded_as_ours(tmp_path):
    model = superclip.create_model_and_transforms(write_model(tmp_path, text={"vocab_size": 600}))[
        0
    ]
    with input_error("superclip export FILE"):
        model.load_state_dict({"cap_fq": torch.zeros(1, 600)})


def test_overwrite_replaces_the_whole_folder_behind_a_link_which_the_printed_code_opens(
    small, tmp_path
):
    (link := tmp_path / 'my "link"').symlink_to("out")
    argv = ["export", small / "plain.pt", "--model", f"local-dir:{small}/model", "--out", link]
    execute(*argv, "--format", "hf")
    exec(execute(*argv, "--overwrite").partition("\n")[2])
    assert link.is_symlink()
    assert {path.name for path in (tmp_path / "out").iterdir()} == ALWAYS


@parametrize("format", ["openclip", "hf"])
def test_a_full_disk_leaves_the_earlier_export(format, small, tmp_path):
    (models := tmp_path / "models").mkdir()
    export = (
        f"export {small}/plain.pt --model local-dir:{small}/model --format {format} "
        f"--out {models}/out"
    )
    execute(export)
    before = held(models)
    error = error_of(on_a_full_disk(call), export, "--overwrite", cwd=tmp_path)
    assert re.fullmatch(r"error: .* cannot be written \(.*\)", error)
    assert held(models) == before
