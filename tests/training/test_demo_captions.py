"""`superclip demo` in several modes of captions: what trains in each, and its table."""

import json
import re

import pytest
from support.demo_runs import run_demo

from openclip_superclip.__main__ import main
from openclip_superclip.demo.caption_comparison import modes_table
from openclip_superclip.demo.demo_run import method_flags


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, "--captions", "mixed:0.8", "dual")


def test_it_prints_a_row_for_each_method_in_each_mode(finished):
    out, done = finished
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "captions.json").read_text())
    assert modes_table(report) in done.stdout
    assert re.findall(r"^\| (\w+) \| (\S+) \| ", done.stdout, flags=re.MULTILINE) == [
        ("CLIP", "mixed:0.8"), ("SuperCLIP", "mixed:0.8"), ("SuperCLIP", "dual"),
    ]  # fmt: skip


def test_every_run_was_given_its_captions(finished):
    out, _ = finished
    report = json.loads((out / "captions.json").read_text())
    for row in report["rows"]:
        (run,) = row["runs"]
        assert f"--superclip-captions {row['captions']} --superclip-long-caption long.txt" in run["command"]
        assert "/data/short-320/" in run["command"]
        assert ("--superclip-weight 0" in run["command"]) == (row["method"] == "CLIP")


@pytest.mark.parametrize("captions", ["long", "short", "raw"])
def test_a_mode_of_one_caption_adds_nothing_to_a_method(captions):
    assert method_flags("CLIP", captions) == []
    assert method_flags("SuperCLIP", captions) == ["--superclip"]


@pytest.mark.parametrize("captions", [["dual"], ["mixed:0.5"], ["tall"], ["long", "mixed:2"], ["long", "tall"]])
def test_captions_that_it_does_not_know_are_refused_in_one_line(captions, tmp_path, capsys):
    assert main(["demo", "--captions", *captions, "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--captions" in line
    assert not (tmp_path / "out").exists()
