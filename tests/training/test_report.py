"""`superclip report`: real runs side by side, the paper beside them, and
what is missing, cut or not comparable."""

import base64
import itertools
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from support import cases, read_rows, table, write_json
from support.models import write_model
from support.training_runs import execute, run_train

from openclip_superclip.evaluation.result_files import record_file
from openclip_superclip.evaluation.suites import RETRIEVAL, THE_38
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.reports.comparable_runs import find_comparisons
from openclip_superclip.reports.report_page import scores_table
from openclip_superclip.reports.reported_run import read_run
from openclip_superclip.runs.progress import read_log

BATCH_SIZES, SEEDS = (8, 16), (0, 1)
MEASURES = ["image_to_text_R@1 (training's own)", "text_to_image_R@1 (training's own)"]


def changed_copy(run, to, **options):
    """A copy of OpenCLIP's folder of a run, with other values in
    params.txt."""
    shutil.copytree(run, to)
    text = (to / "params.txt").read_text()
    for name, value in options.items():
        text, found = re.subn(rf"^{name}: .*$", f"{name}: {value}", text, flags=re.MULTILINE)
        assert found == 1, name
    (to / "params.txt").write_text(text)
    return to


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shards, short_run):
    """OpenCLIP's folders of CLIP and SuperCLIP at two batch sizes with two
    seeds, that measured themselves."""
    folder = tmp_path_factory.mktemp("trained")
    model = write_model(
        folder / "model",
        vision={"layers": 1, "width": 32},
        text={"layers": 1, "context_length": 12},
    )

    for name, batch_size, seed in itertools.product(("clip", "superclip"), BATCH_SIZES, SEEDS):
        flags = (
            f"--model {model} --train-data {shards} --dataset-type webdataset --val-data "
            f"{shards} --train-num-samples 64 --val-num-samples 64 --epochs 2 --batch-size "
            f"{batch_size} --seed {seed} --precision fp32 --name {name}_{batch_size}_{seed}"
        )
        method = ["--superclip"] if name == "superclip" else []
        run_train(short_run, flags, method, cwd=folder)
    return sorted((folder / "logs").iterdir())


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """The report of the runs, and of a run that is not there."""
    out = tmp_path_factory.mktemp("report")
    execute("report", *trained, trained[0].parent / "nowhere", "--out", out)
    return out


def recipe_run(folder, recipe, scores, set_=None, **state):
    """A folder as `superclip run` and `superclip evaluate` leave it, of a
    run that nobody here could train."""
    (folder / "evaluation").mkdir(parents=True)
    run = make_run(read_recipe(recipe, set_), gpus_per_node=8)
    write_json(folder / "run.json", {"run": run.as_json(), "versions": {"torch": "2.13.0"}})
    write_json(folder / "state.json", {"state": "finished", "error": None, "epoch": 25, **state})
    for (dataset, task), metrics in scores.items():
        record = {"model": "x", "dataset": dataset, "task": task, "metrics": metrics}
        record |= {"epoch": state.get("epoch", 25), "settings": state.get("settings")}
        write_json(record_file(folder / "evaluation", "x", dataset, task, "x"), record)
    return folder


def imagenet(zero_shot, probe):
    """CLIP_benchmark's metrics, in its fractions."""
    return {
        ("imagenet1k", "zeroshot_classification"): {"acc1": zero_shot / 100, "acc5": 0.9},
        ("imagenet1k", "linear_probe"): {"lp_acc1": probe / 100, "lp_acc5": 0.9},
    }


# The page


def test_files_beside_the_page_hold_the_same_and_a_missing_run_is_shown_as_missing(trained, whole):
    files = ["batch_size.png", "losses.png", "report.html", "report.md", "runs.csv"]
    assert sorted(os.listdir(whole)) == files
    page, markdown = (whole / "report.html").read_text(), (whole / "report.md").read_text()
    for figure in ("losses.png", "batch_size.png"):
        assert base64.b64encode((whole / figure).read_bytes()).decode() in page
        assert f"({figure})" in markdown
    *rows, missing = read_rows(whole / "runs.csv")
    assert (missing["run"], missing["state"]) == ("nowhere", "missing")
    assert "8 runs, 1 missing" in page
    assert [row["run"] for row in rows] == [run.name for run in trained]
    for name in ("samples", "batch", "seed", "lr", "samples/s", *MEASURES):
        assert all(np.isfinite(float(row[name])) for row in rows), name


