"""URLs and commands as data: only the command line may give them, no file."""

import shlex

import pytest
from ruamel.yaml import YAML
from support import cases, parametrize, read_json
from support.tiny_run import write_recipe
from support.training_runs import execute, failure

from openclip_superclip.data.tar_shards import is_streamed

STREAMS = {
    "a command": "pipe:touch ran",
    "one of several": "{shards/{00..11}.tar,pipe:touch ran}",
    "after a file": "shards/00.tar::pipe:touch ran",
    "a scheme in parts": "{p,q}ipe:touch ran",
    "a URL that ends curl's command": "http:'; touch ran; '",
    "behind a space": " https://127.0.0.1:9/'; touch ran; '",
    "a bucket": "gs://bucket/{00..11}.tar",
    "a table": "http://127.0.0.1:9/table.csv",
}
PLACES = {
    "shards": lambda stream: {"shards": stream},
    "validation data": lambda stream: {"flags": {"val-data": stream}},
    "validation data in a list": lambda stream: {"flags": {"val-data": [stream]}},
    "an abbreviation": lambda stream: {"flags": {"val-dat": stream}},
    "an abbreviated train-data": lambda stream: {"flags": {"train-dat": stream}},
    "with its value": lambda stream: {"flags": {f"val-data={stream}": True}},
    "among the values of another": lambda stream: {
        "flags": {"imagenet-val": ["folder", "--val-data", stream]}
    },
}
COMMANDS = ("plan", "run --device cpu", "run --device cpu --dry-run", "submit --dry-run")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"))


def changed(recipe, **values):
    """Writes a recipe with other values and returns its file."""
    file = recipe.with_name("streamed.yaml")
    YAML().dump(YAML(typ="safe").load(recipe) | values, file)
    return file


def assert_refused(command, folder, *more):
    error = failure(command, *more)
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not list(folder.rglob("ran"))
    return error


@cases("stream", STREAMS)
@cases("values", PLACES)
def test_no_recipe_names_a_url_or_a_command_as_data(values, stream, recipe, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    for command in COMMANDS:
        name, _, options = command.partition(" ")
        file = changed(recipe, **values(stream))
        error = assert_refused(f"{name} {file} {options}", recipe.parent)
    assert str(file) in error


@cases("stream", STREAMS)
def test_a_study_names_no_url_and_no_command(stream, recipe, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    study = {"question": "?", "primary": "image_to_text_R@1", "measures": "validation", "seeds": 1}
    study |= {"recipe": str(recipe), "arms": {"a": {}, "b": {"lr": 1e-4}}}
    for key in ("shards", "flags.val-data"):
        field = {key: stream, "flags.val-frequency": 1}
        validated = {"flags.val-data": "shards/{00..11}.tar"} | field
        for place in (
            {"set": validated},
            {"arms": {"a": validated, "b": {**validated, "lr": 1e-4}}},
            {"set": validated, "cells": {key: [stream, "shards/{00..11}.tar"]}},
        ):
            YAML().dump(study | place, recipe.with_name("study.yaml"))
            for options in ("", "--dry-run", "--slurm --dry-run"):
                assert_refused(f"study study.yaml --device cpu {options}", recipe.parent)


TRAINED = "pipe:touch ran; cat {00..11}.tar"
VALIDATED = "pipe:touch ran; cat val.tar"


def test_a_runs_folder_needs_its_streams_on_the_command_line(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    streams = ["--data", TRAINED, "--set", f"flags.val-data={VALIDATED}"]
    submit = f"submit {recipe} --gpus-per-node 1 --device cpu --out run --skip-data-check"
    script = execute(submit, *streams, "--dry-run")
    assert f'"${{superclip[@]}}" run {shlex.join(streams)} "$run"' in script
    monkeypatch.setenv("PATH", "/nowhere")
    assert "sbatch was not found" in failure(submit, *streams)
    assert read_json(tmp_path / "run/run.json")["run"]["data"] == TRAINED
    assert shlex.join(streams) in assert_refused("run run", tmp_path)
    for options in (streams[:2], streams[2:], ["--data", "pipe:false", *streams[2:]]):
        assert shlex.join(streams) in assert_refused("run run", tmp_path, *options)
    assert TRAINED in execute("run run --dry-run", *streams)


def test_what_the_command_line_names_is_planned(recipe, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    file = changed(recipe, shards=TRAINED)
    assert "URLs or pipes" in execute(f"plan {file} --gpus-per-node 1 --data", TRAINED)
    planned = execute(f"plan {file} --gpus-per-node 1 --data", TRAINED)
    assert f"--train-data {shlex.quote(TRAINED)}" in planned
    assert not list(recipe.parent.rglob("ran"))


@parametrize("data", ["a/{0..3}.tar", "/a b/c.tar::d.tar", "a.csv", "./pipe", "12:30.tar", None])
def test_files_are_no_streams(data):
    assert not is_streamed(data)
