"""Image features: computed once, by any number of ranks, and the measures that are computed from them."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from clip_benchmark.datasets.builder import build_dataset
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.colour_shards import COLOURS, write_colours
from support.evaluation import evaluate as evaluate_models
from support.evaluation import features, num_read
from support.evaluation import records as all_records
from support.released_models import write_random_model
from support.training_runs import run_ranks

from openclip_superclip.__main__ import main
from openclip_superclip.evaluation.datasets import find_data
from openclip_superclip.evaluation.features import read_features
from openclip_superclip.evaluation.outcomes import read_outcomes

ALL = "zeroshot,probe,fewshot,knn"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> list[str]:
    return write_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_colours(folder / "colours", ("test", "train", "val"))
    return folder


def evaluate(model, data, out, *flags, suite=ALL) -> int:
    return evaluate_models(*model, "--data", data, "--out", out, "--suite", suite, "--batch-size", "10", *flags)


def records(folder: Path) -> dict[tuple[str, str], dict]:
    """The results of one model by data set and task."""
    return {key[1:]: record for key, record in all_records(folder).items()}


@pytest.fixture(scope="module")
def evaluated(model, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    assert evaluate(model, data, out, "--datasets", "colours") == 0
    return out


def test_samples_by_their_place_are_those_that_clip_benchmark_reads_through(tmp_path):
    colours = write_colours(tmp_path / "colours")
    with webdataset.TarWriter(str(colours / "test" / "1.tar")) as tar:
        for number in range(3):
            key = f"{'deep/' * 30}a{number}" if number else "plain"  # a name too long for a plain header
            tar.write({"__key__": key, "png": Image.new("RGB", (8, 8), (number, 0, 0)), "cls": 2, "json": {"n": 1}})
            tar.write({"__key__": f"alone{number}", "jpg": Image.new("RGB", (8, 8)), "cls": 1})
    (colours / "test" / "nshards.txt").write_text("2\n")
    read_through = build_dataset("wds/colours", root=str(colours), transform=np.asarray, split="test")
    ours = find_data(tmp_path, "colours").build(np.asarray, "test", "zeroshot_classification")
    expected = list(read_through)
    assert len(ours) == len(expected) == 54
    for place in (53, 0, *range(54)):
        assert ours[place][1] == expected[place][1]
        assert np.array_equal(ours[place][0], expected[place][0])


def test_another_setting_encodes_no_image_again(model, tmp_path):
    shards = write_colours(tmp_path / "data" / "colours", ("test", "train"))
    assert evaluate(model, tmp_path / "data", tmp_path / "out", "--datasets", "colours", suite="probe") == 0
    for split in ("test", "train"):  # of equal size and time, so that nothing tells
        shard, stat = shards / split / "0.tar", (shards / split / "0.tar").stat()
        shard.write_bytes(b"\0" * stat.st_size)
        os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    flags = ["--datasets", "colours", "--probe-lr", "0.01"]
    assert evaluate(model, tmp_path / "data", tmp_path / "out", *flags) == 0
    assert len(features(tmp_path / "out")) == 2
    found = records(tmp_path / "out")
    assert len(found) == 4
    assert found["colours", "linear_probe"]["settings"]["lr"] == 0.01
    os.utime(shards / "test" / "0.tar")
    assert evaluate(model, tmp_path / "data", tmp_path / "out", *flags, suite="knn") == 1


def test_two_ranks_have_the_features_and_the_scores_of_one(model, data, evaluated, tmp_path):
    ranks = run_ranks(evaluate, model, data, tmp_path, "--datasets", "colours", world_size=2, cwd=tmp_path)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].output[-3000:]
    assert "| colours |" in ranks[0].output
    assert "| colours |" not in ranks[1].output
    one, two = features(evaluated), features(tmp_path)
    assert one == two
    for key, record in records(evaluated).items():
        assert records(tmp_path)[key]["metrics"] == record["metrics"]


def test_what_fails_on_one_rank_ends_on_all_and_the_next_data_set_is_measured(model, tmp_path):
    for name in ("a-broken", "b-whole"):
        write_colours(tmp_path / "data" / name)
    shard = tmp_path / "data" / "a-broken" / "test" / "0.tar"
    with tarfile.open(shard) as tar:
        at = tar.getmember("015.png").offset_data  # in the second batch, which is the second rank's
    content = bytearray(shard.read_bytes())
    content[at : at + 40] = b"\0" * 40
    shard.write_bytes(content)
    flags = ["--datasets", "a-broken", "b-whole"]
    options = {"world_size": 2, "cwd": tmp_path}
    ranks = run_ranks(evaluate, model, tmp_path / "data", tmp_path / "out", *flags, **options)
    assert [rank.returncode for rank in ranks] == [1, 0]
    assert [error.split()[4] for error in ranks[0].errors()] == ["a-broken"]
    assert [dataset for dataset, _ in records(tmp_path / "out")] == ["b-whole"]
    assert len(list((tmp_path / "out" / "features").iterdir())) == 1


def test_the_outcomes_of_the_test_samples_add_up_to_the_scores(evaluated):
    shown = 0
    for file in evaluated.glob("*.json"):
        record = json.loads(file.read_text())
        for measure, outcome in read_outcomes(file.with_suffix(".outcomes.npz")).items():
            assert len(outcome.scored) == 48
            if outcome.kind == "mean":
                assert outcome.scored.sum() / outcome.of.sum() == pytest.approx(record["metrics"][measure])
            else:
                recalls = [outcome.scored[outcome.of == label].mean() for label in range(3)]
                assert np.mean(recalls) == pytest.approx(record["metrics"][measure])
            low, high = record["intervals"][measure]
            assert low <= record["metrics"][measure] <= high
            shown += 1
    assert shown == 2 + 2 + 5 + 1


def test_few_pictures_and_neighbours_are_sklearns_on_normalised_features(evaluated):
    (test,), (train,) = (list(evaluated.glob(f"features/*.{split}.*")) for split in ("test", "train"))
    test, train = read_features(test), read_features(train)
    x, y = (torch.nn.functional.normalize(part.images).numpy() for part in (train, test))
    metrics = records(evaluated)["colours", "few_shot"]["metrics"]
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, train.targets)
    assert metrics["fewshot_acc1@16"] == pytest.approx(fitted.score(y, test.targets))  # 16 of 16 a class
    cosines = y @ x.T
    nearest = np.argsort(-cosines, axis=1)[:, :20]
    votes = np.zeros((48, len(COLOURS)))
    for picture, places in enumerate(nearest):
        for place in places:
            votes[picture, train.targets[place]] += 1 / (1 - cosines[picture, place])
    expected = (votes.argmax(axis=1) == test.targets.numpy()).mean()
    assert records(evaluated)["colours", "knn"]["metrics"]["knn_acc1"] == pytest.approx(expected)


def test_classes_with_few_training_images_leave_measures_out(model, tmp_path, capsys):
    colours = write_colours(tmp_path / "data" / "colours", ("test", "train"))

    def write_train(num_classes: int) -> None:
        with webdataset.TarWriter(str(colours / "train" / "0.tar")) as tar:
            for index in range(9):
                tar.write({"__key__": str(index), "png": Image.new("RGB", (8, 8)), "cls": index % num_classes})

    write_train(3)
    assert evaluate(model, tmp_path / "data", tmp_path / "out", "--datasets", "colours", suite="fewshot") == 0
    metrics = records(tmp_path / "out")["colours", "few_shot"]["metrics"]
    assert [metrics[f"fewshot_acc1@{shots}"] is None for shots in (1, 2, 4, 8, 16)] == [False, False, True, True, True]
    assert "| 2 a class colours | " in (printed := capsys.readouterr().out)
    assert "| 4 a class colours" not in printed
    write_train(2)
    assert evaluate(model, tmp_path / "data", tmp_path / "two", "--datasets", "colours", suite="probe") == 1
    assert "test holds the label 2" in capsys.readouterr().err
    assert not records(tmp_path / "two")


def write_sugar_crepe(folder: Path) -> None:
    """Two of SugarCrepe's seven sets, as it publishes them."""
    (folder / "sugar_crepe" / "val2017").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(12):
        pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "sugar_crepe" / "val2017" / f"{index}.png")
    for name in ("add_att", "swap_obj"):
        about = {
            str(index): {"filename": f"{index}.png", "caption": f"a red cat {index}", "negative_caption": "a blue dog"}
            for index in range(12)
        }
        (folder / "sugar_crepe" / f"{name}.json").write_text(json.dumps(about))


