"""A model or weights from a stranger never run code, and never make a command download what the user has not named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import GOLDEN
from support.data import write_table
from support.hub import serving
from support.models import LIST_OF_WORDS, write_model, write_tokenizer

import openclip_superclip as superclip
from openclip_superclip.checkpoints.checkpoint import OPTIONS

STRANGER = "someone/repo"
OTHER = "someone/other"
RUNNER = """
import contextlib, json, os, urllib.request
import open_clip_train.main, transformers
from openclip_superclip.__main__ import main

def run(argv):
    for number, (file, flags) in enumerate((("yes", os.O_RDONLY), ("output", os.O_WRONLY), ("output", os.O_WRONLY))):
        os.dup2(os.open(file, flags), number)
    if argv == ["stock"]:
        return bool(open_clip_train.main.get_tokenizer("local-dir:trusted-code")([""]).sum() < 0)
    return main(argv)

results = {}
for case, argv in json.loads(open("cases.json").read()).items():
    open("output", "w").close()
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/case/{case.replace(' ', '_')}")
    if not (child := os.fork()):
        code = 99
        try:
            code = run(argv)
        except SystemExit as error:
            code = error.code
            if isinstance(code, str):
                os.write(2, f"{code}\\n".encode())
                code = 1
        except BaseException:
            import traceback
            traceback.print_exc()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    results[case] = [code, open("output").read(), os.path.exists("marker")]
    if os.path.exists("marker"):
        os.remove("marker")
