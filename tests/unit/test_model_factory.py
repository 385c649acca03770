"""OpenCLIP's factory makes models with a head, from names and files;
weights go in and out; the public names exist."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP
from support import cases, input_error, parametrize, read_json, succeed, table, write_json
from support.models import (
    MODELS,
    as_rank_1,
    assert_equal,
    copy_model,
    without_head,
    write_model,
    write_vocabulary,
    write_weights,
)
from support.training_runs import execute

import openclip_superclip as superclip
from openclip_superclip import hooks
from openclip_superclip.checkpoints import architecture
from openclip_superclip.checkpoints.architecture import architecture_of, read_architecture
from openclip_superclip.checkpoints.model_configurations import CONFIGURATIONS, read_configuration
from openclip_superclip.checkpoints.trainer_files import options_to_keep
from openclip_superclip.checkpoints.weights import Checkpoint, read_checkpoint
from openclip_superclip.trainer.parsed_options import read

NAME = "superclip-tiny"


@pytest.fixture(autouse=True)
def tiny_configuration(tiny_model, monkeypatch):
    """A tiny ViT under a name, as OpenCLIP's own configurations have."""
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, NAME, open_clip.get_model_config(tiny_model)
    )
    torch.manual_seed(0)


def create(*args, **kwargs):
    return superclip.create_model_and_transforms(NAME, *args, **kwargs)[0]


def batch(model=NAME):
    captions = ["a red cat", "a dog", "the blue boat and the cat", "a house"]
    return torch.randn(4, 3, 32, 32), open_clip.get_tokenizer(model)(captions)


@torch.no_grad()
def test_a_coca_takes_encoded_images_as_its_generate_does(tmp_path):
    model = write_model(tmp_path / "coca", **MODELS["coca"])
    model = superclip.create_model_and_transforms(model)[0].eval()
    images, texts = batch()
    latent, tokens = model._encode_image(images)
    assert_equal(model(images, texts, image_latent=latent, image_embs=tokens), model(images, texts))


@cases("options, model_class", table("losses: classes of models"))
@torch.no_grad()
def test_in_evaluation_outputs_are_openclips_to_the_last_bit_and_nothing_is_counted(
    options, model_class
):
    ours = create(**options).eval()
    stock = open_clip.create_model(NAME, **options, output_dict=True).eval()
    assert type(ours).__name__ == f"Super{model_class}"
    assert isinstance(ours, getattr(open_clip.model, model_class))
    added = {
        "class_head.ln.weight",
        "class_head.ln.bias",
        "class_head.weight",
        "class_head.bias",
        "statistics.num_captions",
        "statistics.document_frequency",
    }
    assert ours.state_dict().keys() == stock.state_dict().keys() | added
    stock.load_state_dict(without_head(ours.state_dict()))
    images, texts = batch()
    images = images.to(ours.visual.conv1.weight.dtype)
    assert_equal(ours(images, texts), stock(images, texts))
    assert torch.equal(ours.encode_image(images), stock.encode_image(images))
    assert torch.equal(ours.encode_text(texts), stock.encode_text(texts))
    assert ours.statistics.num_captions == 0


@parametrize("kind", ["vit", "coca"])
def test_in_training_the_other_outputs_are_openclips_to_the_last_bit(kind, tmp_path):
    name = write_model(tmp_path, **MODELS[kind])
    ours = superclip.create_model_and_transforms(name)[0].train()
    stock = open_clip.create_model(name, output_dict=True).train()
    images, texts = batch(model=name)
    assert "class_losses" not in ours(image=images)
    if kind == "vit":
        assert "class_losses" not in ours(text=texts)
    else:
        assert (type(ours), type(stock)) == (superclip.SuperCoCa, CoCa)
        # OpenCLIP leaves in it what the memory held
        torch.nn.init.normal_(ours.text_decoder.text_projection)
    stock.load_state_dict(without_head(ours.state_dict()))
    assert ours.statistics.num_captions == 0
    outputs = ours(images, texts)
    assert outputs.pop("class_losses").shape == (4,)
    assert_equal(outputs, stock(images, texts))


def test_every_weight_of_a_coca_from_scratch_is_finite(tmp_path):
    name = write_model(tmp_path, **MODELS["coca"])
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        state = superclip.create_model_and_transforms(name)[0].state_dict()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not [name for name, tensor in state.items() if tensor.isnan().any()]


