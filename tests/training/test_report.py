"""`superclip report`: real runs side by side, the paper beside them, and what is missing, cut or not comparable."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from ruamel.yaml import YAML
from scipy.stats import ttest_rel
from support import paper
from support.browser import evaluated, needs_browser, num_pixels_outside, screenshot
from support.models import write_model
from support.training_runs import run_ranks, superclip_train

from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.run_outputs import read_log
from openclip_superclip.evaluation.results import record_file
from openclip_superclip.files import file_identity
from openclip_superclip.runs.recipe import read_recipe
from openclip_superclip.studies.comparison import find_comparisons, paper_points
from openclip_superclip.studies.figures import draw_scores, legend
from openclip_superclip.studies.finished_runs import FLAGS, mark_copies, method_variant, read_run
from openclip_superclip.studies.statistics import Spread

BATCH_SIZES, SEEDS = (8, 16), (0, 1)
MEASURES = ["image_to_text_R@1 (training's own)", "text_to_image_R@1 (training's own)"]


def report(*argv) -> int:
    return main(["report", *map(str, argv)])


def table(file: Path) -> list[dict]:
    return list(csv.DictReader(io.StringIO(file.read_text())))


def changed_copy(run: Path, to: Path, **options) -> Path:
    """A copy of OpenCLIP's folder of a run, with other values in params.txt."""
    shutil.copytree(run, to)
    text = (to / "params.txt").read_text()
    for name, value in options.items():
        text, found = re.subn(rf"^{name}: .*$", f"{name}: {value}", text, flags=re.MULTILINE)
        assert found == 1, name
    (to / "params.txt").write_text(text)
    return to


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shards) -> list[Path]:
    """OpenCLIP's folders of CLIP and SuperCLIP at two batch sizes with two seeds, that measured themselves."""
    folder = tmp_path_factory.mktemp("trained")
    model = write_model(folder / "model", vision={"layers": 1, "width": 32}, text={"layers": 1, "context_length": 12})

    for name, flags in {"clip": [], "superclip": ["--superclip"]}.items():
        for batch_size in BATCH_SIZES:
            for seed in SEEDS:
                (run,) = run_ranks(
                    superclip_train, "--model", model, "--train-data", shards, "--dataset-type", "webdataset",
                    "--val-data", shards, "--train-num-samples", 64, "--val-num-samples", 64, "--epochs", 2,
                    "--batch-size", batch_size, "--seed", seed, "--lr", 1e-3, "--warmup", 1, "--workers", 0,
                    "--device", "cpu", "--precision", "fp32", "--log-every-n-steps", 1,
                    "--name", f"{name}_{batch_size}_{seed}", *flags, cwd=folder,
                )  # fmt: skip
                assert run.returncode == 0, run.output[-3000:]
    return sorted((folder / "logs").iterdir())


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory) -> Path:
    """The report of the runs, and of a run that is not there."""
    out = tmp_path_factory.mktemp("report")
    assert report(*trained, trained[0].parent / "nowhere", "--out", out) == 0
    return out


def recipe_run(folder: Path, recipe: str, scores: dict, set_: dict | None = None, **state) -> Path:
    """A folder as `superclip run` and `superclip evaluate` leave it, of a run that nobody here could train."""
    (folder / "evaluation").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(read_recipe(recipe, set_).text)
    plan = {"epochs": 25, "world_size": 8, "device": "cuda", "accum_freq": 1}
    recorded = {"plan": plan, "set": set_ or {}, "versions": {"torch": "2.13.0"}, "hosts": ["gpu7"], "command": ["x"]}
    (folder / "run.json").write_text(json.dumps(recorded))
    (folder / "state.json").write_text(json.dumps({"state": "finished", "error": None, "epoch": 25, **state}))
    for (dataset, task), metrics in scores.items():
        record = {"model": "x", "dataset": dataset, "task": task, "metrics": metrics, "epoch": state.get("epoch", 25)}
        record_file(folder / "evaluation", "x", dataset, task, "x").write_text(json.dumps(record))
    return folder


def imagenet(zero_shot: float, probe: float) -> dict:
    """CLIP_benchmark's metrics, in its fractions."""
    return {
        ("imagenet1k", "zeroshot_classification"): {"acc1": zero_shot / 100, "acc5": 0.9},
        ("imagenet1k", "linear_probe"): {"lp_acc1": probe / 100, "lp_acc5": 0.9},
    }


# The page in a browser


@needs_browser
def test_a_page_is_as_wide_as_the_browser_and_the_reason_of_a_failure_is_seen(tmp_path):
    error = "rank 3 on gpu7 ended with code 1: " + "CUDA out of memory, tried to allocate 2.41 GiB; " * 5
    runs = [
        recipe_run(tmp_path / "clip", "datacomp1b/clip_vit-b-16_512m_bs1k", imagenet(49.5, 70.0)),
        recipe_run(tmp_path / "superclip", "datacomp1b/superclip_vit-b-16_512m_bs16k", {}, state="failed", error=error),
    ]
    assert report(*runs, "--out", tmp_path / "out") == 0
    page = tmp_path / "out" / "report.html"
    for width in (1280, 500, 390):
        assert num_pixels_outside(page, width, tmp_path / "browser") == 0
    script = "Math.max(...[...document.querySelectorAll('td.words')].map(cell => cell.getBoundingClientRect().right))"
    assert 0 < evaluated(page, 1280, script, tmp_path / "browser") < 1280


