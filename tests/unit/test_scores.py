"""`superclip evaluate` without --data: runs beside each other and beside the
paper, and what is missing or not comparable."""

import os

import pytest
from clip_benchmark.datasets.builder import dataset_collection
from scipy.stats import binomtest
from support import cases, read_json, table, write_json
from support.training_runs import execute

from openclip_superclip.evaluation.model_scores import differences, find_scores
from openclip_superclip.evaluation.result_files import record_file
from openclip_superclip.evaluation.score_table import ScoreTable
from openclip_superclip.evaluation.suites import RETRIEVAL, THE_38, VTAB_PLUS
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe

CLIP, SUPERCLIP = (f"datacomp1b/{method}_vit-b-16_512m_bs1k" for method in ("clip", "superclip"))


def write_results(folder, scores, epoch=25, **facts):
    """Results as `superclip evaluate` leaves them, of a checkpoint that was
    removed since."""
    folder.mkdir(parents=True)
    for (dataset, task), metrics in scores.items():
        record = {"model": "x", "dataset": dataset, "task": task, "metrics": metrics}
        record |= {"epoch": epoch, "source": f"../checkpoints/epoch_{epoch}.pt", **facts}
        write_json(record_file(folder, "x", dataset, task, "x"), record)


def recipe_run(folder, recipe, scores, set_=None, epoch=25, state="finished", **facts):
    """A folder as `superclip run` and `superclip evaluate` leave it, of a
    run that nobody here could train."""
    write_results(folder / "evaluation", scores, epoch, **facts)
    run = make_run(read_recipe(recipe, set_), gpus_per_node=8)
    write_json(folder / "run.json", {"run": run.as_json(), "versions": {"torch": "2.13.0"}})
    error = None if state == "finished" else "rank 3: no memory"
    write_json(folder / "state.json", {"state": state, "error": error})
    return folder


def openclip_run(folder, lines="", **options):
    """A folder as OpenCLIP's own training leaves it."""
    (folder / "checkpoints").mkdir(parents=True)
    options = {"model": "ViT-B-32", "lr": 0.001, "seed": 0, "epochs": 2, **options}
    options = {"train_data": "cc3m", "train_num_samples": 64, "batch_size": 8, **options}
    (folder / "params.txt").write_text("".join(f"{k}: {v}\n" for k, v in options.items()))
    (folder / "checkpoints/results.jsonl").write_text(lines)
    return folder


def imagenet(zero_shot, probe):
    """CLIP_benchmark's metrics, in its fractions."""
    return {
        ("imagenet1k", "zeroshot_classification"): {"acc1": zero_shot / 100, "acc5": 0.9},
        ("imagenet1k", "linear_probe"): {"lp_acc1": probe / 100, "lp_acc5": 0.9},
    }


def values(folder, out="nowhere"):
    found = find_scores(str(folder), folder / out)
    return {key: score.value for key, score in found.scores.items()}


# The table


def test_runs_are_beside_each_other_and_the_paper_and_a_missing_run_is_shown_as_missing(tmp_path):
    runs = [
        recipe_run(tmp_path / "clip", CLIP, imagenet(49.5, 70.0)),
        recipe_run(tmp_path / "ours", SUPERCLIP, imagenet(54.0, 75.0), {"seed": "1"}),
        recipe_run(tmp_path / "failed", CLIP, {}, {"lr": "5e-4"}, state="failed"),
    ]
    out = tmp_path / "out"
    printed = execute("evaluate", *runs, tmp_path / "nowhere", "--out", out)
    for line in (
        "| % | imagenet linear probe | imagenet zero shot |",
        "| clip | 70.0 | 49.5 |",
        "| ours | 75.0 | 54.0 |",
        "| failed | – | – |",
        f"| the paper, {CLIP[11:]} | 70.1 | 49.0 |",
        f"| the paper, {SUPERCLIP[11:]} | 74.6 | 54.7 |",
        f"the paper, {CLIP[11:]}: from Figure 4, read off ±0.05",
        "failed: the run is failed (rank 3: no memory)",
        "failed: no results; --data DIR evaluates it",
        f"{tmp_path}/nowhere: there is no such run, file or folder",
    ):
        assert line in printed.splitlines(), line
    assert "not comparable" not in printed
    assert sorted(os.listdir(out)) == ["scores.json", "scores.png"]
    record = read_json(out / "scores.json")
    assert record["rows"][0]["scores"]["imagenet_linear_probe"]["value"] == 70.0
    execute("evaluate", runs[0], "--out", out)  # replaces its own files


def test_an_interval_is_wilsons_over_independent_samples_and_only_of_proportions(tmp_path):
    num_outcomes = {"acc1": 400, "text_retrieval_recall@1": 50}
    scores = imagenet(50.0, 70.0) | {
        ("flickr30k", "zeroshot_retrieval"): {
            "image_retrieval_recall@1": 0.3,
            "text_retrieval_recall@1": 1.0,
        },
        ("voc2007_multilabel", "zeroshot_classification"): {"mean_average_precision": 0.8},
    }
    run = recipe_run(tmp_path / "run", CLIP, scores, num_outcomes=num_outcomes)
    found = find_scores(str(run), tmp_path).scores
    limits = binomtest(200, 400).proportion_ci(method="wilson")
    expected = (100 * limits.low, 100 * limits.high)
    assert found["imagenet_zero_shot"].interval == pytest.approx(expected)
    assert str(found["flickr30k_image_to_text_r1"]) == "100.0 [92.9, 100.0]"
    for name in ("imagenet_linear_probe", "flickr30k_text_to_image_r1"):
        assert found[name].interval is None
    assert str(found["voc2007_multilabel zero shot map"]) == "80.0"
    assert "differ more between training seeds" in ScoreTable([find_scores(str(run), run)]).text()


