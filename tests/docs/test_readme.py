"""The README says what the code does: its tables are the commands' output, its flags exist, its snippets run."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import open_clip
import pytest
import torch

from openclip_superclip import hooks
from openclip_superclip.__main__ import COMMANDS
from openclip_superclip.commands import benchmark, demo
from openclip_superclip.config import Config, DataConfig
from openclip_superclip.demo.caption_comparison import modes_table
from openclip_superclip.integration.unpatched_openclip import REPLACED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ON_ONE_LINE = " ".join(README.split())


@pytest.mark.parametrize(("recorded", "tables"), [
    ("docs/demo.json", demo.table),
    ("docs/captions.json", modes_table),
    ("docs/benchmark.json", benchmark.tables),
])  # fmt: skip
def test_its_tables_are_what_the_command_printed_for_the_recorded_run(recorded, tables):
    assert tables(json.loads((ROOT / recorded).read_text())) in README


def test_its_batch_size_study_is_what_superclip_report_wrote():
    (table,) = re.findall(r"<!-- batch table -->\n(.*?)\n<!-- end", README, flags=re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    with open(ROOT / "docs/batch_size.csv", newline="") as file:
        assert [rows[0], *rows[2:]] == list(csv.reader(file))


def test_it_shows_every_flag_of_superclip_with_its_default_and_no_other():
    fields = [*dataclasses.fields(Config), *dataclasses.fields(DataConfig)]
    flags = {field.metadata["flag"] for field in fields}
    assert set(re.findall(r"--superclip-[\w-]+", README)) == flags
    (table,) = re.findall(r"^\| flag \| default \|.*?\n\n", README, flags=re.DOTALL | re.MULTILINE)
    for field in fields:
        (default,) = re.findall(rf"^\| `{field.metadata['flag']}\b.*?` \| *(.*?) *\|", table, flags=re.MULTILINE)
        shown = "" if field.default is None else str(field.default)
        assert default == ("off" if field.default is False else shown)


def test_its_python_snippet_runs(tiny_model):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    tokenizer = open_clip.get_tokenizer(tiny_model)
    names = {"images": torch.randn(2, 3, 32, 32), "texts": tokenizer(["a cat", "a red dog"])}
    exec(snippet.replace("ViT-B-16", tiny_model), names)
    assert list(names["losses"]) == ["contrastive_loss", "class_loss"]
    assert names["model"].class_head.weight.grad.any()


def test_every_command_it_calls_exists():
    called = set(re.findall(r"(?:`|bin/|^)superclip ([a-z]+)", README, flags=re.MULTILINE))
    assert {"demo", "train"} <= called <= set(COMMANDS)


def test_it_counts_the_hooks_and_the_names_that_the_launcher_replaces():
    words = {6: "six", 7: "seven", 8: "eight", 9: "nine", 12: "twelve", 13: "thirteen", 14: "fourteen"}
    num_hooks = words[sum(hasattr(value, "open_clip_spec") for value in vars(hooks).values())]
    assert f"[the {num_hooks} hooks]" in ON_ONE_LINE
    assert f"{num_hooks} [pluggy]" in ON_ONE_LINE
    assert f"the {words[len(REPLACED)]} names that it replaces" in ON_ONE_LINE


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)