def inline_figures(page: str) -> list[np.ndarray]:
    data = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in data]


def is_shown(figure: np.ndarray, shown: np.ndarray) -> bool:
    """Whether a browser's picture holds a figure, pixel for pixel."""
    height, width, _ = figure.shape
    busiest = figure.std(axis=(1, 2)).argmax()
    for row in range(shown.shape[0] - height + 1):
        for column in np.flatnonzero((shown[row + busiest, :, :] != 255).any(axis=1))[:1]:
            for left in range(max(0, column - width), min(column + 1, shown.shape[1] - width + 1)):
                if np.array_equal(shown[row + busiest, left : left + width], figure[busiest]):
                    return np.array_equal(shown[row : row + height, left : left + width], figure)
    return False


@needs_browser
def test_a_browser_without_a_network_shows_every_figure(whole, tmp_path):
    figures = inline_figures((whole / "report.html").read_text())
    assert len(figures) == 3  # losses, batch sizes, words
    shown, requests = screenshot(whole / "report.html", tmp_path / "browser")
    for figure in figures:
        assert figure.std() > 15  # not blank
        assert figure.shape[1] > shown.shape[1] or is_shown(figure, shown)  # a wider one is made to fit
    addresses = set(re.findall(r'"url":"(?!file:|data:)([^"]+)"', requests))
    assert not {one for one in addresses if not re.search(r"google|gvt1|chrome", one)}  # the browser's own


def test_the_page_asks_for_nothing_and_escapes_what_it_is_told(trained, tmp_path):
    odd = tmp_path / "a <script> & b"
    shutil.copytree(trained[0], odd)
    assert report(odd, "--out", tmp_path / "out", "--title", "<i>x</i>") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"<script|<link|<i>|https?://|@import|url\(", page)
    assert page.count("a &lt;script&gt; &amp; b") >= 2
    assert "default-src 'none'" in page


# What it tells


def test_scores_are_mean_and_spread_over_the_seeds_of_what_the_runs_measured(trained, whole):
    rows = table(whole / "scores.csv")
    assert [(row["method"], row["batch"], row["seeds"]) for row in rows] == [
        ("CLIP", "8", "2 (seed 0, 1)"), ("SuperCLIP", "8", "2 (seed 0, 1)"), ("SuperCLIP − CLIP", "8", "2 pair(s)"),
        ("CLIP", "16", "2 (seed 0, 1)"), ("SuperCLIP", "16", "2 (seed 0, 1)"), ("SuperCLIP − CLIP", "16", "2 pair(s)"),
    ]  # fmt: skip
    measured = {}
    for run in trained:
        last = json.loads((run / "checkpoints" / "results.jsonl").read_text().splitlines()[-1])
        measured[run.name] = 100 * last["image_to_text_R@1"]
    for row in rows:
        values = [measured.get(f"{row['method'].lower()}_{row['batch']}_{seed}") for seed in SEEDS]
        if None not in values:
            assert float(row[MEASURES[0]]) == pytest.approx(np.mean(values), abs=1e-5)
            assert float(row[f"{MEASURES[0]}, standard deviation"]) == pytest.approx(np.std(values, ddof=1), abs=1e-5)
            told = f"| {row['method']} | {row['batch']} | {row['seeds']} | {Spread(values)} |"
            assert told in (whole / "report.md").read_text()
    for batch in ("8", "16"):
        (row,) = (row for row in rows if row["method"] == "SuperCLIP − CLIP" and row["batch"] == batch)
        ours, theirs = ([measured[f"{method}_{batch}_{seed}"] for seed in SEEDS] for method in ("superclip", "clip"))
        of_scipy = ttest_rel(ours, theirs)
        interval = of_scipy.confidence_interval(0.95)
        assert float(row[MEASURES[0]]) == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-5)
        for end, name in zip(interval, ("from", "to"), strict=True):
            assert float(row[f"{MEASURES[0]}, 95 % interval {name}"]) == pytest.approx(end, abs=1e-5)


def test_files_beside_the_page_hold_the_same(trained, whole):
    assert {path.name for path in whole.iterdir()} == {
        "report.html", "report.md", "report.json", "runs.csv", "scores.csv", "losses.png", "batch_size.png",
        "words.csv", "words.png",
    }  # fmt: skip
    page, markdown = (whole / "report.html").read_text(), (whole / "report.md").read_text()
    for figure in ("losses.png", "batch_size.png"):
        assert base64.b64encode((whole / figure).read_bytes()).decode() in page
        assert f"({figure})" in markdown
    content = json.loads((whole / "report.json").read_text())
    assert [Path(run["run"]).name for run in content["runs"]] == [*(run.name for run in trained), "nowhere"]
    superclip = next(run for run in content["runs"] if "superclip_8_0" in run["run"])
    assert superclip["points"][-1]["samples"] == 2 * 64
    assert superclip["points"][-1]["class_loss"] > 0
    (found,) = content["comparisons"]
    scores = next(cell["scores"] for cell in found["cells"] if (cell["method"], cell["batch_size"]) == ("CLIP", 8))
    assert list(scores) == MEASURES
    assert len(scores[MEASURES[0]]["values"]) == 2


