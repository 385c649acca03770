"""superclip evaluate prints CLIP_benchmark's own numbers, keeps what it has, and tells what it could not do."""

import gzip
import importlib.util
import inspect
import json
import os
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
from PIL import Image
from safetensors.torch import load_file, save_file
from support.colour_shards import write_colours
from support.models import write_model
from support.released_models import add_to_cache, random_weights
from support.training_runs import run_ranks, superclip_train

from openclip_superclip.__main__ import main
from openclip_superclip.demo.data import write_evaluation_data
from openclip_superclip.demo.data import write_model as write_demo_model
from openclip_superclip.demo.scenes import NAMES, scenes, write_dense_scenes
from openclip_superclip.evaluation.suites import SUITES
from openclip_superclip.evaluation.tasks import evaluate_probe

NUM_SCENES = 120


def run(*argv) -> int:
    return main(["evaluate", *map(str, argv), "--device", "cpu", "--workers", "0"])


def records(folder: Path) -> dict[tuple[str, str, str], dict]:
    """The results in a folder by model, data set and task."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return {(record["model"], record["dataset"], record["task"]): record for record in found}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The demo's scenes under the names of two of the paper's data sets, and the colours under their own."""
    folder = tmp_path_factory.mktemp("data")
    written = write_evaluation_data(folder / "scenes", NUM_SCENES, num_probe_scenes=40)
    (folder / "sets" / "wds").mkdir(parents=True)
    (folder / "sets" / "imagenet1k").symlink_to(written["demo_objects"])
    (folder / "sets" / "wds" / "flickr30k").symlink_to(written["demo_scenes"])
    write_colours(folder / "sets" / "own" / "colours", ("test", "train", "val"))
    return folder / "sets"


@pytest.fixture(scope="module")
def runs(train_flags, tmp_path_factory) -> Path:
    """The folder of a CLIP run and a SuperCLIP run, one epoch each, and of the second's export."""
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in {"clip": [], "superclip": ["--superclip"]}.items():
        (trained,) = run_ranks(superclip_train, *train_flags, "--logs", ".", "--name", name, *flags, cwd=folder)
        assert trained.returncode == 0, trained.output[-3000:]
    assert main(["export", f"{folder}/superclip/checkpoints/epoch_1.pt", "--out", f"{folder}/export"]) == 0
    return folder


