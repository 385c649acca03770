"""The page on plugins: its files train, its commands run, and its excerpts
are the examples' text."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from support import parametrize, succeed
from support.pages import PAGES, ROOT, commands
from support.training_runs import completed, train_with

PAGE = PAGES["docs/plugins.md"]
BLOCKS = re.findall(
    r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', PAGE, flags=re.DOTALL | re.MULTILINE
)
EXCERPTS = [(title, text) for _, title, text in BLOCKS if title.startswith("examples/")]
OWN_DATA = {
    "ViT-B-32": "ViT-Ti-16-96 --batch-size 16 --workers 0 --device cpu --precision fp32 --epochs 1",
    "{00000..00031}": "{0..1}",
    "320000": "64",
}


@parametrize("file, excerpt", EXCERPTS)
def test_an_excerpt_is_the_examples_text(file, excerpt):
    assert excerpt in (ROOT / file).read_text()


@pytest.mark.slow
def test_its_files_and_commands_work_in_their_order(shards, tmp_path, tmp_path_factory):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "shards").symlink_to(Path(shards).parent)
    installed = tmp_path / "installed"
    environment = os.environ | {
        "PYTHONPATH": str(installed),
        "PIP_TARGET": str(installed),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
    }
    losses, printed = [], ""
    for language, title, text in BLOCKS:
        if language != "bash":
            if not title.startswith("examples/"):
                (tmp_path / title).parent.mkdir(exist_ok=True)
                (tmp_path / title).write_text(text)
            continue
        if "--train-data" in text:
            for whole, less in OWN_DATA.items():
                assert whole in text
                text = text.replace(whole, less)
        for program, *arguments in commands(text, tmp_path_factory.mktemp("recorder")):
            if program == "superclip":
                (run,) = completed(train_with, installed, *arguments[1:], cwd=tmp_path)
                losses.append(set(re.findall(r"(\w*[Ll]oss): ", "\n".join(run.losses()))))
            else:
                command = [sys.executable, *(["-m", "pip"] if program == "pip" else []), *arguments]
                printed += succeed(command, cwd=tmp_path, env=environment).stdout
    assert losses == [
        {"Contrastive_loss", "Loss"},
        {"Contrastive_loss", "Gap_loss", "Loss"},
        {"Contrastive_loss", "Sub_caption_loss", "Class_loss", "Loss"},
    ]
    assert "1 passed" in printed