def test_a_missing_run_is_shown_as_missing(whole):
    row = table(whole / "runs.csv")[-1]
    assert (row["run"], row["state"], row["note"]) == ("nowhere", "missing", "there is no such folder")
    assert "8 runs, 1 missing" in (whole / "report.html").read_text()


def test_the_losses_of_both_methods_are_drawn_together(trained, whole):
    """In each method's colour, and the class loss of SuperCLIP alone: the lower half has no grey curve."""
    pixels = np.asarray(Image.open(whole / "losses.png").convert("RGB")).astype(int)[60:-70, 80:]

    def num_of(colour, part):
        seen = 0.8 * np.array(colour) + 0.2 * 255  # through the curve
        return (np.abs(part - seen).max(axis=2) < 8).sum()

    upper, lower = np.array_split(pixels, 2)
    red, grey = (0xD1, 0x49, 0x5B), (0x7D, 0x7D, 0x7D)
    assert min(num_of(red, upper), num_of(grey, upper), num_of(red, lower)) > 300
    assert num_of(grey, lower) < num_of(grey, upper) / 5  # some grey is of letters


@pytest.mark.parametrize(("option", "value", "names"), [
    ("lr", 0.5, ["CLIP (lr 0.001)", "CLIP (lr 0.5)"]),
    ("lock_image", True, ["CLIP", "CLIP (lock-image True)"]),
    ("grad_clip_norm", 1.0, ["CLIP (grad clip norm 1.0)", "CLIP (grad clip norm None)"]),
])  # fmt: skip
def test_runs_that_differ_by_more_than_the_seed_are_no_seeds_of_each_other(option, value, names, trained, tmp_path):
    other = changed_copy(trained[0], tmp_path / "other", **{option: value})
    (found,) = find_comparisons([read_run(path) for path in (trained[0], trained[1], other)])
    assert [series.name for series in found.series] == names


@pytest.fixture
def rates(tmp_path):
    """Makes runs of CLIP and SuperCLIP, name: (fields of the recipe, score), and returns their rows of scores."""

    def rows(**runs) -> dict[str, float]:
        folders = []
        for name, (set_, score) in runs.items():
            recipe = f"datacomp1b/{name.partition('_')[0]}_vit-b-16_512m_bs1k"
            folders.append(recipe_run(tmp_path / "runs" / name, recipe, imagenet(score, 70.0), set_))
        assert report(*folders, "--out", tmp_path / "out") == 0
        shutil.rmtree(tmp_path / "runs")
        return {
            row["method"]: float(row["ImageNet-1k zero-shot"] or "nan") for row in table(tmp_path / "out/scores.csv")
        }

    return rows


def test_a_difference_is_with_clip_of_the_same_rate_where_there_is_one(rates):
    fast, slow = {"lr": "1e-3"}, {"lr": "5e-4"}
    assert rates(clip_fast=(fast, 50.0), clip_slow=(slow, 40.0), superclip=(fast, 55.0)) == pytest.approx({
        "CLIP (lr 0.0005)": 40, "CLIP (lr 0.001)": 50, "SuperCLIP (lr 0.001)": 55,
        "SuperCLIP (lr 0.001) − CLIP (lr 0.001)": 5,
    })  # fmt: skip
    assert rates(clip=(slow, 40.0), superclip=(fast, 55.0)) == pytest.approx({
        "CLIP (lr 0.0005)": 40, "SuperCLIP (lr 0.001)": 55, "SuperCLIP (lr 0.001) − CLIP (lr 0.0005)": 15,
    })  # fmt: skip
    other = {"lr": "2e-3"}
    told = rates(clip_fast=(fast, 50.0), clip_slow=(slow, 40.0), superclip=(other, 55.0))
    assert list(told) == ["CLIP (lr 0.0005)", "CLIP (lr 0.001)", "SuperCLIP (lr 0.002)"]  # which of two, nobody says


def test_the_flags_that_tell_runs_apart_are_openclips_with_its_defaults(parse_args):
    defaults = vars(parse_args([]))
    assert all(defaults[name] in (default, False, {}) for name, default in FLAGS.items())


def test_a_flag_that_changes_the_weights_separates_runs_and_one_that_only_measures_does_not(rates):
    flags = ({"flags.grad-clip-norm": "1.0", "flags.val-frequency": "5"}, 30.0)
    assert rates(clip=({}, 50.0), clip_cut=flags, superclip=({"flags.val-frequency": "2"}, 55.0)) == pytest.approx({
        "CLIP (grad clip norm None)": 50, "CLIP (grad clip norm 1.0)": 30,
        "SuperCLIP (grad clip norm None)": 55, "SuperCLIP (grad clip norm None) − CLIP (grad clip norm None)": 5,
    })  # fmt: skip


