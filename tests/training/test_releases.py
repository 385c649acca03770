"""What earlier releases wrote is opened by this one: runs, checkpoints,
exports, counts, recipes and results of studies.

Each release wrote an archive of data/releases with its own commands and one
tiny model: a finished run, the same run killed in its fourth slice, an export
of it with its class head, counts of its captions, and a study. data.tar.xz has
the model, the shards and the recipe.
"""

import tarfile

import pytest
import torch
from safetensors.torch import load_file
from support import DATA, parametrize
from support.data import write_colours
from support.models import assert_equal
from support.training_runs import call, execute, failure, in_forks, load

import openclip_superclip as superclip

RELEASES = ("0.1", "0.2", "0.3")
WRITTEN_AT = "/tmp/release"  # which the files name
pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture(scope="module")
def forks():
    with in_forks():
        yield


@pytest.fixture(params=RELEASES)
def release(request, tmp_path, monkeypatch):
    """The name of a release, in a folder with its files."""
    for name in ("data", request.param):
        with tarfile.open(DATA / f"releases/{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
    for file in tmp_path.rglob("*"):
        if file.suffix in {".json", ".yaml", ".txt", ".csv", ".md"}:
            file.write_text(file.read_text().replace(WRITTEN_AT, str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return request.param


def run_of(release, name):
    """How a run of a release is continued; 0.1 did not record the recipe in the run's folder."""
    return f"recipe.yaml --out {name} --device cpu" if release == "0.1" else name


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(release, tmp_path):
    if release == "0.1":
        message = failure("run stopped")
        assert "give superclip run the recipe and --out again" in message
    # the packages of this environment may be newer
    assert call(f"run {run_of(release, 'stopped')} --accept-changes") == 0
    weights, expected = (load(tmp_path / name, 6)["state_dict"] for name in ("stopped", "finished"))
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)
    assert "finished | 100 %, 6 of 6 slices" in execute("status stopped")


def test_a_finished_run_has_nothing_left_to_train(release):
    assert "finished | 100 %, 6 of 6 slices" in execute("status finished")
    assert "nothing is left to train" in execute(f"run {run_of(release, 'finished')}")


def test_a_checkpoint_is_exported_as_its_own_release_did(release, tmp_path):
    execute("export finished/checkpoints/epoch_6.pt --with-head --out new")
    execute("export exported --with-head --out again")
    for name in ("open_clip_model.safetensors", "superclip_head.safetensors"):
        expected = load_file(tmp_path / "exported" / name)
        assert_equal(load_file(tmp_path / "new" / name), expected)
        assert_equal(load_file(tmp_path / "again" / name), expected)
    model, *_ = superclip.create_model_and_transforms("local-dir:exported")
    assert model.statistics.num_captions == 192


@parametrize("model", ["finished", "exported"])
def test_weights_are_evaluated(release, model, tmp_path):
    write_colours(tmp_path / "data/colours")
    printed = execute(f"evaluate {model} --data data --datasets colours --device cpu --workers 0")
    assert "colours" in printed


def test_counts_are_those_of_today(release, tmp_path):
    tokenizer = f"--tokenizer-of local-dir:{tmp_path}/model"
    execute(f"frequencies 'shards/{{000000..000011}}.tar' {tokenizer} --out new.safetensors")
    assert_equal(load_file("frequencies.safetensors"), load_file("new.safetensors"))
    planned = execute("plan recipe.yaml --set superclip.idf=frequencies.safetensors --device cpu")
    assert "--superclip-idf frequencies.safetensors" in planned


def test_a_studys_results_are_reported(release, tmp_path):
    def rows(text):
        return [line for line in text.splitlines() if line.startswith("|") and "R@1" in line]

    expected = rows((tmp_path / "study/study.md").read_text())
    assert len(expected) == 2
    validation = "--val-data 'shards/{000000..000001}.tar'"
    printed = execute(f"study study.yaml --out study --only report {validation}")
    assert rows(printed.replace("−", "-")) == [row.replace("−", "-") for row in expected]