def write_winoground(folder: Path) -> None:
    """A data set in the cache of `datasets`, as it leaves one that was downloaded."""
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green", "white")]
    columns = {"image_0": pictures[:3], "image_1": pictures[1:], "caption_0": list("abc"), "caption_1": list("bcd")}
    kinds = {name: datasets.Image() if "image" in name else datasets.Value("string") for name in columns}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    made.save_to_disk(str(folder / "made"))
    cached = folder / "winoground" / "facebook___winoground" / "default" / "0.0.0" / "commit"
    cached.mkdir(parents=True)
    next((folder / "made").glob("*.arrow")).rename(cached / "winoground-test.arrow")
    about = json.loads((folder / "made" / "dataset_info.json").read_text())
    about |= {"builder_name": "winoground", "dataset_name": "winoground", "config_name": "default"}
    about |= {"version": "0.0.0", "splits": {"test": {"name": "test", "num_examples": 3, "dataset_name": "winoground"}}}
    (cached / "dataset_info.json").write_text(json.dumps(about))


def test_compositional_sets_are_measured_as_clip_benchmark_reads_them(model, tmp_path, capsys):
    write_sugar_crepe(tmp_path / "data")
    write_winoground(tmp_path / "data")
    assert evaluate(model, tmp_path / "data", tmp_path / "out", suite="compositional") == 0
    found = records(tmp_path / "out")
    assert {dataset for dataset, _ in found} == {"sugar_crepe/add_att", "sugar_crepe/swap_obj", "winoground"}
    winoground = found["winoground", "image_caption_selection"]["metrics"]
    assert winoground["acc"] <= min(winoground["image_acc"], winoground["text_acc"])
    (kept,) = (tmp_path / "out").glob("features/*winoground*")
    assert read_features(kept).images.shape == (3, 2, 32)
    (result,) = (tmp_path / "out").glob("*winoground*.npz")
    assert {name: outcome.scored.mean() for name, outcome in read_outcomes(result).items()} == pytest.approx(winoground)
    printed = capsys.readouterr().out
    assert "| sugar_crepe/add_att text | " in printed
    assert "| winoground group | " in printed
    assert "sugar_crepe/add_obj (compositional: not there)" in printed


