"""superclip evaluate: scores equal CLIP_benchmark's, results are reused, and bad models and data
sets are named."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import webdataset
from clip_benchmark.datasets.builder import build_dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from support.data import write_colours
from support.evaluation import errors, evaluate, num_read, records
from support.models import add_to_cache, random_weights
from support.training_runs import run_ranks

from openclip_superclip import create_model_and_transforms
from openclip_superclip.__main__ import main
from openclip_superclip.lab.demo.data import write_evaluation_data
from openclip_superclip.lab.demo.scenes import NAMES, scenes
from openclip_superclip.lab.evaluation.datasets import Data, find_data
from openclip_superclip.lab.evaluation.intervals import estimate, read_outcomes
from openclip_superclip.lab.reports.run_scores import read_scores

NUM_SCENES = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The demo's scenes under the names of two of the paper's data sets, and the colours under
    their own."""
    folder = tmp_path_factory.mktemp("data")
    written = write_evaluation_data(folder / "scenes", NUM_SCENES, num_probe_scenes=10)
    (folder / "sets" / "wds").mkdir(parents=True)
    (folder / "sets" / "imagenet1k").symlink_to(written["demo_objects"])
    (folder / "sets" / "wds" / "flickr30k").symlink_to(written["demo_scenes"])
    write_colours(folder / "sets" / "own" / "colours", ("test", "train"))
    return folder / "sets"


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory) -> Path:
    """The folder of a CLIP run and a SuperCLIP run, and of the second's export."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    models = {
        "clip": open_clip.create_model(tiny_model),
        "superclip": create_model_and_transforms(tiny_model)[0],
    }
    for name, model in models.items():
        (folder / name / "checkpoints").mkdir(parents=True)
        (folder / name / "params.txt").write_text(f"model: {tiny_model}\n")
        torch.save(
            {"epoch": 1, "state_dict": model.state_dict()},
            folder / name / "checkpoints" / "epoch_1.pt",
        )
    assert (
        main(["export", f"{folder}/superclip/checkpoints/epoch_1.pt", "--out", f"{folder}/export"])
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def evaluated(runs, data) -> tuple[str, Path]:
    """What one call printed for both checkpoints and the export, and the folder from which it
    was called."""
    folder = runs / "called-from"
    folder.mkdir()
    models = [f"../{name}/checkpoints/epoch_1.pt" for name in ("clip", "superclip")]
    (done,) = run_ranks(evaluate, *models, "../export", "--data", data, cwd=folder)
    assert done.returncode == 0, done.output[-3000:]
    return done.output[done.output.index("| % |") :], folder


@pytest.mark.slow
def test_the_scores_are_those_of_clip_benchmarks_own_command_line(evaluated, runs, data, tmp_path):
    (tmp_path / "root").mkdir()
    for name, place in {"imagenet1k": "imagenet1k", "flickr30k": "wds/flickr30k"}.items():
        (tmp_path / "root" / name).symlink_to(data / place)
    command = [
        Path(sys.executable).with_name("clip_benchmark"),
        "eval",
        "--pretrained_model",
        f"local-dir:{runs}/export,",
        "--dataset",
        "wds/imagenet1k",
        "wds/flickr30k",
        "--dataset_root",
        f"{tmp_path}/root/{{dataset}}",
        "--no_amp",
        "--recall_k",
        "1",
        "5",
        "--num_workers",
        "0",
        "--output",
        f"{tmp_path}/{{dataset}}.json",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ours = {
        dataset: record for (_, dataset, _), record in records(evaluated[1] / "evaluation").items()
    }
    assert ours.keys() == {"imagenet1k", "flickr30k"}
    for dataset, record in ours.items():
        theirs = json.loads((tmp_path / f"{dataset}.json").read_text())
        assert record["metrics"] == theirs["metrics"]
        assert record["task"] == theirs["task"]


@torch.no_grad()
def test_zero_shot_accuracy_is_that_of_a_slow_plain_version(evaluated, runs):
    """On the scenes themselves, not on their shards."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{runs}/export")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{runs}/export")
    model.eval()
    texts = torch.cat([model.encode_text(tokenizer([name]), normalize=True) for name in NAMES])
    ranks = []
    for scene in scenes(NUM_SCENES, seed=0, split="test", num_objects=(1,)):
        image = model.encode_image(preprocess(scene.image)[None], normalize=True)
        similar = [float(image[0] @ text) for text in texts]
        ranks.append(sorted(similar, reverse=True).index(similar[NAMES.index(scene.objects[0])]))
    metrics = records(evaluated[1] / "evaluation")[
        "../export", "imagenet1k", "zeroshot_classification"
    ]["metrics"]
    assert metrics["acc1"] == pytest.approx(np.mean([rank < 1 for rank in ranks]))
    assert metrics["acc5"] == pytest.approx(np.mean([rank < 5 for rank in ranks]))