@pytest.fixture(scope="module")
def evaluated(runs, data) -> tuple[str, Path]:
    """What one call printed for both checkpoints and the export, and the folder from which it was called."""
    folder = runs / "called-from"
    folder.mkdir()
    models = [f"../{name}/checkpoints/epoch_1.pt" for name in ("clip", "superclip")]
    argv = ["evaluate", *models, "../export", "--data", data, "--device", "cpu", "--workers", "0"]
    command = [sys.executable, "-m", "openclip_superclip", *map(str, argv)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, folder


@pytest.mark.slow
def test_the_numbers_are_those_of_clip_benchmarks_own_command_line(evaluated, runs, data, tmp_path):
    (tmp_path / "root").mkdir()
    for name, place in {"imagenet1k": "imagenet1k", "flickr30k": "wds/flickr30k"}.items():
        (tmp_path / "root" / name).symlink_to(data / place)
    command = [
        Path(sys.executable).with_name("clip_benchmark"), "eval", "--pretrained_model", f"local-dir:{runs}/export,",
        "--dataset", "wds/imagenet1k", "wds/flickr30k", "--dataset_root", f"{tmp_path}/root/{{dataset}}",
        "--no_amp", "--recall_k", "1", "5", "--num_workers", "0", "--output", f"{tmp_path}/{{dataset}}.json",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ours = {dataset: record for (_, dataset, _), record in records(evaluated[1] / "evaluation").items()}
    assert ours.keys() == {"imagenet1k", "flickr30k"}
    for dataset, record in ours.items():
        theirs = json.loads((tmp_path / f"{dataset}.json").read_text())
        assert record["metrics"] == theirs["metrics"]
        assert record["task"] == theirs["task"]


def test_checkpoints_with_and_without_a_head_and_an_export_stand_side_by_side(evaluated, runs):
    printed, folder = evaluated
    superclip, clip = records(runs / "superclip" / "evaluation"), records(runs / "clip" / "evaluation")
    export = records(folder / "evaluation")
    for dataset, task in {"imagenet1k": "zeroshot_classification", "flickr30k": "zeroshot_retrieval"}.items():
        ours = superclip["superclip/epoch_1", dataset, task]
        assert ours["epoch"] == 1
        assert ours["checkpoint"] == "../superclip/checkpoints/epoch_1.pt"
        assert ours["metrics"] == export["../export", dataset, task]["metrics"]
        assert ours["metrics"] != clip["clip/epoch_1", dataset, task]["metrics"]
    assert printed.startswith("| % | clip/epoch_1 | superclip/epoch_1 | ../export |\n|---|---|---|---|\n")
    measured, _, ahead = printed.partition("| points |")
    assert re.findall(r"^\| (\S.*?) \|", measured, re.MULTILINE) == [
        "%", "IN-1k", "img→ret Flickr R@1", "txt→ret Flickr R@1", "img→ret Flickr R@5", "txt→ret Flickr R@5",
        "datacomp38 (2 of 38)",
    ]  # fmt: skip
    metrics = {dataset: record["metrics"] for (_, dataset, _), record in export.items()}
    retrieval = [metrics["flickr30k"][f"{side}_retrieval_recall@1"] for side in ("image", "text")]
    average = (metrics["imagenet1k"]["acc1"] + sum(retrieval) / 2) / 2
    row = measured.partition("| datacomp38 (2 of 38) |")[2].splitlines()[0]
    assert row.split("|")[2].split()[0] == f"{100 * average:.1f}"
    assert ahead.splitlines()[0] == " superclip/epoch_1 − clip/epoch_1 | ../export − clip/epoch_1 |"
    table = (folder / "evaluation" / "summary.md").read_text().splitlines()
    assert table[0] == "| % | ../export |"


def test_absent_data_sets_are_listed_and_others_told_of(evaluated):
    printed, _ = evaluated
    (line,) = [line for line in printed.splitlines() if line.startswith("Not evaluated: ")]
    absent = {f"{name} (zeroshot: not there)" for name in SUITES["zeroshot"][1] if name != "imagenet1k"}
    assert len(absent) == 37
    assert set(line.removeprefix("Not evaluated: ").split(", ")) == absent | {"mscoco_captions (retrieval: not there)"}
    assert "in no suite's list: own/colours; --datasets evaluates them" in printed


@torch.no_grad()
def test_zero_shot_accuracy_agrees_with_a_slow_plain_version(evaluated, runs):
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
    metrics = records(evaluated[1] / "evaluation")["../export", "imagenet1k", "zeroshot_classification"]["metrics"]
    assert metrics["acc1"] == pytest.approx(np.mean([rank < 1 for rank in ranks]))
    assert metrics["acc5"] == pytest.approx(np.mean([rank < 5 for rank in ranks]))


def test_the_linear_probe_finds_what_is_separable_and_few_classes_have_no_top_5(runs, data, tmp_path, capsys):
    argv = [runs / "export", "--data", data, "--datasets", "own/colours", "--suite", "zeroshot,retrieval,probe"]
    assert run(*argv, "--out", tmp_path, "--batch-size", "8") == 0
    found = {task: record["metrics"] for (_, _, task), record in records(tmp_path).items()}
    assert found.keys() == {"zeroshot_classification", "linear_probe"}
    assert found["zeroshot_classification"]["acc5"] is None
    assert found["linear_probe"]["lp_acc1"] == 1.0
    assert found["linear_probe"]["weight_decay"] == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| linear probe own/colours \| 100\.0 \[9\d\.\d, 100\.0\] \|", printed)
    assert "Not evaluated" not in printed


def test_the_probes_weight_decay_is_chosen_on_a_split_of_its_own(runs, data, tmp_path):
    argv = [runs / "export", "--data", data, "--datasets", "own/colours", "--suite", "probe", "--out", tmp_path]
    assert run(*argv, "--probe-val-split", "val", "--probe-epochs", "1", "--batch-size", "16") == 0
    (record,) = records(tmp_path).values()
    assert record["metrics"]["weight_decay"] > 0
    assert record["metrics"]["epochs"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_nearly_the_numbers_of_the_cpu(runs, data, tmp_path):
    argv = [f"{runs}/export", "--data", f"{data}", "--datasets", "own/colours", "--suite", "zeroshot,probe"]
    assert main(["evaluate", *argv, "--out", f"{tmp_path}/gpu", "--workers", "0"]) == 0
    assert run(*argv, "--out", tmp_path / "cpu") == 0
    gpu, cpu = records(tmp_path / "gpu"), records(tmp_path / "cpu")
    for key, measure in (("zeroshot_classification", "acc1"), ("linear_probe", "lp_acc1")):
        values = [found[f"{runs}/export", "own/colours", key]["metrics"][measure] for found in (gpu, cpu)]
        assert values[0] == pytest.approx(values[1], abs=0.1)


def test_the_probe_on_the_cpu_is_clip_benchmarks_own_to_the_last_digit(tmp_path):
    """Beside its source with the device's name exchanged."""
    from clip_benchmark.metrics import linear_probe

    source = inspect.getsource(linear_probe)
    for gpu, cpu in {"'cuda'": "'cpu'", ".cuda()": ".cpu()", "torch.cuda.device_count()": "0"}.items():
        assert gpu in source
        source = source.replace(gpu, cpu)
    own = {"__name__": linear_probe.__name__, "__package__": linear_probe.__package__}
    exec(compile(source, linear_probe.__file__, "exec"), own)
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.encode_image = torch.nn.Linear(12, 8)
    train, val, test = (
        torch.utils.data.DataLoader(list(zip(torch.randn(n, 12), torch.arange(n) % 7, strict=True)), batch_size=5)
        for n in (60, 20, 30)
    )
    for number, (amp, chosen_on) in enumerate([(False, None), (True, None), (False, val)]):
        metrics = []
        for evaluate in (own["evaluate"], evaluate_probe):
            torch.manual_seed(0)
            (folder := tmp_path / f"{number}-{len(metrics)}").mkdir()
            options = {"feature_root": str(folder), "val_dataloader": chosen_on, "amp": amp, "device": "cpu", "seed": 0}
            options |= {"fewshot_k": -1, "batch_size": 8, "num_workers": 0, "lr": 0.1, "epochs": 1, "model_id": "x"}
            metrics.append(evaluate(model, train, test, normalize=True, **options))
        assert metrics[0] == metrics[1]
    assert inspect.isclass(torch.nn.DataParallel)
    assert inspect.isclass(torch.autocast)


# What is kept


def test_a_result_is_read_again_until_something_that_it_depends_on_has_changed(runs, tmp_path, capsys):
    sets = write_colours(tmp_path / "data" / "colours").parent
    shutil.copytree(runs / "clip", tmp_path / "clip")

    def evaluate(*flags) -> int:
        """Returns how many results were read."""
        argv = [
            tmp_path / "clip" / "checkpoints" / "epoch_1.pt",
            "--data",
            sets,
            "--datasets",
            "colours",
            "--suite",
            "zeroshot",
            "--out",
            tmp_path / "out",
        ]
        assert run(*argv, *flags) == 0
        (read,) = re.findall(r"(\d) of them from before", capsys.readouterr().out)
        return int(read)

    assert evaluate() == 0
    (file,) = (tmp_path / "out").glob("*.json")
    written = file.read_bytes()
    assert evaluate() == 1
    assert file.read_bytes() == written
    assert evaluate("--precision", "amp") == 0
    assert evaluate() == 0
    assert evaluate("--batch-size", 5) == 1  # no metric of zero-shot depends on it
    (sets / "colours" / "classnames.txt").write_text("blue\ngreen\nred\n")
    assert evaluate() == 0
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"versions": record["versions"] | {"torch": "1.0"}}))
    assert evaluate() == 0
    file.write_text(json.dumps(record)[:-5])
    assert evaluate() == 0
    checkpoint = torch.load(tmp_path / "clip" / "checkpoints" / "epoch_1.pt", weights_only=True)
    checkpoint["state_dict"]["logit_scale"] += 1
    torch.save(checkpoint, tmp_path / "clip" / "checkpoints" / "epoch_1.pt")
    assert evaluate() == 0
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