def test_a_slash_in_a_models_name_is_a_dash(csv_data, parse_args):
    assert read_architecture("ViT-B/32", "openai") == read_architecture("ViT-B-32", "openai")
    flags = f"--model ViT-Ti/16-96 --train-data {csv_data}"
    for only_options in (True, False):
        args = parse_args(flags, "--superclip", only_options=only_options)
        assert (args.model, read(args).tokenizer.context_length) == ("ViT-Ti-16-96", 32)
    assert parse_args(flags).model == "ViT-Ti/16-96"  # stock OpenCLIP's


def test_a_command_line_reads_the_configuration_of_each_model_once(
    csv_data, parse_args, tmp_path, monkeypatch
):
    teacher = write_model(tmp_path / "teacher")
    write_weights(teacher)
    names = []

    def read(model, *args):
        names.append(model)
        return read_configuration(model, *args)

    monkeypatch.setattr(architecture, "read_configuration", read)
    model = write_model(tmp_path / "model")
    flags = f"--model {model} --distill-model {teacher} --distill-pretrained {teacher}"
    args = parse_args(f"--superclip {flags} --train-data {csv_data} --name run --batch-size 4")
    hooks.model_kwargs(as_rank_1(args))
    assert names == [model, teacher]


@parametrize("has_head", [False, True], ids=["CLIP", "SuperCLIP"])
@parametrize("is_checkpoint", [False, True], ids=["weights", "training on several ranks"])
def test_a_file_brings_its_weights_and_counts_and_a_head_that_it_lacks_stays_fresh(
    is_checkpoint, has_head, tmp_path
):
    saved = create() if has_head else open_clip.create_model(NAME)
    saved(*batch())
    state = saved.state_dict()
    checkpoint = {"epoch": 3, "state_dict": {f"module.{name}": state[name] for name in state}}
    torch.save(checkpoint if is_checkpoint else state, tmp_path / "saved.pt")
    torch.manual_seed(2)
    expected = create().state_dict() | state
    torch.manual_seed(2)
    model = create(f"{tmp_path}/saved.pt")
    assert_equal(model.state_dict(), expected)
    assert model.class_head.weight.std() > 0
    assert model.statistics.num_captions == (4 if has_head else 0)


def test_a_checkpoint_with_half_a_head_is_refused_by_the_missing_name():
    state = create().state_dict()
    del state["class_head.bias"]
    with pytest.raises(RuntimeError, match=r"class_head\.bias"):
        create().load_state_dict(state)


def test_every_public_name_can_be_imported_and_no_other():
    assert all(getattr(superclip, name) is not None for name in superclip.__all__)
    assert dir(superclip) == sorted(superclip.__all__)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = superclip.no_such_name


def test_the_supervisor_imports_no_openclip():
    code = (
        "import openclip_superclip.runs.launcher, sys; "
        "print({'open_clip', 'torchvision'} & sys.modules.keys())"
    )
    assert succeed([sys.executable, "-c", code]).stdout.strip() == "set()"


def test_the_factorys_names_are_put_back_after_an_error_and_after_two_threads_at_once(tiny_model):
    before = open_clip.factory.CLIP
    with pytest.raises(
        superclip.InputError, match="model_name: OpenCLIP has no model 'not-a-model'"
    ):
        superclip.create_model_and_transforms("not-a-model")
    with pytest.raises(TypeError):
        create(no_such_argument=1)
    assert type(open_clip.create_model(NAME)) is CLIP
    with ThreadPoolExecutor(4) as pool:
        created = pool.map(superclip.create_model_and_transforms, [tiny_model] * 8)
    assert {type(model) for model, *_ in created} == {superclip.SuperCLIP}
    assert open_clip.factory.CLIP is before


# Models in files


@pytest.fixture
def model_file(tmp_path):
    """A model configuration in another folder."""
    file = tmp_path / "models/my_model.json"
    file.parent.mkdir()
    config = open_clip.get_model_config(NAME)
    config["text_cfg"]["tokenizer_kwargs"]["bpe_path"] = str(write_vocabulary(file.parent))
    write_json(file, config)
    return file