def test_the_linear_probe_finds_what_is_separable_and_few_classes_have_no_top_5(
    runs, data, tmp_path, capsys
):
    argv = [
        runs / "export",
        "--data",
        data,
        "--datasets",
        "own/colours",
        "--batch-size",
        "8",
        "--out",
        tmp_path,
    ]
    assert evaluate(*argv, "--suite", "zeroshot,retrieval,probe") == 0
    found = {task: record["metrics"] for (_, _, task), record in records(tmp_path).items()}
    assert found.keys() == {"zeroshot_classification", "linear_probe"}
    assert found["zeroshot_classification"]["acc5"] is None
    assert found["linear_probe"]["lp_acc1"] == 1.0
    printed = capsys.readouterr().out
    assert re.search(r"\| linear probe own/colours \| 100\.0 \[9\d\.\d, 100\.0\] \|", printed)
    assert "Not evaluated" not in printed
    for file in tmp_path.glob("*.json"):  # the outcomes of the test samples add up to the scores
        metrics, outcomes = (
            json.loads(file.read_text())["metrics"],
            read_outcomes(file.with_suffix(".outcomes.npz")),
        )
        assert outcomes and all(
            estimate(one).value == pytest.approx(metrics[k]) for k, one in outcomes.items()
        )


def test_shards_have_the_samples_and_the_order_that_clip_benchmark_reads(tmp_path):
    colours = write_colours(tmp_path / "colours")
    with webdataset.TarWriter(str(colours / "test" / "1.tar")) as tar:
        for number in range(3):
            # a name too long for a plain header
            key = f"{'deep/' * 30}a{number}" if number else "plain"
            tar.write(
                {
                    "__key__": key,
                    "png": Image.new("RGB", (8, 8), (number, 0, 0)),
                    "cls": 2,
                    "json": {"n": 1},
                }
            )
            tar.write({"__key__": f"alone{number}", "jpg": Image.new("RGB", (8, 8)), "cls": 1})
    (colours / "test" / "nshards.txt").write_text("2\n")
    expected = list(
        build_dataset("wds/colours", root=str(colours), transform=np.asarray, split="test")
    )
    ours = find_data(tmp_path, "colours").build(np.asarray, "test", "zeroshot_classification")
    assert len(ours) == len(expected) == 54
    for place in (53, 0, *range(54)):
        assert ours[place][1] == expected[place][1]
        assert np.array_equal(ours[place][0], expected[place][0])


class Code:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.makedirs, (str(self.folder), 0o777, True)


@pytest.mark.parametrize("build", ["stock", "ours"])
def test_a_pickle_in_a_shard_is_loaded_by_clip_benchmark_and_not_by_us(build, tmp_path):
    colours = write_colours(tmp_path / "colours")
    code = pickle.dumps(Code(tmp_path / "ran"))
    with webdataset.TarWriter(str(colours / "test" / "0.tar")) as tar:
        tar.write({"__key__": "a", "png": Image.new("RGB", (8, 8)), "cls": 2, "meta.pickle": code})
    if build == "stock":
        samples = build_dataset(
            "wds/colours", root=str(colours), transform=np.asarray, split="test"
        )
    else:
        samples = find_data(tmp_path, "colours").build(
            np.asarray, "test", "zeroshot_classification"
        )
    assert [label for _, label in samples] == [2]
    assert (tmp_path / "ran").exists() == (build == "stock")


def test_checkpoints_with_and_without_a_head_and_an_export_are_compared_side_by_side(
    evaluated, runs
):
    printed, folder = evaluated
    superclip, clip = (
        records(runs / "superclip" / "evaluation"),
        records(runs / "clip" / "evaluation"),
    )
    for dataset, task in {
        "imagenet1k": "zeroshot_classification",
        "flickr30k": "zeroshot_retrieval",
    }.items():
        ours = superclip["superclip/epoch_1", dataset, task]
        assert (ours["epoch"], ours["checkpoint"]) == (1, "../superclip/checkpoints/epoch_1.pt")
        assert (
            ours["metrics"] == records(folder / "evaluation")["../export", dataset, task]["metrics"]
        )
        assert ours["metrics"] != clip["clip/epoch_1", dataset, task]["metrics"]
    (line,) = [line for line in printed.splitlines() if line.startswith("Not evaluated: ")]
    assert "mscoco_captions (retrieval: not found)" in line