def test_scores_are_mean_and_spread_over_the_seeds_of_what_the_runs_measured(trained, whole):
    measured = {}
    for run in trained:
        last = json.loads((run / "checkpoints/results.jsonl").read_text().splitlines()[-1])
        measured[run.name] = 100 * last["image_to_text_R@1"]
    markdown = (whole / "report.md").read_text()
    for batch in BATCH_SIZES:
        ours, theirs = (
            [measured[f"{method}_{batch}_{seed}"] for seed in SEEDS]
            for method in ("superclip", "clip")
        )
        for method, values in (("SuperCLIP", ours), ("CLIP", theirs)):
            text = f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
            assert f"| {method} | {batch} | 2 (seed 0, 1) | {text} |" in markdown
        text = f"{np.mean(ours) - np.mean(theirs):+.1f}"
        if np.ptp(np.subtract(ours, theirs)) > 1e-9:  # of 64 pairs, two seeds often agree
            low, high = ttest_rel(ours, theirs).confidence_interval(0.95)
            text += f" [{low:+.1f}, {high:+.1f}] |"
        assert f"| SuperCLIP − CLIP | {batch} | 2 pair(s) | {text}" in markdown


# Which runs are compared


def test_two_models_are_kept_apart_and_a_run_without_a_number_of_samples_is_as_long_as_its_log(
    trained, tmp_path
):
    others = [
        changed_copy(run, tmp_path / "other" / run.name, model="ViT-L-14") for run in trained[:2]
    ]
    on_table = changed_copy(trained[0], tmp_path / "csv", train_num_samples=None, seed=7)
    wide = changed_copy(trained[0], tmp_path / "wide", force_image_size=[48, 64], seed=8)
    first, second = find_comparisons(
        [read_run(path) for path in (*trained, *others, on_table, wide)]
    )
    assert [run.path for run in second.runs] == others and "ViT-L-14" in second.name
    assert {run.path for run in first.runs} == {*trained, on_table, wide}
    assert "CLIP (force image size [48, 64])" in [series.name for series in first.series]
    assert read_run(on_table).samples == 128


@pytest.fixture
def rates(tmp_path):
    """Makes runs of CLIP and SuperCLIP, name: (fields of the recipe,
    score), and returns the scores and differences."""

    def rows(**runs):
        read, folder = [], tmp_path / str(len(list(tmp_path.iterdir())))
        for name, (set_, score) in runs.items():
            recipe = f"datacomp1b/{name.partition('_')[0]}_vit-b-16_512m_bs1k"
            read.append(read_run(recipe_run(folder / name, recipe, imagenet(score, 70.0), set_)))
        (found,), key = find_comparisons(read), "imagenet_zero_shot"
        scores = {group.series.name: group.score(key).mean for group in found.groups}
        return scores | {
            f"{group.series.name} − {baseline.series.name}": group.difference(baseline, key).mean
            for group in found.groups
            for baseline in found.baselines(group)
        }

    return rows


def test_a_difference_is_with_clip_of_the_same_rate_if_there_is_one(rates):
    fast, slow = {"lr": "1e-3"}, {"lr": "5e-4"}
    assert rates(
        clip_fast=(fast, 50.0), clip_slow=(slow, 40.0), superclip=(fast, 55.0)
    ) == pytest.approx(
        {
            "CLIP (lr 0.0005)": 40,
            "CLIP (lr 0.001)": 50,
            "SuperCLIP (lr 0.001)": 55,
            "SuperCLIP (lr 0.001) − CLIP (lr 0.001)": 5,
        }
    )
    assert rates(clip=(slow, 40.0), superclip=(fast, 55.0)) == pytest.approx(
        {
            "CLIP (lr 0.0005)": 40,
            "SuperCLIP (lr 0.001)": 55,
            "SuperCLIP (lr 0.001) − CLIP (lr 0.0005)": 15,
        }
    )
    of_two = rates(clip_fast=(fast, 50.0), clip_slow=(slow, 40.0), superclip=({"lr": "2e-3"}, 55.0))
    # neither is picked
    assert list(of_two) == ["CLIP (lr 0.0005)", "CLIP (lr 0.001)", "SuperCLIP (lr 0.002)"]