def test_every_variant_of_superclip_has_its_difference(rates):
    assert rates(
        clip=({}, 50.0), superclip=({}, 55.0), superclip_off=({"superclip.idf": "off"}, 53.0),
        superclip_placebo=({"superclip.placebo": "detached-head"}, 50.0),
    ) == pytest.approx({
        "CLIP": 50, "SuperCLIP": 55, "SuperCLIP (idf off)": 53, "SuperCLIP (placebo detached-head)": 50,
        "SuperCLIP − CLIP": 5, "SuperCLIP (idf off) − CLIP": 3, "SuperCLIP (placebo detached-head) − CLIP": 0,
    })  # fmt: skip
    long = {"superclip.captions": "long", "superclip.long_caption": "long.txt"}
    told = rates(
        clip=({}, 50.0), clip_long=(long | {"superclip.weight": "0"}, 51.0), superclip_long=(long, 57.0),
        superclip_dual=(long | {"superclip.captions": "dual"}, 59.0),
    )  # fmt: skip
    differences = {name: value for name, value in told.items() if "−" in name}
    assert differences == pytest.approx({
        "SuperCLIP (captions long) − CLIP (captions long)": 6,
        "SuperCLIP (captions dual) − CLIP": 9, "SuperCLIP (captions dual) − CLIP (captions long)": 8,
    })  # fmt: skip