open("results.json", "w").write(json.dumps(results))
"""


class Result(NamedTuple):
    """What became of a command."""

    code: int
    output: str
    ran_code: bool
    requests: list[str]


# Models and weights of a stranger


def write_code(folder: Path, *, tower: bool = False) -> None:
    """Makes the transformers files in a folder name a Python file, which leaves a marker if it runs."""
    marker = folder.parents[len(folder.parts) - len(ROOT[0].parts) - 1] / "marker"
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import BertConfig, BertModel, PreTrainedTokenizerFast\n"
        "class Evil(PreTrainedTokenizerFast):\n    pass\n"
        "class EvilConfig(BertConfig):\n    model_type = 'evil'\n"
        "class EvilModel(BertModel):\n    config_class = EvilConfig\n"
    )
    if tower:
        auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
        (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    else:
        file = folder / "tokenizer_config.json"
        content = json.loads(file.read_text())
        content |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
        file.write_text(json.dumps(content))


ROOT = []  # the folder of this module


def write_folder(folder: Path, text: dict | None = None, vision: dict | None = None, weights: bool = True) -> Path:
    """Writes a folder like that of superclip export --with-head, with a Hugging Face tokenizer."""
    write_model(
        folder, {"layers": 1, "width": 8, "head_width": 8},
        {"layers": 1, "width": 6, "hf_tokenizer_name": "in-this-folder", "vocab_size": len(LIST_OF_WORDS)},
    )  # fmt: skip
    write_tokenizer(folder)
    if weights:
        save_file(WEIGHTS[0], folder / "open_clip_model.safetensors")
    change_configuration(folder, text, vision)
    return folder


def change_configuration(folder: Path, text: dict | None = None, vision: dict | None = None) -> None:
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["model_cfg"]["text_cfg"] |= text or {}
    content["model_cfg"]["vision_cfg"] |= vision or {}
    file.write_text(json.dumps(content))


WEIGHTS = []  # of the model of write_folder, with its head


def trusted_code(folder):
    write_folder(folder, {"tokenizer_kwargs": {"trust_remote_code": True}})
    write_code(folder)


def code_without_trust(folder):
    write_folder(folder)
    write_code(folder)


def code_of_nested_tokenizer(folder):
    write_folder(folder)
    nested = folder / "question_encoder_tokenizer"
    shutil.copytree(folder, nested)
    write_code(nested)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RagTokenizer"}))
    part = {"model_type": "bert"}
    config = {"model_type": "rag", "question_encoder": part, "generator": part}
    (folder / "config.json").write_text(json.dumps(config))


def code_of_tower(folder):
    tower = folder / "tower"
    write_folder(folder, {"hf_model_name": str(tower)})
    tower.mkdir()
    write_code(tower, tower=True)


def kernel_of_tower(folder):
    tower = folder / "tower"
    write_folder(folder, {"hf_model_name": str(tower)})
    tower.mkdir()
    config = {"model_type": "bert", "vocab_size": 50, "hidden_size": 6, "num_attention_heads": 1}
    (tower / "config.json").write_text(json.dumps({**config, "attn_implementation": f"{STRANGER}:kernel"}))


def tower_on_the_hub(folder):
    write_folder(folder, {"hf_model_name": STRANGER})


def tower_outside(folder):
    write_folder(folder, {"hf_model_name": str(folder / "../elsewhere")})


def linked_tower(folder):
    write_folder(folder, {"hf_model_name": str(folder / "tower")})
    (folder / "tower").symlink_to(folder.parent / "elsewhere")


def timm(name):
    return lambda folder: write_folder(folder, vision={"timm_model_name": name, "image_size": 64})


def vocabulary_outside(folder):
    write_folder(folder, {"hf_tokenizer_name": None, "tokenizer_kwargs": {"bpe_path": "/etc/passwd"}})


def option(**kwargs):
    return lambda folder: write_folder(folder, {"tokenizer_kwargs": kwargs})


def options_of_openclip_4(**cfg):
    return lambda folder: write_folder(folder, **cfg)


FOLDERS = {
    "trusted code": trusted_code,
    "code without trust": code_without_trust,
    "code of a nested tokenizer": code_of_nested_tokenizer,
    "code of a tower": code_of_tower,
    "a kernel of a tower": kernel_of_tower,
    "a tower on the hub": tower_on_the_hub,
    "a tower outside": tower_outside,
    "a linked tower": linked_tower,
    "timm from the hub": timm(f"hf-hub:{STRANGER}"),
    "timm from the hub, older name": timm(f"hf_hub:{STRANGER}"),
    "timm from a folder": timm("local-dir:elsewhere"),
    "a vocabulary outside": vocabulary_outside,
    "a tokenizer's revision": option(revision="x", subfolder="y"),
    "a tokenizer's file": option(gguf_file="weights.gguf"),
    "NLTK's pickles": option(reduction_mask="syntax"),
    "an object": option(pad_token={"__type": "AddedToken"}),
    "timm's options": options_of_openclip_4(vision={"timm_model_kwargs": {"checkpoint_path": "/etc/passwd"}}),
    "transformers' options": options_of_openclip_4(text={"hf_model_config": {"attn_implementation": STRANGER}}),
}
EVERY_COMMAND = ("trusted code", "code without trust", "code of a tower", "a tower on the hub", "timm from the hub")


def commands_of_folder(folder: str) -> dict[str, list]:
    train = ["train", "--superclip", *TRAIN]
    return {
        "words": ["words", "image.png", "--model", folder],
        "export": ["export", folder, "--out", "out"],
        "export hf": ["export", folder, "--out", "out", "--format", "hf"],
        "audit": ["audit", "pairs.csv", "--model", folder, "--out", "out"],
        "evaluate": ["evaluate", folder, "--data", "data", "--datasets", "own/colours", "--out", "out"],
        "average": ["average", folder, folder, "--out", "out.pt", "--overwrite"],
        "interpolate": ["interpolate", folder, folder, "--out", "out.pt", "--overwrite"],
        "distil": [*train, "--model", "ViT-Ti-16-96", "--distill-model", f"local-dir:{folder}"],
        **commands_of_model(f"local-dir:{folder}"),
    }


def commands_of_model(model: str) -> dict[str, list]:
    """Commands that take a model's name or a JSON file, without weights."""
    return {
        "architecture of words": ["words", "image.png", "--model", "weights.pt", "--architecture", model],
        "architecture of export": ["export", "weights.pt", "--model", model, "--out", "out"],
        "frequencies": ["frequencies", "pairs.csv", "--tokenizer-of", model, "--out", "out.safetensors"],
        "import": ["import", "authors.pt", "--model", model, "--out", "out"],
        "train": ["train", "--superclip", *TRAIN, "--model", model],
        "plan": ["plan", "recipe.yaml", "--set", f"model={model}", "--device", "cpu"],
        "run": ["run", "recipe.yaml", "--set", f"model={model}", "--device", "cpu", "--out", "out"],
        "benchmark": ["benchmark", "--model", model, "--device", "cpu", "--out", "out"],
    }


TRAIN = [
    "--train-data", "pairs.csv", "--dataset-type", "csv", "--csv-separator", ",", "--csv-img-key", "image",
    "--csv-caption-key", "caption", "--batch-size", "2", "--epochs", "1", "--workers", "0", "--device", "cpu",
]  # fmt: skip
RECIPE = """
method: superclip
model: ViT-Ti-16-96
shards: pairs.csv
global_batch: 2
samples: 4
lr: 1e-3
warmup_samples: 2
"""


def commands_of_file(file: str) -> dict[str, list]:
    commands = commands_of_folder(file)
    names = ("words", "export", "audit", "evaluate", "average", "interpolate")
    return {name: commands[name] for name in names}