def test_a_flag_that_changes_the_weights_separates_runs_and_one_that_only_measures_does_not(rates):
    flags = ({"flags.grad-clip-norm": "1.0", "flags.val-frequency": "5"}, 30.0)
    found = rates(clip=({}, 50.0), clip_cut=flags, superclip=({"flags.val-frequency": "2"}, 55.0))
    clip, ours = (f"{method} (grad clip norm default)" for method in ("CLIP", "SuperCLIP"))
    assert found == pytest.approx(
        {clip: 50, "CLIP (grad clip norm 1.0)": 30, ours: 55, f"{ours} − {clip}": 5}
    )
    # 2 is the default
    same, other = ({"seed": "1", "flags.coca-caption-loss-weight": value} for value in ("2", "0"))
    expected = {
        "CLIP (coca caption loss weight default)": 45,
        "CLIP (coca caption loss weight 0)": 30,
    }
    assert rates(
        clip=({}, 50.0), clip_same=(same, 40.0), clip_other=(other, 30.0)
    ) == pytest.approx(expected)
    half, most = (
        {"method": "flip", "flags.force-patch-dropout": value} for value in ("0.5", "0.75")
    )
    assert [*rates(clip=(half, 50.0), clip_most=(most, 40.0))] == [
        "FLIP",
        "FLIP (force patch dropout 0.75)",
    ]


def test_runs_on_other_long_captions_are_not_seeds_of_each_other(rates):
    long, short = (
        {"superclip.captions": "long", "superclip.long_caption": f"json:{name}"}
        for name in ("long", "short")
    )
    found = rates(superclip_long=(long, 50.0), superclip_short=({**short, "seed": "1"}, 40.0))
    assert found == {
        f"SuperCLIP (captions long, superclip long caption json:{name})": score
        for name, score in (("long", 50.0), ("short", 40.0))
    }
    assert [*rates(superclip=(long, 50.0))] == ["SuperCLIP (captions long)"]


# Which scores count


def test_the_demos_scores_count_and_damaged_results_and_those_of_other_models_do_not(tmp_path):
    run = recipe_run(tmp_path / "run", "datacomp1b/clip_vit-b-16_512m_bs1k", imagenet(49.5, 70.0))
    write_json(run / "demo-test.json", {"measures": {"zero_shot": 41.5}})
    scores = {"imagenet_zero_shot": 49.5, "imagenet_linear_probe": 70.0}
    assert read_run(run).scores == pytest.approx(scores | {"demo zero shot": 41.5})
    other = {
        "dataset": "imagenet1k",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.9},
        "epoch": 26,
        "source": "../../other/checkpoints/epoch_26.pt",
    }
    write_json(run / "evaluation/other.json", other)
    (run / "checkpoints").mkdir()
    torch.save({}, run / "checkpoints/epoch_25.pt")  # trained again since the demo
    assert read_run(run).scores == pytest.approx(scores)
    for damaged in ("demo-test.json", "evaluation/cut.json", "checkpoints/results.jsonl"):
        (run / damaged).write_text('{"epoch": 25, "image')
    assert read_run(run).scores == pytest.approx(scores)
    for epoch in (None, 5):  # of averaged weights, and before the end
        other = recipe_run(
            tmp_path / f"{epoch}", "cc3m/clip_vit-b-16_76.8m_bs1k", imagenet(1, 2), epoch=epoch
        )
        (other / "demo-test.json").write_text('{"measures": {"zero_shot": 41.5, "probe": NaN}}')
        read = read_run(other)
        assert read.scores == {"demo zero shot": 41.5}
        assert ("its evaluation at epoch 5 of 30 is left out" in read.note) == (epoch == 5)