def test_two_models_are_kept_apart(trained, tmp_path):
    others = [changed_copy(run, tmp_path / "other" / run.name, model="ViT-L-14") for run in trained[:2]]
    assert report(*trained, *others, "--out", tmp_path / "out") == 0
    first, second = json.loads((tmp_path / "out" / "report.json").read_text())["comparisons"]
    runs = [{run for cell in one["cells"] for run in cell["runs"]} for one in (first, second)]
    assert runs == [{str(run) for run in trained}, {str(run) for run in others}]
    assert second["model"] == "ViT-L-14"
    assert {"losses_1.png", "losses_2.png", "batch_size_1.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "batch_size_2.png").exists()  # one batch size is no curve of it


def test_every_number_of_a_csv_is_a_number(whole, beside_the_paper):
    numeric = {"batch", "samples", "seed", "lr", "samples/s", "here"}
    numeric |= {"here, standard deviation", "the paper", "difference", *MEASURES, f"{MEASURES[0]}, standard deviation"}
    found = set()
    for file in [*whole.glob("*.csv"), *beside_the_paper.glob("*.csv")]:
        for row in table(file):
            for name in numeric & row.keys():
                assert row[name] == "" or float(row[name]) is not None, (file.name, name)
                found |= {name} if row[name] else set()
    assert found == numeric


# Runs that are shorter, replaced or there twice


def test_runs_on_tables_and_shards_that_fill_no_last_batch_are_finished_and_compared(
    csv_data, shards, tiny_model, tmp_path
):
    """OpenCLIP leaves out a table's last batch that is not full, and fills up that of shards."""
    data = tmp_path / "shards"
    data.mkdir()
    for shard in csv_data.parent.glob("*.tar"):
        shutil.copy(shard, data)
    (data / "sizes.json").write_text(json.dumps({"0.tar": 32, "1.tar": 32}))
    sources = {"csv": csv_data, "webdataset": f"{data}/{{0..1}}.tar"}
    for kind, batch_size, flags in (("csv", 24, []), ("webdataset", 24, []), ("webdataset", 20, ["--superclip"])):
        (run,) = run_ranks(
            superclip_train, "--model", tiny_model, "--train-data", sources[kind], "--dataset-type", kind,
            "--val-data", sources[kind], "--epochs", 2, "--batch-size", batch_size, "--lr", 1e-3, "--warmup", 1,
            "--workers", 0, "--device", "cpu", "--precision", "fp32", "--name", f"{kind}_{batch_size}", *flags,
            cwd=tmp_path,
        )  # fmt: skip
        assert run.returncode == 0, run.output[-3000:]
    runs = [read_run(path) for path in sorted((tmp_path / "logs").iterdir())]
    assert [(run.state, run.note, run.samples) for run in runs] == [("finished", "", 128)] * 3
    on_table, on_shards = find_comparisons(runs)
    assert [series.method for series in on_table.series] == ["clip"]
    assert [series.method for series in on_shards.series] == ["clip", "superclip"]
    assert set(MEASURES) <= set(on_table.score_keys) and set(MEASURES) <= set(on_shards.score_keys)


def test_scores_of_a_checkpoint_that_was_replaced_are_not_shown(tmp_path):
    run = recipe_run(tmp_path / "run", "datacomp1b/clip_vit-b-16_512m_bs1k", imagenet(49.5, 70.0))
    checkpoint = run / "checkpoints" / "epoch_25.pt"
    checkpoint.parent.mkdir()

    def save(value: float) -> None:
        torch.save({"epoch": 25, "state_dict": {"weight": torch.full((2,), value)}}, checkpoint)

    save(1.0)
    for file in (run / "evaluation").iterdir():
        record = json.loads(file.read_text()) | {"checkpoint": str(checkpoint)}
        file.write_text(json.dumps(record | {"checkpoint_file": file_identity(checkpoint)}))
    scores = {"imagenet_zero_shot": 49.5, "imagenet_linear_probe": 70.0}
    assert read_run(run).scores == pytest.approx(scores)
    shutil.copytree(run, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "checkpoints" / "epoch_25.pt")  # copied later than the results
    assert read_run(tmp_path / "copy").scores == pytest.approx(scores)
    save(2.0)
    os.utime(checkpoint, (0, 0))  # moved here, and written long ago
    replaced = read_run(run)
    assert replaced.scores == {}
    assert "epoch_25.pt was replaced after it was evaluated: evaluate it again" in replaced.note


def test_the_demos_measures_are_of_the_checkpoint_that_is_there(tmp_path):
    run = recipe_run(tmp_path / "run", "datacomp1b/clip_vit-b-16_512m_bs1k", {})
    checkpoint, measures = run / "checkpoints" / "epoch_25.pt", run / "demo-test.json"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()[:16]
    whole = json.dumps({"checkpoint": digest, "measures": {"zero_shot": 41.5}})
    measures.write_text(whole)
    (run / "checkpoints" / "epoch_24.pt").write_bytes(b"earlier weights")
    assert read_run(run).scores == {"demo zero shot": 41.5}
    for content in (b"other weights", b"weigh"):
        checkpoint.write_bytes(content)
        replaced = read_run(run)
        assert replaced.scores == {}
        assert "epoch_25.pt was replaced after demo-test.json was measured: the same superclip study" in replaced.note
    checkpoint.unlink()  # what it scored still stands for the run
    assert read_run(run).scores == {"demo zero shot": 41.5}


def test_damaged_results_are_named_in_one_note(tmp_path):
    run = recipe_run(tmp_path / "run", "datacomp1b/clip_vit-b-16_512m_bs1k", imagenet(49.5, 70.0))
    (run / "checkpoints").mkdir()
    results, demo = run / "checkpoints" / "results.jsonl", run / "demo-test.json"
    results.write_text('{"epoch": 25, "image_to_text_R@1": 0.5}\n\n')
    demo.write_text('{"checkpoint": "0123456789abcdef", "measures": {"zero_shot": 41.5}}')
    assert "damaged" not in read_run(run).note
    results.write_text('{"epoch": 25, "image')
    (run / "evaluation" / "cut.json").write_text("{")
    for wrong in ('{"checkpoint": "01', "[]", '{"checkpoint": "01", "measures": {"zero_shot": "high"}}', "{}", "\xff"):
        demo.write_text(wrong, encoding="latin-1")
        told = read_run(run)
        names = "demo-test.json, evaluation/cut.json, checkpoints/results.jsonl"
        assert f"damaged and left out: {names}; remove and measure again" in told.note
        assert set(told.scores) == {"imagenet_zero_shot", "imagenet_linear_probe"}


def test_results_that_do_not_say_what_they_are_of_are_older_than_a_checkpoint_that_replaced_it(tmp_path):
    run = recipe_run(tmp_path / "run", "datacomp1b/clip_vit-b-16_512m_bs1k", imagenet(49.5, 70.0))
    checkpoint = run / "checkpoints" / "epoch_25.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_text("")
    os.utime(checkpoint, (0, 0))
    assert read_run(run).scores
    for file in (run / "evaluation").iterdir():
        os.utime(file, (0, 0))
    os.utime(checkpoint)
    assert read_run(run).scores == {}


def test_a_run_that_is_there_twice_is_named_and_counted_once(trained, tmp_path, capsys):
    copy = changed_copy(trained[0], tmp_path / "clip_16_2", seed=2)
    again = f"{trained[0].parent}/../{trained[0].parent.name}/{trained[0].name}"
    assert report(trained[0], trained[1], copy, again, "--out", tmp_path / "out") == 0
    (row,) = table(tmp_path / "out" / "scores.csv")
    assert row["seeds"] == "2 (seed 0, 1)"
    told = f"the same run as {again}, and counted once"
    assert [row["note"] for row in table(tmp_path / "out" / "runs.csv")] == ["", "", told]
    assert f"{copy}: finished, {told}" in capsys.readouterr().out


def test_runs_without_a_log_are_one_where_their_evaluated_weights_are(tmp_path):
    runs = []
    for seed, weights in enumerate(("aa", "aa", "bb")):
        scores = imagenet(49.0 + seed, 70.0)
        run = recipe_run(tmp_path / str(seed), "datacomp1b/clip_vit-b-16_512m_bs1k", scores, {"seed": str(seed)})
        for file in (run / "evaluation").iterdir():
            file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": weights}))
        runs.append(read_run(run))
    mark_copies(runs)
    assert [run.copy_of for run in runs] == [None, "0", None]


# Logs that a crash has cut


def test_a_log_cut_in_a_line_is_told_as_cut_short_and_its_last_numbers_are_not_believed(trained, tmp_path):
    cut = tmp_path / "clip_cut"
    shutil.copytree(trained[0], cut)
    log = (cut / "out.log").read_text()
    third = [match.start() for match in re.finditer("Train Epoch", log)][2]
    (cut / "out.log").write_text(log[: log.index("Contrastive_loss", third) + len("Contrastive_loss: 1.")])
    assert len(read_log(cut / "out.log")) == 2
    assert report(cut, *trained[1:], "--out", tmp_path / "out") == 0
    row = table(tmp_path / "out" / "runs.csv")[0]
    assert (row["state"], row["note"]) == ("cut short", "the log ends at 32 of 128 samples")
    seeds = {(row["method"], row["batch"]): row["seeds"] for row in table(tmp_path / "out" / "scores.csv")}
    assert seeds["CLIP", "8"] == "2 (seed 0, 1)"
    assert seeds["CLIP", "16"] == "1 (seed 1)"  # the other one counts alone


def test_an_empty_log_a_missing_log_and_a_loss_that_is_no_number_are_told(trained, tmp_path):
    logs = {"empty": "", "infinite": (trained[0] / "out.log").read_text().replace("Contrastive_loss: ", "X: 1 (", 1)}
    logs["infinite"] = re.sub(r"Class_loss: \S+", "Class_loss: nan", (trained[-1] / "out.log").read_text())
    for name, text in logs.items():
        shutil.copytree(trained[-1], tmp_path / name)
        (tmp_path / name / "out.log").write_text(text)
    shutil.copytree(trained[-1], tmp_path / "none")
    (tmp_path / "none" / "out.log").unlink()
    assert report(*(tmp_path / name for name in ("empty", "none", "infinite")), "--out", tmp_path / "out") == 0
    rows = {row["run"]: (row["state"], row["note"]) for row in table(tmp_path / "out" / "runs.csv")}
    assert rows["empty"] == ("cut short", "out.log holds no step")
    assert rows["none"] == ("cut short", "there is no out.log")
    assert rows["infinite"] == ("finished", "the loss became non-finite")
    assert "NaN" not in (tmp_path / "out" / "report.json").read_text()


def test_steps_trained_again_after_a_crash_count_as_they_were_last(trained, tmp_path):
    """A run of batch 16 that stopped at 96 samples and went on from its first epoch, 64 samples, in the same log."""
    lines = (trained[0] / "out.log").read_text().splitlines(keepends=True)
    steps = [line for line in lines if "Train Epoch" in line]
    stopped = [line.replace("Contrastive_loss: ", "Contrastive_loss: 9") for line in steps[:6]]
    (tmp_path / "out.log").write_text("".join([*stopped, *steps[4:]]))
    points, whole = read_log(tmp_path / "out.log"), read_log(trained[0] / "out.log")
    assert [point["samples"] for point in points] == list(range(16, 129, 16))
    assert points[4:] == whole[4:]
    assert points[3] != whole[3]


def test_a_run_on_a_table_is_as_long_as_its_log_says(trained, tmp_path):
    """OpenCLIP's csv data needs no --train-num-samples."""
    on_table = changed_copy(trained[0], tmp_path / "csv", train_num_samples=None)
    assert read_run(on_table).samples == read_run(trained[0]).samples == 128


# Recipes and the paper


@pytest.mark.slow
def test_what_superclip_run_leaves_is_read_whole(shards, tmp_path, capsys):
    """A real run of a recipe, in a process for its rank; the scores as superclip evaluate would write them."""
    values = read_recipe("demo/superclip_demo-model_8k_bs16").as_dict() | {
        "model": write_model(tmp_path / "model", vision={"layers": 1, "width": 32}, text={"layers": 1}),
        "data": "tiny", "shards": shards, "data_samples": 64, "samples": 64, "slices": 1, "workers": 0, "seed": 3,
    }  # fmt: skip
    values["flags"] = {"log-every-n-steps": 1}
    YAML().dump(values, tmp_path / "tiny.yaml")
    program = [sys.executable, "-m", "openclip_superclip", "run", str(tmp_path / "tiny.yaml"), "--device", "cpu"]
    done = subprocess.run(
        [*program, "--out", str(tmp_path / "runs" / "tiny"), "--set", "lr=2e-3"], capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = tmp_path / "runs" / "tiny"
    (run / "evaluation").mkdir()
    record = {"dataset": "demo_objects", "task": "zeroshot_classification", "metrics": {"acc1": 0.25}, "epoch": 1}
    (run / "evaluation" / "one.json").write_text(json.dumps(record))
    (run / "evaluation" / "broken.json").write_text("{")
    assert report(run, "--out", tmp_path / "out") == 0
    (row,) = table(tmp_path / "out" / "runs.csv")
    assert [row[name] for name in ("run", "state", "method", "data", "samples", "batch", "seed", "lr", "note")] == [
        "tiny", "finished", "SuperCLIP", "tiny", "64", "16", "3", "0.002",
        "damaged and left out: evaluation/broken.json; remove and measure again",
    ]  # fmt: skip
    assert table(tmp_path / "out" / "scores.csv")[0]["demo_objects zero-shot"] == "25.0"
    page = (tmp_path / "out" / "report.html").read_text()
    for told in ("--set: lr=2e-3", "open_clip_torch 3", "log-every-n-steps: 1", "command: superclip train --model"):
        assert told in page


@pytest.fixture
def beside_the_paper(tmp_path) -> Path:
    """The report of runs of shipped recipes: batch 1K with two seeds, batch 2K, one crashed, one evaluated early."""
    name = "datacomp1b/{}_vit-b-16_512m_bs{}k".format
    runs = [
        recipe_run(tmp_path / "c1", name("clip", 1), imagenet(49.5, 70.0)),
        recipe_run(tmp_path / "c1b", name("clip", 1), imagenet(48.5, 70.4), {"seed": "1"}),
        recipe_run(tmp_path / "s1", name("superclip", 1), imagenet(54.0, 75.0), {"lr": "5e-4"}),
        recipe_run(tmp_path / "c2", name("clip", 2), imagenet(60.0, 80.0), state="failed", error="rank 3: no memory"),
        recipe_run(tmp_path / "s2", name("superclip", 2), imagenet(30.0, 40.0), epoch=5),
        recipe_run(tmp_path / "short", name("superclip", 4), imagenet(50.0, 60.0), {"samples": "1_024_000"}),
    ]
    assert report(*runs, "--out", tmp_path / "out") == 0
    return tmp_path / "out"


def test_scores_stand_beside_the_papers_with_the_difference_and_say_what_was_changed(beside_the_paper):
    rows = table(beside_the_paper / "paper_1.csv")
    assert list(rows[0])[3:] == ["here", "here, standard deviation", "the paper", "difference", "source"]
    read = {(row["method"], row["batch"], row["score, %"]): list(row.values())[3:] for row in rows}
    zero_shot, figure = "ImageNet-1k zero-shot", "Figure 4, read off ±0.05"
    assert read["CLIP", "1024", zero_shot] == ["49.0", "0.707107", "49.0", "0.0", figure]
    assert read["SuperCLIP", "1024", zero_shot] == ["54.0", "", "54.7", "-0.7", f"{figure}; here with --set lr=5e-4"]
    assert read["CLIP", "1024", "ImageNet-1k linear probe"] == ["70.2", "0.282843", "70.1", "0.1", figure]
    assert read["CLIP", "2048", zero_shot] == ["", "", "54.5", "", figure]
    assert read["SuperCLIP", "2048", zero_shot] == ["", "", "58.7", "", figure]
    markdown = (beside_the_paper / "report.md").read_text()
    assert f"| CLIP | 1,024 | {zero_shot} | 49.0 ± 0.7 | 49.0 | +0.0 | {figure} |" in markdown
    assert f"| CLIP | 2,048 | {zero_shot} | missing | 54.5 | – | {figure} |" in markdown


def test_the_papers_curve_is_drawn_beside_ours_and_labelled_as_read_off(beside_the_paper):
    notes = (
        "The paper's ImageNet-1k zero-shot: read off Figure 4 (±0.05) at batch 1K, 2K, 4K, 8K, 32K; Table 2 at batch "
        "16K. The paper's ImageNet-1k linear probe: read off Figure 4 (±0.05) at batch 1K, 2K, 4K, 8K, 32K; Table 7 at "
        "batch 16K."
    )
    assert notes in (beside_the_paper / "report.md").read_text()
    (comparison, short) = json.loads((beside_the_paper / "report.json").read_text())["comparisons"]
    read_off = {
        (p["method"], p["batch_size"]): p["value"] for p in comparison["paper"] if p["key"] == "imagenet_zero_shot"
    }
    assert [read_off["superclip", size] for size in (1024, 2048, 4096)] == [54.7, 58.7, 61.4]
    assert (beside_the_paper / "batch_size_1.png").exists()
    assert short["paper"] == []  # another number of samples: nothing of the paper's is comparable
    assert not (beside_the_paper / "batch_size_2.png").exists()
    assert not (beside_the_paper / "paper_2.csv").exists()


def test_the_scores_of_a_run_whose_checkpoints_were_all_measured_are_drawn_over_the_samples_seen(tmp_path):
    run = recipe_run(tmp_path / "clip", "datacomp1b/clip_vit-b-16_512m_bs1k", imagenet(49.5, 70.0))
    assert report(run, "--out", tmp_path / "one") == 0
    assert not (tmp_path / "one" / "course.png").exists()
    for epoch, zero_shot in ((5, 20.0), (15, 40.0)):
        for dataset in ("imagenet1k", *(f"other{number}" for number in range(12))):
            record = {"model": f"clip/epoch_{epoch}", "dataset": dataset, "task": "zeroshot_classification"}
            record |= {"metrics": {"acc1": zero_shot / 100}, "epoch": epoch}
            (run / "evaluation" / f"{epoch}-{dataset}.json").write_text(json.dumps(record))
    assert report(run, "--out", tmp_path / "out") == 0
    (told,) = json.loads((tmp_path / "out" / "report.json").read_text())["runs"]
    assert "12 of 13 scores are drawn." in (tmp_path / "out" / "report.md").read_text()
    assert {epoch: scores["imagenet_zero_shot"] for epoch, scores in told["course"].items()} == pytest.approx(
        {"5": 20.0, "15": 40.0, "25": 49.5}
    )
    assert told["scores"]["imagenet_zero_shot"] == pytest.approx(49.5)
    assert Image.open(tmp_path / "out" / "course.png").size[0] > 500
    assert "](course.png)" in (tmp_path / "out" / "report.md").read_text()


def test_a_curve_of_the_papers_has_one_entry_in_the_legend_wherever_its_points_are_from(tmp_path):
    retrieval = {("mscoco_captions", "zeroshot_retrieval"): {"image_retrieval_recall@1": 0.3}}
    runs = [
        read_run(recipe_run(tmp_path / batch, f"datacomp1b/clip_vit-b-16_512m_bs{batch}", imagenet(50, 70) | retrieval))
        for batch in ("1k", "16k")
    ]
    (comparison,) = find_comparisons(runs)
    figure, grid = pyplot.subplots(1, 2, squeeze=False)
    for axes, key in zip(grid.flat, ("imagenet_zero_shot", "coco_text_to_image_r1"), strict=True):
        draw_scores(axes, comparison, key)
    legend(figure, grid, ncols=2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CLIP", "CLIP, the paper"]
    pyplot.close(figure)


def test_a_score_of_the_papers_is_cited_from_the_table_or_figure_that_holds_it():
    num_points = 0
    for name, sources in paper.runs().items():
        recipe = read_recipe(f"datacomp1b/{name}")
        for point in paper_points(recipe.model, recipe.data, recipe.samples):
            if (point.method, point.batch_size) != (recipe.method, recipe.global_batch_size):
                continue
            if point.variant != method_variant(recipe):
                continue
            assert sources[point.source][point.key] == point.value
            num_points += 1
    assert num_points > 100


def test_a_run_that_failed_or_was_evaluated_early_gives_no_score_and_says_why(beside_the_paper):
    notes = {row["run"]: (row["state"], row["note"]) for row in table(beside_the_paper / "runs.csv")}
    assert notes["c2"] == ("failed", "rank 3: no memory; there is no out.log")
    assert notes["s2"] == ("finished", "there is no out.log; evaluated at epoch 5 of 25")
    seeds = {(row["method"], row["batch"]): row["seeds"] for row in table(beside_the_paper / "scores_1.csv")}
    assert seeds["CLIP (lr 0.00025)", "1024"] == "2 (seed 0, 1)"
    assert seeds["CLIP", "2048"] == seeds["SuperCLIP", "2048"] == "0 of 1 finished"


def test_the_papers_average_is_of_all_its_38_data_sets_or_is_not_told(tmp_path):
    from openclip_superclip.evaluation.suites import RETRIEVAL, THE_38

    retrieval = {"image_retrieval_recall@1": 0.3, "text_retrieval_recall@1": 0.5, "text_retrieval_recall@5": 0.9}
    scores = {(name, "zeroshot_classification"): {"acc1": n / 38, "acc5": 0.9} for n, name in enumerate(THE_38)}
    scores |= {(name, "zeroshot_retrieval"): retrieval for name in RETRIEVAL}
    name = "datacomp1b/superclip_vit-b-16_512m_bs16k"
    assert report(recipe_run(tmp_path / "all", name, scores), "--out", tmp_path / "out") == 0
    rows = {row["score, %"]: row["here"] for row in table(tmp_path / "out" / "paper.csv")}
    assert float(rows["average of 38"]) == pytest.approx(100 * 37 / 38 / 2, abs=1e-5)
    assert rows["COCO text→image R@1"] == "30.0"
    assert rows["Flickr30k image→text R@1"] == "50.0"
    scores.pop(next(iter(scores)))
    assert report(recipe_run(tmp_path / "some", name, scores), "--out", tmp_path / "out") == 0
    assert {row["score, %"]: row["here"] for row in table(tmp_path / "out" / "paper.csv")}["average of 38"] == ""


# Errors


def test_where_no_run_is_found_it_fails_in_one_line_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "other").mkdir()
    assert report(tmp_path / "nowhere", tmp_path / "other", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: RUN: no run was found (")
    assert "there is no such folder" in error
    assert "the folder holds neither recipe.yaml nor params.txt" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert report(trained[0], "--out", tmp_path / "file") == 1
    assert capsys.readouterr().err == f"error: --out: {tmp_path}/file cannot be written (File exists)\n"


def test_help_and_reading_need_no_torch_and_drawing_names_the_extra(trained):
    program = "import sys; sys.modules['matplotlib'] = None\nfrom openclip_superclip.__main__ import main\n"
    program += "try: main(['report', '--help'])\nexcept SystemExit: pass\n"
    program += f"code = main(['report', {str(trained[0])!r}])\n"
    program += "sys.exit(code if 'torch' not in sys.modules else 9)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "[report]" in done.stderr
