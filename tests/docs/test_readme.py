"""README and the pages say what the code does: their tables are the
commands' output, their lists are complete."""

import dataclasses
import re

import open_clip
import tomllib
import torch
import yaml
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


def test_readmes_hours_are_what_plan_computes():
    rows = re.findall(
        r"(\d) × A100 \| `superclip run (\S+/\S+)` \| (.*?) (h|min) \(computed\)", README
    )
    assert len(rows) == 2
    for gpus, recipe, time, unit in rows:
        planned = " ".join(execute(f"plan {recipe} --gpus-per-node {gpus}").split())
        assert f" {time} {'hours' if unit == 'h' else 'minutes'}, " in planned


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


def test_the_table_of_exit_codes_of_patch_check_is_the_commands():
    codes = re.findall(r"^\| (\d) \| (.+) \|$", PAGES["docs/install.md"], flags=re.MULTILINE)
    assert {state: int(code) for code, state in codes} == patch.EXIT_CODES


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "preferred-citation"} <= set(citation)
    assert citation["version"] == __version__
    assert citation["preferred-citation"]["title"] in " ".join(README.replace("*", "").split())