def test_a_small_vit_and_a_small_resnet_ship_and_are_known_by_their_names(csv_data, parse_args):
    shipped = [file.stem for file in CONFIGURATIONS.glob("*.json")]
    for name in shipped:
        assert parse_args(f"--superclip --model {name} --train-data {csv_data}").model == name
    layers = [read_architecture(name).model_cfg["vision_cfg"]["layers"] for name in shipped]
    assert {*map(type, layers)} == {int, list}


def test_a_file_can_be_given_as_every_model(model_file, csv_data, parse_args, monkeypatch):
    monkeypatch.chdir(model_file.parent.parent)
    name = "models/my_model.json"
    assert parse_args(f"--superclip --model {name} --train-data {csv_data}").model == name
    model, *_ = superclip.create_model_and_transforms(name)
    assert model.class_head
    models = [read_architecture(name)]
    config = read_json(model_file)
    config["text_cfg"]["tokenizer_kwargs"] = {"clean": "whitespace"}  # keeps capital letters
    write_json(model_file, config)
    models.append(read_architecture(name))  # another file of this name
    assert [len(one.tokenizer().encode("AB")) for one in models] == [1, 2]
    assert open_clip.get_tokenizer(name).context_length == model.context_length
    plan = f"plan demo/superclip_demo-model_8k_bs64 --device cpu --set model={name}"
    assert name in execute(plan)
    run = model_file.parent.parent / "logs/run/checkpoints/epoch_1.pt"
    monkeypatch.chdir("/")  # the run's model is found from any working directory
    options = {"model": name, "logs": "logs", "name": "run"}
    of_run = architecture_of(Checkpoint(run, {}, options=options))
    assert of_run.model_cfg["embed_dim"] == 32


def test_a_runs_relative_model_is_found_in_the_folder_of_its_training(
    tiny_model, tmp_path, monkeypatch
):
    there = tmp_path / "there"
    copy_model(tiny_model, there / "model")
    options = {"model": "local-dir:model", "logs": "logs", "name": "run"}
    (tmp_path / "copy").mkdir()
    write_json(tmp_path / "copy/run.json", {"cwd": str(there)})
    checkpoints = [
        run / "checkpoints/epoch_1.pt" for run in (there / "logs/run", tmp_path / "copy")
    ]
    for checkpoint in checkpoints:
        checkpoint.parent.mkdir(parents=True)
        torch.save({"weight": torch.ones(1)}, checkpoint)
        (checkpoint.parent.parent / "params.txt").write_text(
            "".join(f"{key}: {options[key]}\n" for key in options)
        )
        monkeypatch.chdir(checkpoint.parent)
        for path in (checkpoint, Path("epoch_1.pt"), Path("../checkpoints/epoch_1.pt")):
            found = read_checkpoint(path)
            assert architecture_of(found).name == f"local-dir:{there}/model"
            assert options_to_keep(found) == {"model": f"local-dir:{there}/model"}
    (there / "logs/run/checkpoints").rename(tmp_path / "big")
    (there / "logs/run/checkpoints").symlink_to(tmp_path / "big")
    monkeypatch.chdir(tmp_path)
    found = read_checkpoint(checkpoints[0])
    assert options_to_keep(found) == {"model": f"local-dir:{there}/model"}
    shutil.rmtree(there / "model")
    with input_error(f"the model of {checkpoints[0]} is not at {there}/model"):
        architecture_of(found)


def test_preprocessing_that_training_would_ignore_is_refused(
    model_file, csv_data, parse_args, refusal
):
    content = {"model_cfg": read_json(model_file), "preprocess_cfg": {"mean": [0, 0, 0]}}
    write_json(model_file, content)
    flags = f"--superclip --model {model_file} --train-data {csv_data}"
    assert "contains a preprocess_cfg, " in refusal(flags)
    content["preprocess_cfg"] = {
        "size": 32,
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "resize_mode": "shortest",
    }
    write_json(model_file, content)  # the defaults, as in an export
    assert parse_args(flags).superclip


@cases("preprocessing", table("losses: impossible preprocessing"))
def test_preprocessing_that_openclip_cannot_do_is_refused_before_the_model_is_built(
    preprocessing, model_file, tmp_path
):
    content = {"model_cfg": read_json(model_file), "preprocess_cfg": preprocessing}
    write_json(tmp_path / "open_clip_config.json", content)
    with input_error("has a preprocess_cfg (that OpenCLIP cannot use|whose (mean|std) is)"):
        read_architecture(f"local-dir:{tmp_path}")