def files_that_name(model: str, folder: Path) -> dict[str, str]:
    """Writes weights whose recorded options name a model: in the file itself, or beside it."""
    options = {"model": model, "superclip_idf": "online"}
    folder.mkdir()
    save_file(WEIGHTS[0], folder / "metadata.safetensors", metadata={OPTIONS: json.dumps(options)})
    state = type("OrderedDict", (dict,), {})
    from collections import OrderedDict

    state = OrderedDict(WEIGHTS[0])
    setattr(state, OPTIONS, options)
    torch.save(state, folder / "attribute.pt")
    run = folder / "run/checkpoints"
    run.mkdir(parents=True)
    torch.save({"epoch": 1, "state_dict": WEIGHTS[0]}, run / "epoch_1.pt")
    (run.parent / "params.txt").write_text(f"model: {model}\nlogs: .\nname: run\n")
    names = ("metadata.safetensors", "attribute.pt", "run/checkpoints/epoch_1.pt")
    return {Path(name).stem: str((folder / name).relative_to(folder.parent)) for name in names}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Result]:
    """What becomes of each command, all run in forks of one process with a hub of this machine."""
    root = tmp_path_factory.mktemp("untrusted")
    ROOT[:] = [root]
    cases = write_cases(root)
    (root / "cases.json").write_text(json.dumps(cases))
    (root / "yes").write_text("y\n" * 1000)
    repositories = root / "hub"
    with serving(repositories) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(root / "cache")}
        done = subprocess.run([sys.executable, "-c", RUNNER], cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        requests, case = {name: [] for name in cases}, ""
        by_path = {f"case/{name.replace(' ', '_')}": name for name in cases}
        for path in hub.requests:
            case = by_path.get(path, case)
            if path not in by_path:
                requests[case].append(path)
    found = json.loads((root / "results.json").read_text())
    return {name: Result(*found[name], requests[name]) for name in cases}


def write_cases(root: Path) -> dict[str, list[str]]:
    """Writes the models and weights, and returns the command of each case by its name."""
    torch.manual_seed(0)
    WEIGHTS[:] = [{}]
    plain = write_folder(root / "harmless", weights=False)
    WEIGHTS[:] = [superclip.create_model_and_transforms(f"local-dir:{plain}")[0].state_dict()]
    write_folder(root / "harmless")
    torch.save(WEIGHTS[0], root / "weights.pt")
    shutil.copy(GOLDEN / "reference_tiny.pt", root / "authors.pt")
    Image.new("RGB", (32, 32)).save(root / "image.png")
    (root / "pairs.csv").write_text("image,caption\n" + "image.png,a red cat\n" * 4)
    (root / "recipe.yaml").write_text(RECIPE)
    (root / "data/own/colours").mkdir(parents=True)
    write_tower(root / "elsewhere")
    for repository in (STRANGER, OTHER):
        trusted_code_in_hub(root / "hub" / repository, repository)
    cases = {"stock": ["stock"]}
    for kind, write in FOLDERS.items():
        name = kind.replace(" ", "-").replace("'", "")
        write(root / name)
        commands = commands_of_folder(name)
        shown = commands if kind in EVERY_COMMAND else {one: commands[one] for one in ("words", "train")}
        cases |= {f"{kind}: {command}": argv for command, argv in shown.items()}
        json_file = root / f"{name}.json"
        shutil.copy(root / name / "open_clip_config.json", json_file)
    write_named(root / "named.json", STRANGER)
    write_named(root / "above.json", "../elsewhere")
    for file in ("named.json", "above.json"):
        cases |= {f"{file}: {command}": argv for command, argv in commands_of_model(file).items()}
    cases |= {f"hub: {command}": argv for command, argv in commands_of_model(f"hf-hub:{STRANGER}").items()}
    cases["hub: evaluate"] = ["evaluate", f"hf-hub:{STRANGER}", "--data", "data", "--datasets", "own/colours"]
    models = {"hub": f"hf-hub:{STRANGER}", "older": f"hf_hub:{STRANGER}", "bare": STRANGER, "line": f"x\n{STRANGER}"}
    models["folder"] = f"local-dir:{root}/trusted-code"
    for kind, model in models.items():
        for place, file in files_that_name(model, root / f"named-{kind}").items():
            commands = commands_of_file(file)
            cases |= {f"{place} names {kind}: {command}": argv for command, argv in commands.items()}
    return cases


def write_tower(folder: Path) -> None:
    folder.mkdir()
    write_tokenizer(folder)
    write_code(folder)
    write_code(folder, tower=True)


def trusted_code_in_hub(folder: Path, repository: str) -> None:
    write_folder(folder, {"tokenizer_kwargs": {"trust_remote_code": True}, "hf_tokenizer_name": OTHER})
    write_code(folder)
    write_code(folder, tower=True)


def write_named(file: Path, name: str) -> None:
    folder = file.parent / "harmless"
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = name
    file.write_text(json.dumps(content["model_cfg"]))


def test_all(results):
    for name, result in results.items():
        print(name, result.code, result.ran_code, len(result.requests), result.output.strip().splitlines()[-1:], sep=" | ")
    assert 0