def test_scores_that_were_measured_with_other_settings_are_named(tmp_path):
    runs = []
    for method, precision in {"clip": "amp", "superclip": "fp32"}.items():
        recipe = f"datacomp1b/{method}_vit-b-16_512m_bs1k"
        settings = {"precision": precision}
        folder = recipe_run(tmp_path / method, recipe, imagenet(50, 70), settings=settings)
        runs.append(read_run(folder))
    (comparison,) = find_comparisons(runs)
    named = "imagenet1k (linear_probe), imagenet1k (zeroshot_classification)."
    assert f"different settings, data or versions: {named}" in scores_table(comparison).note


@cases("lines, scores", table("runs: results that were cut"))
def test_a_line_that_was_cut_hides_no_other_and_only_those_of_the_last_epoch_count(
    lines, scores, trained, tmp_path
):
    run = shutil.copytree(trained[0], tmp_path / "run")
    (run / "checkpoints/results.jsonl").write_text(lines)
    (run / "run.json").write_text('{"run": ')  # the options are in params.txt, too
    read = read_run(run)
    assert "its options are those of params.txt" in read.note
    assert [*read.scores.values()] == scores


def test_a_log_cut_in_a_line_is_cut_short_and_its_last_numbers_are_not_used(trained, tmp_path):
    shutil.copytree(trained[0], cut := tmp_path / "clip_cut")
    log = (cut / "out.log").read_text()
    third = [match.start() for match in re.finditer("Train Epoch", log)][2]
    (cut / "out.log").write_text(
        log[: log.index("Contrastive_loss", third) + len("Contrastive_loss: 1.")]
    )
    assert len(read_log(cut / "out.log")) == 2
    shutil.copytree(trained[1], half := tmp_path / "half")
    options = (half / "params.txt").read_text()
    (half / "params.txt").write_text(options[: options.index("world_size: ") + len("world_size: ")])
    execute("report", cut, *trained[1:], half, "--out", tmp_path / "out")
    rows = [(row["state"], row["note"]) for row in read_rows(tmp_path / "out/runs.csv")]
    assert rows[0] == ("cut short", "the log ends at 32 samples of 128")
    assert rows[-1] == ("missing", "params.txt is incomplete: it lacks world_size")
    markdown = (tmp_path / "out/report.md").read_text()
    assert "| CLIP | 8 | 2 (seed 0, 1) |" in markdown
    assert "| CLIP | 16 | 1 (seed 1) |" in markdown  # the other one counts alone


def test_steps_trained_again_after_a_crash_count_as_they_were_last(trained, tmp_path):
    """A run of batch 16 that stopped at 96 samples and went on from its
    first epoch, 64 samples, in the same log."""
    steps = [
        line
        for line in (trained[0] / "out.log").read_text().splitlines(keepends=True)
        if "Train Epoch" in line
    ]
    stopped = [line.replace("Contrastive_loss: ", "Contrastive_loss: 9") for line in steps[:6]]
    (tmp_path / "out.log").write_text("".join([*stopped, *steps[4:]]))
    points, whole = read_log(tmp_path / "out.log"), read_log(trained[0] / "out.log")
    assert [point["samples"] for point in points] == list(range(16, 129, 16))
    assert points[4:] == whole[4:]
    assert points[3] != whole[3]


# Recipes and the paper


