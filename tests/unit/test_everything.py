"""`superclip benchmark --everything`: its parts are commands that are taken, and it ends when its time is up."""

import json

import pytest
from support.pages import parse_superclip

from openclip_superclip.__main__ import main
from openclip_superclip.benchmark.everything import EverythingSettings, _parts
from openclip_superclip.runs.plan import make_plan
from openclip_superclip.runs.recipe import read_recipe
from openclip_superclip.runs.rehearsal import rehearsed_plan

SMALL = ["--device", "cpu", "--model", "ViT-Ti-16-96", "--local-batches", "2", "--picture-size", "8"]


def test_every_part_is_a_command_that_its_parser_takes(tmp_path, monkeypatch):
    settings = EverythingSettings("cuda", "amp_bf16", "ViT-B-16", 49408, 768, [2, 4], 7, 3, 8, 9.5, tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # that many are asked for; nothing is trained
    parts = _parts(settings, "cuda")
    assert [part.name for part in parts][:4] == ["local-2", "local-4", "rehearsal", "run"]
    for part in parts:
        options = parse_superclip(part.arguments, monkeypatch)
        if part.name == "rehearsal":
            set_ = dict(pair.split("=", 1) for pair in options.set)
            plan = make_plan(read_recipe(options.recipe, set_), 1, options.nproc, options.data, options.workers)
            assert (plan.batch_size, plan.accum_freq, plan.warnings) == (2, 1, [])
            assert rehearsed_plan(plan, options.steps).slice_steps == options.steps
            assert plan.check_shards() == []


def test_what_is_not_begun_when_the_time_is_up_is_told_as_that(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["benchmark", "--everything", *SMALL, "--minutes", "1e-9", "--out", str(out)]) == 1
    assert "not begun: the time is up" in capsys.readouterr().out
    parts = json.loads((out / "everything.json").read_text())["parts"]
    assert {part["state"] for part in parts} == {"not begun: the time is up"}
    assert main(["benchmark", "--everything", *SMALL, "--out", str(out)]) == 1
    assert "holds everything.json: give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "named"), [
    (["--local-batches", "1"], "--local-batches holds 1; expected 2 or more"),
    (["--local-batches", "a"], "--local-batches is a; expected whole numbers"),
    (["--minutes", "0"], "--minutes is 0; expected a number above 0"),
    (["--picture-size", "7"], "--picture-size is 7; expected 8 or more"),
    (["--precision", "amp"], "--precision does nothing with --everything: leave --precision out"),
    (["--device", "cuda:9"], "cuda:9"),
    (["--device", "nope"], "--device is"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_first(arguments, named, tmp_path, capsys):
    assert main(["benchmark", "--everything", *SMALL, *arguments, "--out", str(tmp_path)]) == 1
    assert named in capsys.readouterr().err
    assert main(["benchmark", *SMALL, "--out", str(tmp_path)]) == 1
    assert "--local-batches does nothing without --everything" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