def num_read(capsys) -> int:
    (read,) = re.findall(r"(\d) of them from before", capsys.readouterr().out)
    return int(read)


def test_a_changed_picture_below_the_top_folder_is_evaluated_anew(runs, tmp_path, capsys):
    for label in range(7):
        folder = tmp_path / "data" / "fer2013" / "test" / str(label)
        folder.mkdir(parents=True)
        Image.new("RGB", (48, 48), (30 * label, 255 - 30 * label, 100)).save(folder / "face.png")
    argv = [runs / "export", "--data", tmp_path / "data", "--suite", "zeroshot", "--out", tmp_path / "out"]
    assert [run(*argv), num_read(capsys)] == [0, 0]
    assert [run(*argv), num_read(capsys)] == [0, 1]
    Image.new("RGB", (48, 48), "white").save(tmp_path / "data" / "fer2013" / "test" / "3" / "face.png")
    assert [run(*argv), num_read(capsys)] == [0, 0]


def test_a_changed_vocabulary_of_the_tokenizer_is_evaluated_anew(tmp_path, capsys):
    write_colours(tmp_path / "data" / "colours")
    model = write_demo_model(tmp_path / "model")
    torch.save(random_weights(model), tmp_path / "weights.pt")
    argv = [tmp_path / "weights.pt", "--model", model, "--data", tmp_path / "data", "--datasets", "colours"]
    argv += ["--suite", "zeroshot", "--out", tmp_path / "out"]
    assert [run(*argv), num_read(capsys)] == [0, 0]
    assert [run(*argv), num_read(capsys)] == [0, 1]
    vocabulary = tmp_path / "model" / "bpe.txt.gz"
    comment, *merges = gzip.decompress(vocabulary.read_bytes()).splitlines()
    vocabulary.write_bytes(gzip.compress(b"\n".join([comment, *reversed(merges)])))
    assert [run(*argv), num_read(capsys)] == [0, 0]