def test_scores_are_beside_the_papers_with_the_difference_and_what_was_changed(tmp_path):
    """Of runs of shipped recipes: batch 1K with two seeds, batch 2K, one
    crashed, one evaluated early."""
    name, out = "datacomp1b/{}_vit-b-16_512m_bs{}k".format, tmp_path / "out"
    runs = [
        recipe_run(tmp_path / "c1", name("clip", 1), imagenet(49.5, 70.0)),
        recipe_run(
            tmp_path / "c1b", name("clip", 1), dict([*imagenet(48.5, 0).items()][:1]), {"seed": "1"}
        ),
        recipe_run(tmp_path / "s1", name("superclip", 1), imagenet(54.0, 75.0), {"lr": "5e-4"}),
        recipe_run(
            tmp_path / "c2",
            name("clip", 2),
            imagenet(60.0, 80.0),
            state="failed",
            error="rank 3: no memory",
        ),
        recipe_run(tmp_path / "s2", name("superclip", 2), imagenet(30.0, 40.0), epoch=5),
        recipe_run(
            tmp_path / "short",
            name("superclip", 4),
            imagenet(50.0, 60.0),
            {"samples": "1_024_000"},
            state="running",
        ),
    ]
    os.utime(tmp_path / "short/state.json", (0, 0))  # no heartbeat since then: it was killed
    execute("report", *runs, "--out", out)
    assert '<td class=" bad">lost</td>' in (out / "report.html").read_text()
    markdown = (out / "report.md").read_text()
    zero_shot, source = "ImageNet-1k zero-shot", "Figure 4, read off ±0.05"
    assert "| CLIP (lr 0.00025) | 1,024 | 2 (seed 0, 1) | 49.0 ± 0.7 | 70.0 (n = 1) |" in markdown
    assert (
        f"| CLIP (lr 0.00025) | 1,024 | {zero_shot} | 49.0 ± 0.7 | 49.0 | +0.0 | {source} |"
        in markdown
    )
    assert (
        f"| SuperCLIP (lr 0.0005) | 1,024 | {zero_shot} | 54.0 | 54.7 | -0.7 | {source}; here "
        "with --set lr=0.0005 |" in markdown
    )
    assert f"| CLIP | 2,048 | {zero_shot} | missing | 54.5 | – | {source} |" in markdown
    assert f"| SuperCLIP | 2,048 | {zero_shot} | missing | 58.7 | – | {source} |" in markdown
    assert (out / "batch_size_1.png").exists()
    assert not (out / "batch_size_2.png").exists()  # another number of samples: not the paper's
    assert markdown.count("**Beside the paper**") == 1
    execute("report", runs[0], "--out", out)  # of one comparison
    assert not (out / "batch_size_1.png").exists()


def test_the_papers_average_is_of_all_its_38_data_sets_or_missing(tmp_path):
    retrieval = {
        "image_retrieval_recall@1": 0.3,
        "text_retrieval_recall@1": 0.5,
        "text_retrieval_recall@5": 0.9,
    }
    scores = {
        (name, "zeroshot_classification"): {"acc1": n / 38, "acc5": 0.9}
        for n, name in enumerate(THE_38)
    }
    scores |= {(name, "zeroshot_retrieval"): retrieval for name in RETRIEVAL}
    name = "datacomp1b/superclip_vit-b-16_512m_bs16k"
    found = read_run(recipe_run(tmp_path / "all", name, scores)).scores
    assert found["average_of_38"] == pytest.approx(100 * 37 / 38 / 2)
    assert found["coco_text_to_image_r1"] == pytest.approx(30)
    assert found["flickr30k_image_to_text_r1"] == pytest.approx(50)
    scores.pop(next(iter(scores)))
    assert "average_of_38" not in read_run(recipe_run(tmp_path / "some", name, scores)).scores


def test_a_runs_name_is_text_in_every_file(tmp_path):
    name = "=<img src=x onerror=alert(1)> [a](b)"
    run = recipe_run(tmp_path / name, "datacomp1b/clip_vit-b-16_512m_bs1k", imagenet(49.5, 70.0))
    execute("report", run, "--out", tmp_path / "out", "--title", name)
    assert read_rows(tmp_path / "out/runs.csv")[0]["run"] == f"'{name}"
    for file, text in (
        ("report.md", r"=\<img src=x onerror=alert(1)\> [a\](b)"),
        ("report.html", "=&lt;img"),
    ):
        written = (tmp_path / "out" / file).read_text()
        assert text in written and "<img src=x" not in written.replace(r"\<", "")


def test_records_of_runs_in_folders_of_one_name_are_apart(tmp_path):
    runs = [
        recipe_run(tmp_path / folder, "datacomp1b/clip_vit-b-16_512m_bs1k", imagenet(49.5, 70.0))
        for folder in ("a/run", "b/run")
    ]
    execute("report", *runs, "--record", tmp_path / "records")
    assert sorted(os.listdir(tmp_path / "records")) == ["a-run", "b-run"]


def test_without_a_run_it_fails_in_one_line(tmp_path, refused):
    (tmp_path / "other").mkdir()
    error = refused(tmp_path, "report nowhere other --out out")
    assert error.startswith("error: RUN: no run found (")
    assert "the folder contains neither run.json nor params.txt" in error
