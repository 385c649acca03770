"""A model or weights from a stranger never run code, and never make a
command download what the user has not named."""

import functools
import os
import shutil
import sys
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import DATA, GOLDEN, read_json, succeed, write_json
from support.hub import serving
from support.models import LIST_OF_WORDS, write_model, write_tokenizer

import openclip_superclip as superclip
from openclip_superclip.checkpoints.weights import save_weights

# repositories
STRANGER = "someone/repo"
NAMES_STRANGER = "someone/names"
CODE = "someone/code"
FLAT = "someone/flat"
WEIGHTS = []  # of the model of write_folder, with its head
RUNNER = """  # runs each of cases.json in a fork, with a user who answers yes to every question
import contextlib, json, os, shutil, signal, sys, traceback, urllib.request
import open_clip, transformers, clip_benchmark.models
import openclip_superclip.evaluation.evaluate
import openclip_superclip.checkpoints.export, openclip_superclip.checkpoints.averaging
from openclip_superclip.__main__ import main
from openclip_superclip.trainer import train

def run(argv):
    streams = (("yes", os.O_RDONLY), ("output", os.O_WRONLY), ("output", os.O_WRONLY))
    for number, (file, flags) in enumerate(streams):
        os.dup2(os.open(file, flags), number)
    if argv == "stock":
        return open_clip.get_tokenizer("local-dir:trusted-code") is None
    try:
        return main(argv.split())
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 99

results = {}
for case, argv in json.loads(open("cases.json").read()).items():
    open("output", "w").close()
    shutil.rmtree("out", ignore_errors=True)
    with contextlib.suppress(OSError):  # the hub counts the requests of each case
        urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/case/{case.replace(' ', '_')}")
    if not (child := os.fork()):
        signal.alarm(100)
        os._exit(run(argv))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    results[case] = [code, open("output").read(), os.path.exists("marker")]
    with contextlib.suppress(OSError):
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


def write_code(folder, *, tower=False):
    """Makes the transformers files in a folder name a Python file, which
    leaves a marker where it runs."""
    (folder / "evil.py").write_text(
        "open('marker', 'w').close()\n"
        "from transformers import BertConfig, BertModel, PreTrainedTokenizerFast\n"
        "class Evil(PreTrainedTokenizerFast):\n    pass\n"
        "class EvilConfig(BertConfig):\n    model_type = 'evil'\n"
        "class EvilModel(BertModel):\n    config_class = EvilConfig\n"
    )
    if tower:
        auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}
        write_json(folder / "config.json", {"model_type": "evil", "auto_map": auto_map})
    else:
        file = folder / "tokenizer_config.json"
        content = read_json(file)
        content |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
        write_json(file, content)


def write_folder(folder, text=None, vision=None, weights=True):
    """Writes a folder like that of superclip export --with-head, with a
    Hugging Face tokenizer and more fields of text_cfg and vision_cfg."""
    write_model(
        folder,
        {"layers": 1, "width": 8, "head_width": 8},
        {
            "layers": 1,
            "width": 6,
            "hf_tokenizer_name": "in-this-folder",
            "vocab_size": len(LIST_OF_WORDS),
        },
    )
    write_tokenizer(folder)
    if weights:
        save_file(WEIGHTS[0], folder / "open_clip_model.safetensors")
    file = folder / "open_clip_config.json"
    content = read_json(file)
    content["model_cfg"]["text_cfg"] |= text or {}
    content["model_cfg"]["vision_cfg"] |= vision or {}
    write_json(file, content)
    return folder


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
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "RagTokenizer"})
    part = {"model_type": "bert"}
    config = {"model_type": "rag", "question_encoder": part, "generator": part}
    write_json(folder / "config.json", config)


def with_tower(folder, config):
    """Writes a folder whose text tower is in the folder `tower` of it, and
    returns that."""
    tower = folder / "tower"
    write_folder(folder, {"hf_model_name": str(tower)})
    tower.mkdir()
    write_json(tower / "config.json", config)
    return tower


def code_of_tower(folder):
    write_code(with_tower(folder, {}), tower=True)


def kernel_of_tower(folder):
    config = {"model_type": "bert", "vocab_size": 50, "hidden_size": 6, "num_attention_heads": 1}
    with_tower(folder, {**config, "attn_implementation": f"{STRANGER}:kernel"})


def kernel_of_a_part_of_a_tower(folder):
    part = {"model_type": "clip_text_model", "attn_implementation": f"{STRANGER}:kernel"}
    with_tower(folder, {"model_type": "clip", "text_config": part})


def tokenizer_without_fields(content):
    def write(folder):
        write_folder(folder)
        (folder / "tokenizer_config.json").write_text(content)

    return write


def configuration_without_model_cfg(folder):
    """For a repository of this kind, OpenCLIP opens the tokenizer that the
    repository contains."""
    write_folder(folder)
    write_code(folder)
    file = folder / "open_clip_config.json"
    model_cfg = read_json(file)["model_cfg"]
    del model_cfg["text_cfg"]["hf_tokenizer_name"]
    write_json(file, model_cfg)


def tower_outside(folder):
    write_folder(folder, {"hf_model_name": f"{folder}/../elsewhere"})


def linked_tower(folder):
    write_folder(folder, {"hf_model_name": f"{folder}/tower"})
    (folder / "tower").symlink_to(folder.parent / "elsewhere")


def adapter_of_tower(folder):
    tower = with_tower(folder, {"model_type": "bert"})
    # with peft installed, transformers loads the weights that it names
    write_json(tower / "adapter_config.json", {"base_model_name_or_path": STRANGER})


FOLDERS = {
    "trusted code": trusted_code,
    "code without trust": code_without_trust,
    "code of a nested tokenizer": code_of_nested_tokenizer,
    "code of a tower": code_of_tower,
    "an adapter of a tower": adapter_of_tower,
    "a backbone beside a tokenizer": lambda folder: write_json(
        write_folder(folder) / "config.json", {"model_type": "dpt", "backbone": STRANGER}
    ),
    "a kernel of a tower": kernel_of_tower,
    "a kernel of a part of a tower": kernel_of_a_part_of_a_tower,
    "a tokenizer's list": tokenizer_without_fields('[{"auto_map": 1}]'),
    "a tokenizer's null": tokenizer_without_fields("null"),
    "a tokenizer without padding": tokenizer_without_fields("{}"),
    "a tower outside": tower_outside,
    "a linked tower": linked_tower,
}
# these fields of text_cfg and vision_cfg
for kind, cfg in read_json(DATA / "untrusted_fields.json").items():
    FOLDERS[kind] = functools.partial(write_folder, **cfg)
EVERY_COMMAND = ("trusted code", "a tower on the hub", "timm from the hub")


def commands_of_folder(folder):
    return {
        "words": f"words image.png --model {folder}",
        "export": f"export {folder} --out out",
        "export hf": f"export {folder} --out out --format hf",
        "evaluate": f"evaluate {folder} --data data --datasets own/colours --out out",
        "average": f"average {folder} {folder} --out out.pt --overwrite",
        "distil": (
            f"{TRAIN} --model ViT-Ti-16-96 --distill-model local-dir:{folder} "
            f"--distill-pretrained local-dir:{folder}"
        ),
        **commands_of_model(f"local-dir:{folder}"),
    }


def commands_of_model(model):
    """Commands that take a model's name or a JSON file, without weights."""
    return {
        "architecture of words": f"words image.png --model weights.pt --architecture {model}",
        "architecture of export": f"export weights.pt --model {model} --out out",
        "frequencies": f"frequencies pairs.csv --tokenizer-of {model} --out out.safetensors",
        "export of the authors' weights": f"export authors.pt --model {model} --out out",
        "train": f"{TRAIN} --model {model}",
        "plan": f"plan recipe.yaml --set model={model} --device cpu",
    }