def test_models_of_one_name_keep_a_result_each(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_colours(tmp_path / "data" / "colours")
    given = ["A/run/checkpoints/epoch_1.pt", "B/run/checkpoints/epoch_1.pt", "x/y", "x-y"]
    for path, source in zip(given, ["clip", "superclip", "export", "export"], strict=True):
        place = Path(path).parents[1] if path.endswith(".pt") else Path(path)
        shutil.copytree(runs / source, place)
    flags = ["--data", "data", "--datasets", "colours", "--suite", "zeroshot", "--out", "out"]
    for path in given:
        assert run(path, *flags) == 0
    assert len(list(Path("out").glob("*.json"))) == 4
    heads = Path("out/summary.md").read_text().splitlines()[0]
    assert heads == "| % | A/run/checkpoints/epoch_1.pt | B/run/checkpoints/epoch_1.pt | x-y | x/y |"
    capsys.readouterr()
    assert run(*given, *flags) == 0
    printed = capsys.readouterr().out
    assert "4 results, 4 of them from before" in printed
    assert printed.startswith(f"| % | {' | '.join(given)} |\n")


def test_a_broken_data_set_is_named_and_the_others_results_are_kept(runs, tmp_path, capsys):
    for name in ("a-cut", "b-gone", "c-uncounted", "d-nameless", "e-whole"):
        write_colours(tmp_path / "data" / name)
    shard = tmp_path / "data" / "a-cut" / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    (tmp_path / "data" / "b-gone" / "test" / "0.tar").unlink()
    (tmp_path / "data" / "c-uncounted" / "test" / "nshards.txt").unlink()
    (tmp_path / "data" / "d-nameless" / "classnames.txt").unlink()
    names = [path.name for path in (tmp_path / "data").iterdir()]
    assert run(runs / "export", "--data", tmp_path / "data", "--datasets", *names, "--out", tmp_path / "out") == 1
    assert [dataset for _, dataset, _ in records(tmp_path / "out")] == ["e-whole"]
    output = capsys.readouterr()
    assert "| e-whole |" in output.out
    errors = {line.split()[4]: line for line in output.err.splitlines() if line.startswith("error: ")}
    assert errors.keys() == {"a-cut", "b-gone", "c-uncounted", "d-nameless"}
    assert "b-gone/test/0.tar" in errors["b-gone"]
    assert "nshards.txt" in errors["c-uncounted"]
    assert "Classes not specified" in errors["d-nameless"]


NONSENSE = {
    "no-place": "line 2 is 'the thing'; expected {c}",
    "blank": "line 2 is ''; expected {c}",
    "other-braces": "line 1 is 'a {c} in {place}'; expected {c}",
    "no-template": "templates.txt is empty",
    "few-names": "it holds the label 2, but there are 2 class names",
    "no-name": "classnames.txt: line 2 is empty",
    "left-out": "nshards.txt says 1, which leaves out 1.tar",
    "no-number": "nshards.txt is 'two'; expected the number of shards",
    "empty": "it holds no picture",
}


def test_what_would_score_nonsense_is_named_and_the_others_results_are_kept(runs, tmp_path, capsys):
    for name in [*NONSENSE, "whole"]:
        write_colours(tmp_path / "data" / name)
    for name, template in {
        "no-place": "a {c}\nthe thing\n", "blank": "a {c}\n\n", "other-braces": "a {c} in {place}", "no-template": "",
    }.items():  # fmt: skip
        (tmp_path / "data" / name / "zeroshot_classification_templates.txt").write_text(template)
    (tmp_path / "data" / "few-names" / "classnames.txt").write_text("red\ngreen")
    (tmp_path / "data" / "no-name" / "classnames.txt").write_text("red\n\nblue")
    shard = tmp_path / "data" / "left-out" / "test" / "0.tar"
    shutil.copy(shard, shard.with_name("1.tar"))
    (tmp_path / "data" / "no-number" / "test" / "nshards.txt").write_text("two\n")
    with webdataset.TarWriter(str(tmp_path / "data" / "empty" / "test" / "0.tar")):
        pass
    argv = [runs / "export", "--data", tmp_path / "data", "--datasets", *NONSENSE, "whole", "--out", tmp_path / "out"]
    assert run(*argv) == 1
    assert [dataset for _, dataset, _ in records(tmp_path / "out")] == ["whole"]
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(NONSENSE)
    for error, (name, reason) in zip(errors, NONSENSE.items(), strict=True):
        assert f"{name}) failed: " in error
        assert reason in error


def test_a_probe_is_not_scored_on_labels_that_it_has_not_been_fitted_to(runs, tmp_path, capsys):
    colours = write_colours(tmp_path / "data" / "colours", ("test", "train"))
    with webdataset.TarWriter(str(colours / "train" / "0.tar")) as tar:
        for index in range(8):
            tar.write({"__key__": str(index), "png": Image.new("RGB", (32, 32)), "cls": index % 2})
    argv = [runs / "export", "--data", tmp_path / "data", "--datasets", "colours", "--suite", "probe"]
    assert run(*argv, "--out", tmp_path / "out") == 1
    assert "test holds the label 2" in capsys.readouterr().err
    assert not records(tmp_path / "out")


def test_a_model_of_nan_is_named_and_the_others_results_are_kept(runs, data, tmp_path, capsys):
    (tmp_path / "nan").mkdir()
    for file in (runs / "export").iterdir():
        shutil.copy(file, tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "open_clip_model.safetensors")
    weights["visual.proj"][0] = float("nan")
    save_file(weights, tmp_path / "nan" / "open_clip_model.safetensors")
    argv = [tmp_path / "nan", runs / "export", "--data", data, "--datasets", "wds/flickr30k", "own/colours"]
    assert run(*argv, "--suite", "zeroshot,retrieval,probe", "--out", tmp_path / "out") == 1
    assert {model for model, _, _ in records(tmp_path / "out")} == {f"{runs}/export"}
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert all("features of pictures are not finite" in error for error in errors)


# What it opens


def test_released_weights_are_named_by_model_and_tag(data, tmp_path, monkeypatch, capsys):
    """As OpenCLIP names them; here out of a cache that a download would have left, and then out of none."""
    model = write_model(tmp_path / "tiny")
    weights = random_weights(model)
    config = json.loads((tmp_path / "tiny" / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-ours.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-ours.json")
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    add_to_cache(tmp_path / "cache", "someone/model", tmp_path / "open_clip_model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    tags = {"ours": {"hf_hub": "someone/model/"}, "nowhere": {"hf_hub": "someone/else/"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-ours", tags)
    torch.save(weights, tmp_path / "weights.pt")
    argv = ["tiny-ours:ours", "tiny-ours:nowhere", tmp_path / "weights.pt", "--model", "tiny-ours"]
    assert run(*argv, "--data", data, "--datasets", "wds/flickr30k", "--out", tmp_path / "out") == 1
    found = {model: record["metrics"] for (model, _, _), record in records(tmp_path / "out").items()}
    assert found.keys() == {"tiny-ours:ours", f"{tmp_path}/weights.pt"}
    assert found["tiny-ours:ours"] == found[f"{tmp_path}/weights.pt"]
    assert "error: tiny-ours:nowhere cannot be opened: " in capsys.readouterr().err


def test_data_sets_that_clip_benchmark_has_built_in_are_read_and_never_downloaded(runs, tmp_path, capsys):
    for label in range(7):
        folder = tmp_path / "data" / "fer2013" / "test" / str(label)
        folder.mkdir(parents=True)
        Image.new("RGB", (48, 48), (30 * label, 255 - 30 * label, 100)).save(folder / "face.png")
    (tmp_path / "data" / "flickr30k").mkdir()
    (tmp_path / "data" / "mnist").mkdir()
    assert run(runs / "export", "--data", tmp_path / "data", "--out", tmp_path / "out") == 1
    (record,) = records(tmp_path / "out").values()
    assert record["dataset"] == "fer2013"
    assert record["metrics"]["acc1"] * 7 == pytest.approx(round(record["metrics"]["acc1"] * 7))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [re.search(r" on (\S+)", error)[1] for error in errors] == ["mnist", "flickr30k"]
    assert "CLIP_benchmark would have to get them" in errors[1]
    assert list((tmp_path / "data" / "flickr30k").iterdir()) == list((tmp_path / "data" / "mnist").iterdir()) == []


def test_a_relative_model_lies_where_the_run_was_trained(train_flags, tmp_path, monkeypatch, capsys):
    """Another model of that name lies where the evaluation is called."""
    trained_in, elsewhere = tmp_path / "there", tmp_path / "here"
    write_model(trained_in / "model", text={"vocab_size": 49408})
    write_model(elsewhere / "model", vision={"image_size": 64})
    flags = [*train_flags, "--model", "local-dir:model", "--logs", "logs"]
    (trained,) = run_ranks(superclip_train, *flags, cwd=trained_in)
    assert trained.returncode == 0, trained.output[-3000:]
    write_colours(tmp_path / "data" / "colours")
    monkeypatch.chdir(elsewhere)
    argv = ["--data", tmp_path / "data", "--datasets", "colours", "--suite", "zeroshot"]
    checkpoint = "../there/logs/run/checkpoints/epoch_1.pt"
    assert run(checkpoint, *argv) == 0
    shutil.copytree(trained_in / "logs" / "run", tmp_path / "copy")
    capsys.readouterr()
    assert run(tmp_path / "copy" / "checkpoints" / "epoch_1.pt", *argv) == 1
    assert "--model: " in (error := capsys.readouterr().err)
    assert "was trained with --model local-dir:model, in an unknown folder" in error
    (tmp_path / "copy" / "run.json").write_text(json.dumps({"cwd": str(trained_in)}))
    assert run(tmp_path / "copy" / "checkpoints" / "epoch_1.pt", *argv) == 0
    shutil.rmtree(trained_in / "model")
    capsys.readouterr()
    assert run(checkpoint, *argv) == 1
    assert f"which is no longer in {trained_in}: give --model local-dir:FOLDER" in capsys.readouterr().err
    assert run(checkpoint, *argv, "--model", f"local-dir:{elsewhere}/model") == 1  # of another size


# What is refused


def test_help_needs_no_torch():
    program = "import sys; from openclip_superclip.__main__ import main\ntry: main(['evaluate', '--help'])\n"
    program += "except SystemExit: sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--suite" in done.stdout


@pytest.mark.parametrize("package", ["clip_benchmark", "requests"])
def test_a_missing_extra_is_named(package, runs, data, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    assert run(runs / "export", "--data", data) == 1
    error = capsys.readouterr().err
    assert "[eval]" in error
    assert package in error
    assert error.count("\n") == 1


REFUSED = {
    "export --data nowhere": "--data: there is no folder nowhere",
    "export --data empty": "--data: empty holds nothing for --suite zeroshot,retrieval; expected folders such as",
    "export --data data --suite zeroshot,fly": "--suite: there is no suite 'fly'",
    "export --data data --datasets birds": "--datasets: data holds no birds; it holds colours",
    "export --data data --datasets colours --suite retrieval": "--suite retrieval measures nothing of data: colours",
    "export --data data --datasets colours --suite probe": "nothing for --suite probe",
    "nowhere.pt --data data --datasets colours": "CHECKPOINT is nowhere.pt: no file or folder",
    "nowhere.pt --data data --datasets colours --model ViT-B-32": "CHECKPOINT is nowhere.pt: no file or folder",
    "ViT-B-32:fly --data data --datasets colours": "CHECKPOINT is ViT-B-32:fly",
    "text.pt --data data --datasets colours": "text.pt cannot be read",
    "lone.pt --data data --datasets colours": "--model: nothing beside lone.pt says what model it is",
    "lone.pt --data data --datasets colours --model ViT-B-32": "lone.pt does not match ViT-B-32: ",
    "hf --data data --datasets colours": "hf is for transformers",
    "export --data data --datasets colours --out text.pt/out": "--out: text.pt/out cannot be written",
    "export --data data --datasets colours --batch-size 0": "--batch-size is 0",
    "export --data data --datasets colours --probe-lr nan": "--probe-lr is nan",
    "export --data data --datasets colours --model ViT-B-32": "--model is ViT-B-32, but export says what model it is",
}


@pytest.mark.parametrize(("argv", "reason"), REFUSED.items(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line_before_anything_is_written(argv, reason, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_colours(tmp_path / "data" / "colours")
    (tmp_path / "export").symlink_to(runs / "export")
    (tmp_path / "lone.pt").symlink_to(runs / "clip" / "checkpoints" / "epoch_1.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run(*argv.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert reason in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_gpu_that_is_not_there_is_refused(runs, data, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["evaluate", f"{runs}/export", "--data", str(data), "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "error: --device: there is no GPU here; give --device cpu\n"


# The demo's scenes


def test_the_demo_writes_its_scenes_once_and_into_no_folder_of_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(write_evaluation_data, "__defaults__", (20, 10, 0))
    monkeypatch.setattr(write_dense_scenes, "__defaults__", (3, 4, 0))
    assert main(["demo", "--write-evaluation", str(tmp_path / "scenes")]) == 0
    assert "--datasets demo_objects demo_scenes" in capsys.readouterr().out
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "scenes").rglob("*.*")}
    assert [len(list((tmp_path / "scenes").rglob(name))) for name in ("*.tar", "*.png")] == [3, 4 * 7]
    assert main(["demo", "--write-evaluation", str(tmp_path / "scenes")]) == 0
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "scenes").rglob("*.*")}
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "notes.txt").touch()
    capsys.readouterr()
    assert main(["demo", "--write-evaluation", str(tmp_path / "others")]) == 1
    assert "others holds something else" in capsys.readouterr().err
    assert os.listdir(tmp_path / "others") == ["notes.txt"]