# A run's checkpoints, and the weights between two models


@pytest.fixture(scope="module")
def run(model, tmp_path_factory) -> Path:
    """The folder of a run with three checkpoints, each of other weights."""
    folder = tmp_path_factory.mktemp("run") / "run"
    (folder / "checkpoints").mkdir(parents=True)
    weights = torch.load(model[0])
    for epoch in (1, 2, 10):
        changed = {name: value * (1 + epoch / 10) if "proj" in name else value for name, value in weights.items()}
        torch.save({"epoch": epoch, "state_dict": changed}, folder / "checkpoints" / f"epoch_{epoch}.pt")
    torch.save({"epoch": 10, "state_dict": weights}, folder / "checkpoints" / "epoch_latest.pt")
    return folder


def test_every_checkpoint_of_a_run_is_measured_in_the_order_of_the_epochs(model, run, data, tmp_path, capsys):
    argv = [run, *model[1:]], data, tmp_path, "--datasets", "colours", "--every"
    assert evaluate(*argv, suite="zeroshot") == 0
    assert capsys.readouterr().out.startswith("| % | run/epoch_1 | run/epoch_2 | run/epoch_10 |\n")
    assert evaluate(*argv, suite="zeroshot") == 0
    assert num_read(capsys) == 3


def test_a_sweep_measures_the_weights_that_interpolate_writes(model, run, data, tmp_path, capsys):
    tuned, released = run / "checkpoints" / "epoch_10.pt", run / "checkpoints" / "epoch_1.pt"
    flags = ["--datasets", "colours"]
    sweep = ["--wise-ft", released, "--alphas", "0,0.3,1"]
    assert evaluate([tuned, *model[1:]], data, tmp_path / "sweep", *flags, *sweep, suite="zeroshot") == 0
    assert "run/epoch_10 α 0.3 |" in capsys.readouterr().out
    between = tmp_path / "between.pt"
    assert main(["interpolate", *map(str, [released, tuned]), "--alpha", "0.3", "--out", str(between)]) == 0
    three = [released, between, tuned, *model[1:]]
    assert evaluate(three, data, tmp_path / "alone", *flags, suite="zeroshot") == 0
    expected = set(features(tmp_path / "alone").values())
    assert len(expected) == 3
    assert set(features(tmp_path / "sweep").values()) == expected