TRAIN = (
    "train --superclip --train-data pairs.csv --dataset-type csv --csv-separator , --csv-img-key "
    "image --csv-caption-key caption --batch-size 2 --epochs 1 --workers 0 --device "
    "cpu"
)
RECIPE = """
method: superclip
model: ViT-Ti-16-96
data: pairs
shards: pairs.csv
data_samples: 4
samples: 4
global_batch_size: 2
lr: 1e-3
warmup: 1
schedule: cosine
beta1: 0.9
beta2: 0.98
eps: 1e-6
wd: 0.1
precision: fp32
seed: 0
slices: 1
workers: 0
flags: {}
superclip: {weight: 1.0, idf: online, captions: short}
chosen: {settings: a test's}
"""


def commands_of_file(file):
    commands = commands_of_folder(file)
    names = "words export evaluate average".split()
    return {name: commands[name] for name in names}


def files_that_name(model, folder):
    """Writes weights whose recorded options name a model: in the file
    itself, or beside it."""
    run = folder / "run/checkpoints"
    run.mkdir(parents=True)
    for name in ("metadata.safetensors", "attribute.pt"):
        save_weights(WEIGHTS[0], folder / name, {"model": model, "superclip_idf": "online"})
    torch.save({"epoch": 1, "state_dict": WEIGHTS[0]}, run / "epoch_1.pt")
    (run.parent / "params.txt").write_text(f"model: {model}\nlogs: .\nname: run\n")
    names = ("metadata.safetensors", "attribute.pt", "run/checkpoints/epoch_1.pt")
    return {name: str((folder / name).relative_to(folder.parent)) for name in names}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What becomes of each command, all run in forks of one process with a
    hub of this machine."""
    root = tmp_path_factory.mktemp("untrusted")
    cases = write_cases(root)
    write_json(root / "cases.json", cases)
    (root / "yes").write_text("y\n" * 1000)
    with serving(root / "hub") as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": f"{root}/cache",
        }
        succeed([sys.executable, "-c", RUNNER], cwd=root, env=environment)
        requests, case = {name: [] for name in cases}, ""
        by_path = {f"case/{name.replace(' ', '_')}": name for name in cases}
        for path in hub.requests:
            case = by_path.get(path, case)
            if path not in by_path:
                requests[case].append(path)
    found = read_json(root / "results.json")
    return {name: Result(*found[name], requests[name]) for name in cases}


def write_cases(root):
    """Writes the models and weights, and returns the command of each case
    by its name."""
    torch.manual_seed(0)
    harmless = write_folder(root / "harmless", weights=False)
    WEIGHTS[:] = [superclip.create_model_and_transforms(f"local-dir:{harmless}")[0].state_dict()]
    torch.save(WEIGHTS[0], root / "weights.pt")
    shutil.copy(GOLDEN / "reference_tiny.pt", root / "authors.pt")
    Image.new("RGB", (32, 32)).save(root / "image.png")
    (root / "pairs.csv").write_text("image,caption\n" + "image.png,a red cat\n" * 4)
    (root / "recipe.yaml").write_text(RECIPE)
    (root / "data/own/colours").mkdir(parents=True)
    write_outside(root / "elsewhere")
    cases = {"stock": "stock"}
    for kind, write in FOLDERS.items():
        name = kind.translate({ord(" "): "-", ord("'"): None})
        write(root / name)
        commands = commands_of_folder(name)
        shown = commands if kind in EVERY_COMMAND else ("words", "train")
        cases |= {f"{kind}: {command}": commands[command] for command in shown}
    cases["a run of trusted code"] = (
        "run recipe.yaml --set model=local-dir:trusted-code --device cpu --out run"
    )
    for name in (STRANGER, "../elsewhere", "elsewhere"):
        file = f"models/{name.replace('/', '-')}.json"
        (root / "models").mkdir(exist_ok=True)
        write_own_json(root / file, harmless, name)
        cases |= {f"{file}: {command}": argv for command, argv in commands_of_model(file).items()}
    for repository, write in REPOSITORIES.items():
        write(root / "hub" / repository)
        commands = commands_of_model(f"hf-hub:{repository}")
        commands["evaluate"] = f"evaluate hf-hub:{repository} --data data --datasets own/colours"
        cases |= {f"hf-hub:{repository}: {command}": argv for command, argv in commands.items()}
    for kind, model in named_models(root).items():
        for place, file in files_that_name(model, root / f"named-{kind}").items():
            commands = commands_of_file(file)
            shown = commands if kind == "hub" else ("export",)
            cases |= {f"{place} names {kind}: {command}": commands[command] for command in shown}
    return cases


def named_models(root):
    """Models that a file of weights names."""
    return {
        "hub": f"hf-hub:{STRANGER}",
        "older": f"hf_hub:{STRANGER}",
        "bare": STRANGER,
        "lines": f"x\nhf-hub:{STRANGER}",
        "folder": f"local-dir:{root}/trusted-code",
        "file": f"{root}/models/elsewhere.json",
        "folder-of-hub": f"local-dir:hf-hub:{STRANGER}",
    }


def write_outside(folder):
    """Writes a folder with the files of a tokenizer and of a tower, which
    contain code."""
    folder.mkdir()
    write_tokenizer(folder)
    write_code(folder)
    write_code(folder, tower=True)


def write_own_json(file, model, tokenizer):
    """Writes a model's configuration with another hf_tokenizer_name, as
    --model x.json."""
    content = read_json(model / "open_clip_config.json")["model_cfg"]
    content["text_cfg"]["hf_tokenizer_name"] = tokenizer
    write_json(file, content)


REPOSITORIES = {
    STRANGER: trusted_code,
    NAMES_STRANGER: lambda folder: write_folder(folder, {"hf_tokenizer_name": STRANGER}),
    CODE: lambda folder: write_code(write_folder(folder, {"hf_tokenizer_name": CODE})),
    FLAT: configuration_without_model_cfg,
}


def test_the_code_of_these_models_would_run_in_stock_openclip(results):
    assert results["stock"].ran_code and results["stock"].code == 0


def test_no_command_runs_code_of_a_model_not_even_if_the_user_would_answer_yes(results):
    assert [case for case, result in results.items() if result.ran_code] == ["stock"]


def test_nothing_is_downloaded_but_from_the_repository_that_the_user_has_named(results):
    for case, result in results.items():
        others = result.requests
        if case.startswith("hf-hub:"):
            named = case.removeprefix("hf-hub:").partition(": ")[0]
            others = [path for path in result.requests if named not in path]
            others = [path for path in others if path != "api/agent-harnesses"]
        assert not others, (case, others)


def test_every_command_ends_with_one_line_on_the_model_or_needs_no_configuration(results):
    refused = (
        "is not opened, because",
        "has no tokenizer",
        "is not a model configuration",
        "is missing: the model of",
        "OpenCLIP has no",
        "cannot be read",
    )
    wrong = {}
    for case, (code, output, *_) in results.items():
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        if case.endswith(": average"):  # of weights alone
            is_right = code == 0 and not errors
        else:
            is_right = (
                code == 1 and len(errors) == 1 and any(words in errors[0] for words in refused)
            )
        if case.startswith("a run"):  # the log of its rank is quoted
            is_right = code == 1 and "is not opened, because" in output
        if case != "stock" and (not is_right or "Traceback" in output or "[y/N]" in output):
            wrong[case] = (code, output[-1000:])
    assert not wrong
