"""What the cache of plans keeps, and when it computes again."""

import os
import re
import sys

import pytest
from support import input_error, succeed
from support.models import write_model
from support.training_runs import execute

from openclip_superclip import environment
from openclip_superclip.errors import InputError
from openclip_superclip.plans.cost import estimate_cost
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe

RELEASED = "datacomp1b/superclip_vit-b-16_512m_bs16k"


def run_of(model):
    return make_run(read_recipe("demo/superclip_demo-model_8k_bs64", {"model": model}))


def test_a_repeated_plan_imports_neither_torch_nor_openclip(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CACHE", tmp_path / "openclip-superclip")
    command = f"plan {RELEASED} --set model=ViT-Ti-16-96 --json"
    first = execute(command)
    again = [sys.executable, "-X", "importtime", "-m", "openclip_superclip", *command.split()]
    environ = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    second = succeed(again, env=environ, cwd=tmp_path)
    assert second.stdout == first
    imported = re.findall(r"\| +([\w.]+)$", second.stderr, flags=re.MULTILINE)
    assert "openclip_superclip.plans.plan" in imported
    assert not {"torch", "open_clip"}.intersection(imported)


def test_what_is_kept_is_computed_again_if_the_models_file_changes(tmp_path):
    narrow, wide = (write_model(tmp_path / "model", vision={"width": width}) for width in (64, 64))
    first = estimate_cost(run_of(narrow))["parameters"]
    write_model(tmp_path / "model", vision={"width": 128})
    assert estimate_cost(run_of(wide))["parameters"] > first


@pytest.fixture
def calls(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CACHE", tmp_path / "cache")
    return []


def keep(calls, inputs):
    def compute():
        calls.append(inputs)
        if inputs == "bad":
            raise InputError("bad")
        return {"result": inputs}

    return environment.kept("numbers", inputs, compute)


def test_a_result_is_computed_once_for_each_input(calls):
    assert [keep(calls, inputs) for inputs in (1, 2, 1)] == [{"result": n} for n in (1, 2, 1)]
    assert calls == [1, 2]


def test_a_damaged_file_of_the_cache_is_computed_again(calls, tmp_path):
    keep(calls, 1)
    (file,) = (tmp_path / "cache" / "numbers").iterdir()
    file.write_text("{")
    assert keep(calls, 1) == keep(calls, 1) == {"result": 1}
    assert calls == [1, 1]


def test_an_error_is_not_kept(calls):
    for _ in range(2):
        with input_error("bad"):
            keep(calls, "bad")
    assert calls == ["bad", "bad"]


def test_a_cache_that_cannot_be_written_is_left_out(calls, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert keep(calls, 1) == keep(calls, 1)
    assert calls == [1, 1]


def test_another_version_of_a_source_file_computes_again(calls, monkeypatch):
    keep(calls, 1)
    monkeypatch.setattr(environment, "_sources", lambda: iter([("loss.py", 1, 1)]))
    keep(calls, 1)
    assert calls == [1, 1]
