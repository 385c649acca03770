"""README and the pages say what the code does: their tables are the
commands' output, their lists are complete."""

import dataclasses
import re

import open_clip
import pytest
import tomllib
import torch
import yaml
from support import cases
from support.pages import PAGES, ROOT
from support.training_runs import execute

from openclip_superclip import __version__
from openclip_superclip.commands import patch
from openclip_superclip.flags import Config, DataConfig

README = PAGES["README.md"]


def test_a_page_shows_every_flag_of_superclip_with_its_default_and_no_other():
    fields = [*dataclasses.fields(Config), *dataclasses.fields(DataConfig)]
    flags = {field.metadata["flag"] for field in fields}
    page = PAGES["docs/flags.md"]
    assert set(re.findall(r"--(?:superclip|val)-[\w-]+", page)) == flags
    (table,) = re.findall(r"^\| flag \| default \|.*?\n\n", page, flags=re.DOTALL | re.MULTILINE)
    for field in fields:
        (default,) = re.findall(
            rf"^\| `{field.metadata['flag']}\b.*?` \| *(.*?) *\|", table, flags=re.MULTILINE
        )
        shown = "" if field.default is None else str(field.default)
        assert default == ("off" if field.default is False else shown)


@pytest.mark.slow
@cases(
    "recipe, gpus",
    {
        "finetune/superclip_vit-b-16_512k_bs256": "1 --gpu RTX4090",
        "cc12m/superclip_vit-b-16_256m_bs1k": "8",
        "datacomp1b/superclip_vit-b-16_512m_bs1k": "8",
        "datacomp1b/superclip_vit-b-16_512m_bs16k": "8",
    },
)
def test_readmes_costs_are_what_plan_computes(recipe, gpus):
    (row,) = [line for line in README.splitlines() if f"`superclip run {recipe}`" in line]
    hours, disk = re.findall(r"\| ([\d.]+(?: to [\d.]+)? (?:h|GB)) ᶜ", row)
    printed = " ".join(execute(f"plan {recipe} --gpus-per-node {gpus}").split())
    assert f" {hours.removesuffix(' h')} hours, " in printed
    assert f"at most {disk}" in printed


def test_the_python_snippet_runs(tiny_model):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    tokenizer = open_clip.get_tokenizer(tiny_model)
    names = {"images": torch.randn(2, 3, 32, 32), "texts": tokenizer(["a cat", "a red dog"])}
    exec(snippet.replace("ViT-B-16", tiny_model), names)
    assert list(names["losses"]) == ["contrastive_loss", "class_loss"]
    assert names["model"].class_head.weight.grad.any()


def test_a_page_lists_every_extra_and_a_missing_one_is_named_by_what_asks_for_it():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (table,) = re.findall(
        r"^\| extra \| for \|\n.*?\n\n", PAGES["docs/install.md"], flags=re.DOTALL | re.MULTILINE
    )
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, flags=re.MULTILINE))
    assert rows.keys() == extras.keys()
    required = [
        (file, extra)
        for file in (ROOT / "openclip_superclip").rglob("*.py")
        for extra in re.findall(r'\brequire\([^,]+, "(\w+)"', file.read_text())
    ]
    assert {"report", "eval"} <= {extra for _, extra in required}
    for file, extra in required:
        assert extra in rows, file
        if file.parent.name == "commands":
            assert file.stem in rows[extra], (file, extra)


def test_patchings_table_of_exit_codes_is_the_commands():
    codes = re.findall(r"^\| (\d) \| (.+) \|$", PAGES["docs/patching.md"], flags=re.MULTILINE)
    assert {state: int(code) for code, state in codes} == patch.EXIT_CODES


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "preferred-citation"} <= set(citation)
    assert citation["version"] == __version__
    assert citation["preferred-citation"]["title"] in " ".join(README.replace("*", "").split())