def test_the_papers_average_is_of_all_its_38_data_sets_and_not_of_fewer(tmp_path):
    assert dataset_collection["vtab+"] == VTAB_PLUS
    assert len(set(THE_38)) == len(THE_38) == 38
    retrieval = {"image_retrieval_recall@1": 0.3, "text_retrieval_recall@1": 0.5}
    scores = {
        (name, "zeroshot_classification"): {"acc1": n / 38, "acc5": 0.9}
        for n, name in enumerate(THE_38)
    }
    scores |= {(name, "zeroshot_retrieval"): retrieval for name in RETRIEVAL}
    whole = find_scores(str(recipe_run(tmp_path / "all", CLIP, scores)), tmp_path)
    assert whole.scores["coco_text_to_image_r1"].value == pytest.approx(30)
    assert whole.scores["image_to_text_r1_average"].value == pytest.approx(50)
    scores.pop((THE_38[0], "zeroshot_classification"))
    part = find_scores(str(recipe_run(tmp_path / "some", CLIP, scores)), tmp_path)
    ScoreTable([part, whole])
    assert whole.scores["average_of_38"].value == pytest.approx(100 * 37 / 38 / 2)
    assert "average_of_38" not in part.scores


# Which runs are comparable


def test_another_model_other_data_or_samples_are_not_comparable(tmp_path):
    clip = find_scores(str(openclip_run(tmp_path / "clip")), tmp_path)

    def line(name, **options):
        run = openclip_run(tmp_path / name, **options)
        return differences(clip, find_scores(str(run), tmp_path))

    assert line("ours", superclip=True, lr=0.0005, seed=1) == ""
    assert line("small", model="ViT-S-16") == (
        "small is not comparable with clip: model ViT-S-16, not ViT-B-32"
    )
    assert line("other", train_data="cc12m", train_num_samples=128) == (
        "other is not comparable with clip: data cc12m, not cc3m; samples 256, not 128"
    )
    assert line("table", train_num_samples=None, epochs=30).endswith("samples 30 passes, not 128")
    assert line("only evaluated", train_data=None, train_num_samples=None) == ""


def test_scores_that_were_measured_with_other_settings_or_data_are_named(tmp_path):
    found = []
    for precision in ("amp", "fp32"):
        facts = {"settings": {"precision": precision}, "data_files": precision}
        run = recipe_run(tmp_path / precision, CLIP, imagenet(50, 70), **facts)
        found.append(find_scores(str(run), tmp_path))
    line = differences(*found)
    assert "imagenet1k (linear_probe) with other data or settings" in line


# Which scores count


def test_damaged_results_and_those_of_other_models_do_not_count(tmp_path):
    run = recipe_run(tmp_path / "run", CLIP, imagenet(49.5, 70.0))
    scores = {"imagenet_zero_shot": 49.5, "imagenet_linear_probe": 70.0}
    other = {"dataset": "mnist", "task": "zeroshot_classification", "metrics": {"acc1": 0.9}}
    for number, source in enumerate(("../../other/checkpoints/epoch_26.pt", "ViT-B-32:openai")):
        write_json(run / f"evaluation/{number}.json", other | {"epoch": 26, "source": source})
    (run / "evaluation/cut.json").write_text('{"epoch": 25, "metr')
    assert values(run) == pytest.approx(scores)
    averaged = recipe_run(tmp_path / "averaged", CLIP, imagenet(1, 2), epoch=None)
    assert values(averaged) == {}
    early = find_scores(str(recipe_run(tmp_path / "early", CLIP, imagenet(1, 2), epoch=5)), run)
    assert early.problems == ["its scores are those of epoch 5 of 125"]


@cases("lines, scores", table("runs: results that were cut"))
def test_a_line_that_was_cut_hides_no_other_and_only_those_of_the_last_epoch_count(
    lines, scores, tmp_path
):
    run = openclip_run(tmp_path / "run", lines)
    (run / "run.json").write_text('{"run": ')  # the options are in params.txt, too
    assert [*values(run).values()] == scores


def test_results_of_a_released_model_are_in_the_folder_of_out(tmp_path):
    results = {("mnist", "zeroshot_classification"): {"acc1": 0.9}}
    write_results(tmp_path / "out", results, epoch=None, source="ViT-B-32:openai")
    found = find_scores("ViT-B-32:openai", tmp_path / "out")
    assert found.scores["mnist zero shot"].value == 90
    assert not find_scores("ViT-B-32:laion2b_e16", tmp_path / "out").scores


def test_without_any_score_it_fails_in_one_line(tmp_path, refused):
    (tmp_path / "other").mkdir()
    error = refused(tmp_path, "evaluate nowhere other --out out")
    assert error.startswith("error: there are no scores (nowhere: there is no such run, ")
    assert "other: no results; --data DIR evaluates it" in error
    error = refused(tmp_path, "evaluate other --suite probe --out out")
    assert "--suite has no effect with no --data" in error
