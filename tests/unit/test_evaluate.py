"""superclip evaluate: scores equal CLIP_benchmark's, results are reused,
and bad models and data sets are named."""

import inspect
import json
import re
import shutil
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import cases, parametrize, read_json, refusals, succeed, table, write_json
from support.data import write_colours, write_scenes, write_tar
from support.evaluation import errors, evaluate, num_reused, records
from support.models import random_weights
from support.training_runs import execute, run_ranks

from openclip_superclip import create_model_and_transforms
from openclip_superclip.evaluation.features import EvaluationSettings, Features
from openclip_superclip.evaluation.metrics import linear_probe_metrics
from openclip_superclip.evaluation.model_scores import find_scores
from openclip_superclip.evaluation.models import find_model

NUM_SCENES = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The demo's scenes under the names of two of the paper's data sets,
    and the colours under their own."""
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder / "scenes", NUM_SCENES)
    (folder / "sets/wds").mkdir(parents=True)
    (folder / "sets/imagenet1k").symlink_to(folder / "scenes/objects")
    (folder / "sets/wds/flickr30k").symlink_to(folder / "scenes/groups")
    write_colours(folder / "sets/own/colours", ("test", "train"))
    return folder / "sets"


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    """The folder of a CLIP run and a SuperCLIP run, and of the second's
    export."""
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
            folder / name / "checkpoints/epoch_1.pt",
        )
    execute(f"export {folder}/superclip/checkpoints/epoch_1.pt --out {folder}/export")
    return folder


@pytest.fixture(scope="module")
def evaluated(runs, data):
    """What one call printed for both checkpoints and the export, and the
    folder from which it was called."""
    folder = runs / "called-from"
    folder.mkdir()
    models = [f"../{name}/checkpoints/epoch_1.pt" for name in ("clip", "superclip")]
    (done,) = run_ranks(evaluate, *models, "../export", "--data", data, cwd=folder)
    assert done.returncode == 0, done.output[-3000:]
    return done.output, folder


@pytest.mark.slow
def test_the_scores_are_those_of_clip_benchmarks_own_command_line(evaluated, runs, data, tmp_path):
    (tmp_path / "root").mkdir()
    for name, place in {"imagenet1k": "imagenet1k", "flickr30k": "wds/flickr30k"}.items():
        (tmp_path / "root" / name).symlink_to(data / place)
    command = (
        f"{Path(sys.executable).with_name('clip_benchmark')} eval --pretrained_model "
        f"local-dir:{runs}/export, --dataset wds/imagenet1k wds/flickr30k --dataset_root "
        f"{tmp_path}/root/{{dataset}} --no_amp --recall_k 1 --num_workers 0 --output "
        f"{tmp_path}/{{dataset}}.json"
    )
    succeed(command.split(), timeout=300)
    ours = {
        dataset: record for (_, dataset, _), record in records(evaluated[1] / "evaluation").items()
    }
    assert ours.keys() == {"imagenet1k", "flickr30k"}
    for dataset, record in ours.items():
        theirs = read_json(tmp_path / f"{dataset}.json")
        assert record["metrics"] == theirs["metrics"]
        assert record["task"] == theirs["task"]


def test_the_linear_probe_finds_what_is_separable_and_few_classes_have_no_top_5(
    runs, data, tmp_path, capsys
):
    flags = "--datasets own/colours --batch-size 8 --suite zeroshot,retrieval,probe"
    assert evaluate(f"{runs}/export --data {data} --out {tmp_path} {flags}") == 0
    found = {task: record["metrics"] for (_, _, task), record in records(tmp_path).items()}
    assert found.keys() == {"zeroshot_classification", "linear_probe"}
    assert found["zeroshot_classification"]["acc5"] is None
    assert found["linear_probe"]["lp_acc1"] == 1.0
    printed = capsys.readouterr()
    assert re.search(r"\| own/colours linear probe \| 100\.0 \[9\d\.\d, 100\.0\] \|\n", printed.out)
    assert "not evaluated" not in printed.err


@parametrize("amp", [False, True])
def test_the_probe_is_clip_benchmarks_own_to_the_last_digit(amp, tmp_path):
    """Beside its source, with the CPU instead of the GPU that it
    demands."""
    from clip_benchmark.metrics import linear_probe

    source = inspect.getsource(linear_probe)
    of_cpu = {"'cuda'": "'cpu'", ".cuda()": ".cpu()", "torch.cuda.device_count()": "0"}
    for gpu, cpu in of_cpu.items():
        assert gpu in source
        source = source.replace(gpu, cpu)
    own = {"__name__": linear_probe.__name__, "__package__": linear_probe.__package__}
    exec(compile(source, linear_probe.__file__, "exec"), own)
    torch.manual_seed(0)
    train, test = (Features(torch.randn(n, 12), torch.arange(n) % 7) for n in (60, 30))
    model = torch.nn.Module()
    model.encode_image = torch.nn.Identity()
    loaders = [[*zip(*(x.split(5) for x in part), strict=True)] for part in (train, test)]
    torch.manual_seed(0)
    theirs = own["evaluate"](
        model,
        *loaders,
        fewshot_k=-1,
        batch_size=8,
        num_workers=0,
        lr=0.1,
        epochs=2,
        model_id="x",
        feature_root=str(tmp_path),
        amp=amp,
        device="cpu",
        normalize=True,
        seed=0,
    )
    torch.manual_seed(0)
    precision = "amp" if amp else "fp32"
    settings = EvaluationSettings("cpu", precision, 8, 0, 0.1, 2)
    ours, num_outcomes = linear_probe_metrics(train, test, settings)
    assert ours["lp_acc1"] == theirs["lp_acc1"]
    assert num_outcomes == {"lp_acc1": 30}


def test_checkpoints_with_and_without_a_head_and_an_export_are_compared_side_by_side(
    evaluated, runs
):
    printed, folder = evaluated
    superclip = records(runs / "superclip/evaluation")
    clip = records(runs / "clip/evaluation")
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
    rows = [line.split(" | ")[0] for line in printed.splitlines() if line.startswith("| ")]
    assert rows == ["| %", "| clip/epoch_1", "| superclip/epoch_1", "| ../export"]
    (line,) = [line for line in printed.splitlines() if line.startswith("not evaluated: ")]
    assert "mscoco_captions (retrieval: not found)" in line


# Results are reused


def test_a_result_is_reused_until_something_that_it_depends_on_has_changed(
    tiny_model, tmp_path, capsys
):
    colours = write_colours(tmp_path / "data/colours")
    weights = random_weights(tiny_model)
    torch.save(weights, tmp_path / "weights.pt")
    argv = (
        f"{tmp_path}/weights.pt --model {tiny_model} --data {tmp_path}/data --datasets colours "
        f"--suite zeroshot --out {tmp_path}/out"
    )

    def is_read(flags=""):
        assert evaluate(f"{argv} {flags}") == 0
        return num_reused(capsys) == 1

    read = {"the first call": is_read()}
    (file,) = (tmp_path / "out").glob("*.*.json")
    record = read_json(file)
    read["the same call"] = is_read()
    read["another batch size, on which no metric depends"] = is_read("--batch-size 5")
    read["another precision"] = is_read("--precision amp")
    (colours / "classnames.txt").write_text("blue\ngreen\nred\n")
    read["other class names"] = is_read()
    write_json(file, read_json(file) | {"versions": {"torch": "1.0"}})
    read["another version"] = is_read()
    file.write_text(json.dumps(record)[:-5])
    read["a cut record"] = is_read()
    torch.save(weights | {"logit_scale": weights["logit_scale"] + 1}, tmp_path / "weights.pt")
    read["other weights"] = is_read()
    read["the last call"] = is_read()
    reused = ("the same call", "another batch size, on which no metric depends", "the last call")
    assert read == {name: name in reused for name in read}
    assert len(list((tmp_path / "out").glob("*.*.json"))) == 1


def test_the_checkpoints_of_a_run_are_measured_and_its_last_result_is_the_runs(
    runs, data, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    shutil.copytree(runs / "clip", run, ignore=shutil.ignore_patterns("evaluation"))
    content = torch.load(run / "checkpoints/epoch_1.pt")
    for epoch in (2, 10):
        torch.save(content | {"epoch": epoch}, run / f"checkpoints/epoch_{epoch}.pt")
    flags = f"--data {data} --datasets own/colours --out {tmp_path}/out"
    monkeypatch.chdir(run / "checkpoints")
    assert evaluate(f"epoch_1.pt epoch_2.pt epoch_10.pt {flags}") == 0
    assert capsys.readouterr().out.startswith("| % | own/colours zero shot |\n")
    assert [row["name"] for row in read_json(tmp_path / "out/scores.json")["rows"]] == [
        "run/epoch_1",
        "run/epoch_2",
        "run/epoch_10",
    ]
    assert [evaluate(f"epoch_1.pt {flags}"), num_reused(capsys)] == [0, 1]
    assert find_scores(str(run), tmp_path).epoch == 10
    assert find_scores("epoch_2.pt", tmp_path).scores
    torch.save(content, "epoch_10.pt")  # as if trained again
    assert find_scores(str(run), tmp_path).epoch == 2
    assert not find_scores("epoch_10.pt", tmp_path).scores
    Path("epoch_2.pt").unlink()
    assert find_scores(str(run), tmp_path).epoch == 2
    execute("export epoch_1.pt --out exported")
    assert evaluate(f"exported {flags}") == 0
    assert find_scores("exported", tmp_path).scores
    content["state_dict"]["logit_scale"] += 1
    torch.save(content, "epoch_10.pt")
    execute("export epoch_10.pt --out exported --overwrite")
    assert not find_scores("exported", tmp_path).scores
    for file in (run / "evaluation").glob("*exported*.json"):
        write_json(file, read_json(file) | {"source_id": None})  # of an earlier version
    assert find_scores("exported", tmp_path).scores
    Path("epoch_2.pt").symlink_to("/proc/self/mem")  # an input/output error
    assert evaluate(f"epoch_2.pt {flags}") == 1
    assert "error: epoch_2.pt cannot be read: " in capsys.readouterr().err


# What fails costs no other result


FAULTS = table("shards_and_tables: faults of data sets")


def test_a_broken_data_set_or_one_that_would_score_nonsense_is_named(runs, tmp_path, capsys):
    for name in (*FAULTS, "broken", "whole"):
        write_colours(tmp_path / "data" / name)
    for name, (file, text, _) in FAULTS.items():
        (tmp_path / "data" / name / file).unlink()
        if text is not None:
            (tmp_path / "data" / name / file).write_text(text)
    samples = [{"__key__": "0", "png": Image.new("RGB", (8, 8)), "cls": 1}]
    samples.append({"__key__": "1", "png": b"none", "cls": 1})
    write_tar(tmp_path / "data/broken/test/0.tar", samples)
    argv = f"{runs}/export --data {tmp_path}/data --out {tmp_path}/out --datasets"
    assert evaluate(argv, *FAULTS, "broken", "whole") == 1
    assert {dataset for _, dataset, _ in records(tmp_path / "out")} == {"whole"}
    expected = {name: error for name, (_, _, error) in FAULTS.items()}
    expected["broken"] = "cannot identify image file"
    for line, (name, error) in zip(errors(capsys), expected.items(), strict=True):
        assert f"{name}) failed: " in line and error in line


def test_a_model_of_nan_is_named(runs, data, tmp_path, capsys):
    shutil.copytree(runs / "export", tmp_path / "nan")
    weights = load_file(tmp_path / "nan/open_clip_model.safetensors")
    weights["visual.proj"][0] = float("nan")
    save_file(weights, tmp_path / "nan/open_clip_model.safetensors")
    models, datasets = f"{tmp_path}/nan {runs}/export", "wds/flickr30k own/colours"
    assert evaluate(f"{models} --data {data} --datasets {datasets} --out {tmp_path}/out") == 1
    assert {model for model, _, _ in records(tmp_path / "out")} == {f"{runs}/export"}
    assert ["features of images are not finite" in error for error in errors(capsys)] == [
        True,
        True,
    ]


def test_data_sets_that_clip_benchmark_has_built_in_are_read_and_never_downloaded(
    runs, tmp_path, capsys
):
    for label in range(7):
        folder = tmp_path / f"data/fer2013/test/{label}"
        folder.mkdir(parents=True)
        Image.new("RGB", (48, 48), (30 * label, 255 - 30 * label, 100)).save(folder / "face.png")
    for absent in ("flickr30k", "mnist"):
        (tmp_path / "data" / absent).mkdir()
    assert evaluate(runs / "export", "--data", tmp_path / "data", "--out", tmp_path / "out") == 1
    (record,) = records(tmp_path / "out").values()
    assert record["dataset"] == "fer2013"
    failed = errors(capsys)
    assert [line.split(" on ")[1].split()[0] for line in failed] == ["mnist", "flickr30k"]
    assert "CLIP_benchmark would have to get them" in failed[-1]
    assert not [*tmp_path.glob("data/flickr30k/*"), *tmp_path.glob("data/mnist/*")]


# Models


@parametrize("tag, model", [("openai", "ViT-B-32-quickgelu"), ("laion2b_e16", "ViT-B-32")])
def test_released_weights_are_opened_with_the_activation_that_they_were_trained_with(tag, model):
    assert find_model(f"ViT-B-32:{tag}").openclip == (model, tag)


# What is refused


@pytest.fixture(scope="module")
def place(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    write_colours(folder / "data/colours")
    for run in ("export", "clip"):
        (folder / run).symlink_to(runs / run)
    torch.save(torch.load(runs / "clip/checkpoints/epoch_1.pt")["state_dict"], folder / "lone.pt")
    (folder / "hf").mkdir()
    (folder / "hf/config.json").write_text("{}")
    (folder / "empty").mkdir()
    return folder


@cases("argv, reason", refusals("evaluate"))
def test_bad_input_is_refused_in_one_line_before_anything_is_written(argv, reason, place, refused):
    data = "" if "--data " in argv else "--data data"
    datasets = "" if "--data" in argv else "--datasets colours"
    assert reason in refused(place, f"evaluate {argv} {data} {datasets} --workers 0")