# Results are reused


def test_a_result_is_reused_until_something_that_it_depends_on_has_changed(
    tiny_model, tmp_path, monkeypatch, capsys
):
    colours = write_colours(tmp_path / "data" / "colours")
    weights = random_weights(tiny_model)
    torch.save(weights, tmp_path / "weights.pt")
    argv = [
        tmp_path / "weights.pt",
        "--model",
        tiny_model,
        "--data",
        tmp_path / "data",
        "--datasets",
        "colours",
    ]
    argv += ["--suite", "zeroshot", "--out", tmp_path / "out"]

    def is_read(*flags) -> int:
        assert evaluate(*argv, *flags) == 0
        return num_read(capsys)

    assert not is_read()
    (file,) = (tmp_path / "out").glob("*.json")
    written = file.read_bytes()
    assert is_read()
    assert file.read_bytes() == written
    assert not is_read("--precision", "amp")
    assert not is_read()
    assert is_read("--batch-size", 5)  # no metric of zero-shot depends on it
    (colours / "classnames.txt").write_text("blue\ngreen\nred\n")
    assert not is_read()
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"versions": record["versions"] | {"torch": "1.0"}}))
    assert not is_read()
    file.write_text(json.dumps(record)[:-5])
    assert not is_read()
    file.with_suffix(".outcomes.npz").unlink()
    assert not is_read()
    with monkeypatch.context() as patch:  # a stop between the two files of another setting
        patch.setattr(
            "openclip_superclip.lab.evaluation.evaluate.write_json", lambda *_, **__: 1 / 0
        )
        assert [evaluate(*argv, "--precision", "amp"), num_read(capsys)] == [1, 0]
    assert not is_read()
    torch.save(weights | {"logit_scale": weights["logit_scale"] + 1}, tmp_path / "weights.pt")
    assert not is_read()
    assert is_read()
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


def test_models_of_the_same_name_have_separate_results(runs, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["A/run/checkpoints/epoch_1.pt", "B/run/checkpoints/epoch_1.pt"]
    for path, source in zip(given, ["clip", "superclip"], strict=True):
        shutil.copytree(
            runs / source, Path(path).parents[1], ignore=shutil.ignore_patterns("evaluation")
        )
    flags = ["--data", data, "--datasets", "own/colours", "--suite", "zeroshot", "--out", "out"]
    assert evaluate(given[0], *flags) == 0
    capsys.readouterr()
    assert evaluate(*given, *flags) == 0
    printed = capsys.readouterr().out
    assert "2 results, 1 of them from before" in printed
    assert printed.startswith(f"| % | {' | '.join(given)} |\n")


def test_every_checkpoint_of_a_run_is_measured_in_order_of_epochs(
    runs, data, tmp_path, monkeypatch, capsys
):
    shutil.copytree(
        runs / "clip", run := tmp_path / "run", ignore=shutil.ignore_patterns("evaluation")
    )
    for epoch in (2, 10):
        content = torch.load(run / "checkpoints" / "epoch_1.pt")
        content["epoch"] = epoch
        content["state_dict"]["visual.proj"] *= epoch
        torch.save(content, run / "checkpoints" / f"epoch_{epoch}.pt")
    shutil.copy(run / "checkpoints" / "epoch_2.pt", run / "checkpoints" / "epoch_latest.pt")
    digest, argv, walked = (
        Data.files_id,
        [run, "--every", "--data", data, "--datasets", "own/colours"],
        [],
    )
    monkeypatch.setattr(Data, "files_id", lambda one: walked.append(one) or digest(one))
    assert (evaluate(*argv), len(walked)) == (0, 1)
    assert capsys.readouterr().out.startswith("| % | run/epoch_1 | run/epoch_2 | run/epoch_10 |\n")
    monkeypatch.chdir(run / "checkpoints")
    assert [evaluate("epoch_1.pt", *argv[2:]), num_read(capsys)] == [0, 1]
    Path("epoch_10.pt").rename(tmp_path / "archived.pt")
    Path("epoch_10.pt").symlink_to(tmp_path / "archived.pt")
    assert evaluate(*argv) == 0
    assert num_read(capsys) == 3
    assert read_scores(run)[1] == 10
    Path("epoch_1.pt").write_bytes(b"no checkpoint")
    Path("epoch_2.pt").unlink()
    Path("epoch_2.pt").symlink_to("/proc/self/mem")  # an input/output error
    assert evaluate(*argv) == 1
    output = capsys.readouterr()
    assert "1 results, 1 of them from before" in output.out
    assert re.findall(r"error: .*/(\w+)\.pt cannot be read: ", output.err) == ["epoch_1", "epoch_2"]


# What fails costs no other result


FAULTS = {  # of a data set: a file, its text, and the error
    "no-place": (
        "zeroshot_classification_templates.txt",
        "a {c}\nthe thing\n",
        "line 2 is 'the thing'; expected {c}",
    ),
    "few-names": (
        "classnames.txt",
        "red\ngreen",
        "it contains the label 2, but there are 2 class names",
    ),
    "nameless": ("classnames.txt", None, "Classes not specified"),
    "no-number": (
        "test/nshards.txt",
        "two\n",
        "nshards.txt is 'two'; expected the number of shards",
    ),
    "gone": ("test/0.tar", None, "gone/test/0.tar"),
    "no-tar": ("test/0.tar", "text", "0.tar is not a complete, uncompressed tar file"),
}


def test_a_broken_data_set_or_one_that_would_score_nonsense_is_named(runs, tmp_path, capsys):
    names = [*FAULTS, "empty", "broken", "whole"]
    for name in names:
        write_colours(tmp_path / "data" / name)
    for name, (file, text, _) in FAULTS.items():
        if text is None:
            (tmp_path / "data" / name / file).unlink()
        else:
            (tmp_path / "data" / name / file).write_text(text)
    with webdataset.TarWriter(str(tmp_path / "data" / "empty" / "test" / "0.tar")):
        pass
    with webdataset.TarWriter(str(tmp_path / "data" / "broken" / "test" / "0.tar")) as tar:
        tar.write({"__key__": "0", "png": Image.new("RGB", (8, 8)), "cls": 1})
        tar.write({"__key__": "1", "png": b"none", "cls": 1})
    assert (
        evaluate(
            runs / "export",
            "--data",
            tmp_path / "data",
            "--datasets",
            *names,
            "--out",
            tmp_path / "out",
        )
        == 1
    )
    assert {dataset for _, dataset, _ in records(tmp_path / "out")} == {"whole"}
    expected = {name: error for name, (_, _, error) in FAULTS.items()} | {
        "empty": "it contains no image"
    }
    expected["broken"] = "failed: " + str(
        tmp_path / "data/broken/test/0.tar, sample 1: cannot identify image file"
    )
    for line, (name, error) in zip(errors(capsys), expected.items(), strict=True):
        assert f"{name}) failed: " in line
        assert error in line


def test_a_model_of_nan_is_named(runs, data, tmp_path, capsys):
    shutil.copytree(runs / "export", tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "open_clip_model.safetensors")
    weights["visual.proj"][0] = float("nan")
    save_file(weights, tmp_path / "nan" / "open_clip_model.safetensors")
    argv = [
        tmp_path / "nan",
        runs / "export",
        "--data",
        data,
        "--datasets",
        "wds/flickr30k",
        "own/colours",
    ]
    assert evaluate(*argv, "--out", tmp_path / "out") == 1
    assert {model for model, _, _ in records(tmp_path / "out")} == {f"{runs}/export"}
    assert ["features of images are not finite" in error for error in errors(capsys)] == [
        True,
        True,
    ]


def test_data_sets_that_clip_benchmark_has_built_in_are_read_and_never_downloaded(
    runs, tmp_path, capsys
):
    for label in range(7):
        folder = tmp_path / "data" / "fer2013" / "test" / str(label)
        folder.mkdir(parents=True)
        Image.new("RGB", (48, 48), (30 * label, 255 - 30 * label, 100)).save(folder / "face.png")
    argv = [runs / "export", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    assert [evaluate(*argv), num_read(capsys)] == [0, 0]
    assert [evaluate(*argv), num_read(capsys)] == [0, 1]
    Image.new("RGB", (48, 48), "white").save(
        tmp_path / "data" / "fer2013" / "test" / "3" / "face.png"
    )
    for absent in ("flickr30k", "mnist"):
        (tmp_path / "data" / absent).mkdir()
    assert evaluate(*argv) == 1
    output = capsys.readouterr()
    # an image below the top folder has changed
    assert "1 results, 0 of them from before" in output.out
    (record,) = records(tmp_path / "out").values()
    assert record["dataset"] == "fer2013"
    assert record["metrics"]["acc1"] * 7 == pytest.approx(round(record["metrics"]["acc1"] * 7))
    assert re.findall(r"^error: .* on (\S+)", output.err, re.MULTILINE) == ["mnist", "flickr30k"]
    assert "CLIP_benchmark would have to get them" in output.err.splitlines()[-1]
    assert (
        list((tmp_path / "data" / "flickr30k").iterdir())
        == list((tmp_path / "data" / "mnist").iterdir())
        == []
    )


# Models


def test_released_weights_are_named_by_model_and_tag(
    tiny_model, data, tmp_path, monkeypatch, capsys
):
    """As OpenCLIP names them; here in a cache that a download would have left, and then in none."""
    weights = random_weights(tiny_model)
    (tmp_path / "tiny-ours.json").write_text(json.dumps(open_clip.get_model_config(tiny_model)))
    open_clip.add_model_config(tmp_path / "tiny-ours.json")
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    add_to_cache(tmp_path / "cache", "someone/model", tmp_path / "open_clip_model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    tags = {"ours": {"hf_hub": "someone/model/"}, "nowhere": {"hf_hub": "someone/else/"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-ours", tags)
    torch.save(weights, tmp_path / "weights.pt")
    argv = ["tiny-ours:ours", "tiny-ours:nowhere", tmp_path / "weights.pt", "--model", "tiny-ours"]
    assert (
        evaluate(*argv, "--data", data, "--datasets", "wds/flickr30k", "--out", tmp_path / "out")
        == 1
    )
    found = {
        model: record["metrics"] for (model, _, _), record in records(tmp_path / "out").items()
    }
    assert found.keys() == {"tiny-ours:ours", f"{tmp_path}/weights.pt"}
    assert found["tiny-ours:ours"] == found[f"{tmp_path}/weights.pt"]
    assert "error: tiny-ours:nowhere cannot be opened: " in capsys.readouterr().err


def test_hub_results_are_reused_until_the_next_commit(runs, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    config = json.loads((runs / "export/open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/model"
    read, names = [], ("tokenizer.json", "tokenizer_config.json", "open_clip_model.safetensors")
    for commit in "001":
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        files = [
            tmp_path / "open_clip_config.json",
            *(shutil.copy(runs / "export" / name, tmp_path) for name in names),
        ]
        add_to_cache(tmp_path / "cache", "someone/model", *map(Path, files), commit=commit * 40)
        assert (
            evaluate(
                "hf-hub:someone/model",
                "--data",
                data,
                "--datasets",
                "own/colours",
                "--out",
                tmp_path,
            )
            == 0
        )
        read.append(num_read(capsys))
    assert read == [0, 1, 0]


# What is refused

REFUSED = {
    "export --data nowhere": "--data: there is no folder nowhere",
    "export --data empty": (
        "--data: empty contains nothing for --suite zeroshot,retrieval; expected folders such as"
    ),
    "export --suite zeroshot,fly": "--suite: there is no suite 'fly'",
    "export --suite probe": (
        "data contains nothing for --suite probe; colours (probe: it has no train/)"
    ),
    "export --suite dense": (
        "colours (dense: it is of kind classification; see its dataset_type.txt)"
    ),
    "export --datasets birds": "--datasets: data contains no birds; it contains colours",
    "nowhere.pt": "CHECKPOINT is nowhere.pt: no file or folder",
    "hf-hub:someone/else": (
        "CHECKPOINT: hf-hub:someone/else has no readable open_clip_config.json ("
    ),
    "lone.pt": "--model is missing: the model of lone.pt is not recorded",
    "lone.pt --model ViT-B-32": "lone.pt does not match ViT-B-32: ",
    "hf": "hf is for transformers",
    "clip": "clip contains no weights: expected a run's checkpoint, clip/checkpoints/epoch_1.pt",
    "export --every": "--every: export has no checkpoints/epoch_N.pt",
    "export --model ViT-B-32": "--model has no effect with exported folders and released models",
    "export --batch-size 0": "--batch-size is 0",
    "export --device fly": "--device is fly, which torch cannot use here",
}


@pytest.fixture(scope="module")
def place(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("refused")
    write_colours(folder / "data" / "colours")
    for run in ("export", "clip"):
        (folder / run).symlink_to(runs / run)
    torch.save(
        torch.load(runs / "clip" / "checkpoints" / "epoch_1.pt")["state_dict"], folder / "lone.pt"
    )
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text("{}")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(("argv", "reason"), REFUSED.items(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(argv, reason, place, refused):
    data = [] if "--data " in argv else ["--data", "data"]
    datasets = [] if "--data" in argv else ["--datasets", "colours"]
    assert reason in refused(place, "evaluate", *argv.split(), *data, *datasets, "--workers", "0")
