"""A study's file, and what a study shows of its records."""

import contextlib
import dataclasses
import threading

import pytest
import torch
from ruamel.yaml import YAML
from scipy import stats
from support import (
    DATA,
    cases,
    input_error,
    parametrize,
    read_json,
    refusals,
    table,
    write_json,
)

from openclip_superclip.checkpoints.trainer_files import RECORD
from openclip_superclip.demo.data import model_of, shards_of
from openclip_superclip.plans.recipe import WORDS
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.runs.folder import RunFolder, lock
from openclip_superclip.runs.slurm import Placement
from openclip_superclip.study.configuration import DEMO, StudyOptions, configure
from openclip_superclip.study.paired_differences import paired_difference
from openclip_superclip.study.runs import runs_of
from openclip_superclip.study.study_file import MEASURES, read_study, study_files
from openclip_superclip.study.study_results import StudyResults, check_measures
from openclip_superclip.study.study_run import StudyRun, measured
from openclip_superclip.study.training import plan_seeds, run_study, write_results


def write_study(folder, **values):
    path = folder / "which.yaml"
    YAML().dump(YAML(typ="safe").load(DATA / "which.yaml") | values, path)
    return str(path)


def configured(study, **options):
    return configure(StudyOptions(study=study, device="cpu", **options))


def test_every_shipped_study_can_be_read_and_called_and_names_its_primary_measure():
    assert {"one_batch", "own_data"} <= {path.stem for path in study_files()}
    for path in study_files():
        study = read_study(path.stem)
        assert study.primary in MEASURES[study.measures]
        if study.is_of_scenes:
            trained = configured(path.stem).study.first_recipe
            assert (trained.model, trained.shards) == (model_of(DEMO), shards_of(DEMO))


def test_the_batch_size_study_trains_the_shipped_recipes():
    study = read_study("datacomp_batch_size")
    assert study.cell_values == [1024 * 2**n for n in range(6)]
    for cell in study.cell_values:
        for arm, method in (("CLIP", "clip"), ("SuperCLIP", "superclip")):
            ours = read_recipe(study.recipe, study.settings(arm, cell)).as_dict()
            shipped = read_recipe(f"datacomp1b/{method}_vit-b-16_512m_bs{cell // 1024}k").as_dict()
            assert {name for name in ours | shipped if ours.get(name) != shipped.get(name)} <= {
                *WORDS
            }


def test_a_run_has_the_fields_of_the_study_its_cell_and_its_arm(tmp_path):
    cells = {"global_batch_size": {16: {"warmup": 256}, 32: {}}}
    everywhere = {"wd": 0.1, "flags.grad-checkpointing": True, "flags.pretrained": None}
    study_file = write_study(tmp_path, cells=cells, set=everywhere, compare=None)
    study = read_study(study_file)
    texts = {"wd": "0.1", "flags.grad-checkpointing": "true", "flags.pretrained": "null"}
    assert study.cell_values == [16, 32]
    assert study.settings("SuperCLIP", 16) == {**texts, "global_batch_size": "16", "warmup": "256"}
    assert study.settings("CLIP longer", 32) == {
        **texts,
        "global_batch_size": "32",
        "method": "clip",
        "samples": "45056",
    }
    assert study.pairs == [("SuperCLIP", "CLIP"), ("CLIP longer", "CLIP")]
    names = {run.folder.name for run in runs_of(configured(study_file, out=tmp_path / "out"))}
    assert "clip-longer_global_batch_size-32_seed0" in names
    assert len(names) == 18


def test_a_folder_that_is_no_run_of_the_study_is_refused(tmp_path):
    folder = tmp_path / "runs/clip_lr-0.001_seed0"
    folder.mkdir(parents=True)
    runs_of(configured("demo", out=tmp_path))
    write_json(folder / RECORD, {"run": {}})
    with input_error("clip_lr-0.001_seed0 is not a run of this study: give --out another folder"):
        runs_of(configured("demo", out=tmp_path))


@cases("message, fields", YAML(typ="safe").load(DATA / "refused_studies.yaml"))
def test_a_wrong_file_is_refused_in_one_line_and_nothing_is_written(
    message, fields, tmp_path, refused
):
    assert message in refused(tmp_path, f"study {write_study(tmp_path, **fields)} --out out")


@cases("arguments, message", refusals("study"))
def test_wrong_arguments_are_refused_in_one_line_and_nothing_is_written(
    arguments, message, tmp_path, refused
):
    assert message in refused(tmp_path, f"study {arguments}")


# Differences

A_AND_B = {"A": {"method": "clip"}, "B": {}}


def difference_of(values):
    return paired_difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))


@parametrize("values", [[1.0, 2.0], [0.1 * n**2 for n in range(10)]])
def test_the_interval_is_that_of_students_paired_test(values):
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert difference_of(values).interval == pytest.approx((interval.low, interval.high))


@parametrize("values", [[5.0], [4.99999999999999, 5.0]])
def test_one_seed_and_equal_differences_have_no_interval_and_exclude_nothing(values):
    difference = difference_of(values)
    assert (difference.interval, difference.verdict, str(difference)) == (
        None,
        "not significant",
        "+5.0",
    )
    assert difference_of([0.0, 0.0]).verdict == "not significant"


def records(**scores):
    """Records of a seed each for arms A and B."""
    return [
        {
            "arm": arm,
            "cell": None,
            "seed": seed,
            "run": f"{arm}_seed{seed}",
            "checkpoint": f"{arm}{seed}",
            "measures": {"probe": 50.0 + seed, "zero_shot": score},
        }
        for arm, values in scores.items()
        for seed, score in enumerate(values)
    ]


def test_differences_are_paired_by_seed_whatever_the_order_of_the_records_and_written_as_numbers(
    tmp_path,
):
    study = configured(write_study(tmp_path, arms=A_AND_B), out=tmp_path)
    results = StudyResults(study.study, records(A=[50, 60, 70], B=[53, 62, 74])[::-1], [3])
    assert results.differences("B", "A", None)["zero_shot"].values == [3, 2, 4]
    write_results(results, study)
    (compared, *_) = read_json(tmp_path / "study.json")["differences"]
    assert (compared["measure"], compared["values"]) == ("zero_shot", [3, 2, 4])


def test_the_answer_is_the_primary_measures_and_an_extended_study_has_wider_intervals(tmp_path):
    study = configured(write_study(tmp_path, arms=A_AND_B)).study
    of_runs = records(A=[50, 60, 70], B=[53, 62, 74])
    for run in of_runs:
        run["measures"]["probe"] += 5 * (run["arm"] == "B") + run["measures"]["zero_shot"] / 1e3
    planned = StudyResults(study, of_runs, [3])
    extended = StudyResults(study, of_runs, [2, 3])
    assert planned.sentences() == ["B − A: above zero in zero shot, the primary measure."]
    assert "over 3 seeds; differences are paired by seed, with their 95 %" in planned.tables()
    assert "over 3 seeds, extended after 2 seeds; " in extended.tables()
    assert "97.1 % interval" in extended.tables()
    assert extended.sentences() == ["B − A: not significant in zero shot, the primary measure."]
    assert "3 seeds of 10 planned; " in StudyResults(study, of_runs, [3, 10]).tables()


@parametrize(
    "before, is_finished, seeds, planned",
    [
        ({}, False, 10, [10]),
        ({"planned_seeds": [10]}, False, 20, [20]),  # no score has been seen
        ({"planned_seeds": [10]}, True, 10, [10]),
        ({"planned_seeds": [10]}, True, 20, [10, 20]),
        ({"planned_seeds": [10]}, True, 5, [5, 10]),
        ({"planned_seeds": [1]}, True, 4, [4]),  # one seed has no interval
        ({"runs": [{"seed": 0}, {"seed": 1}]}, True, 2, [2]),  # of an earlier release
        ({"runs": [{"seed": 0}, {"seed": 1}]}, True, 4, [2, 4]),
    ],
)
def test_the_number_of_seeds_is_written_before_the_first_run(
    before, is_finished, seeds, planned, tmp_path
):
    study = configured("demo", out=tmp_path, seeds=seeds)
    (run, *_) = runs_of(study)
    if before:
        write_json(tmp_path / "study.json", {"primary": "zero_shot"} | before)
    if is_finished:
        run.folder.mkdir(parents=True)
        write_json(run.folder / "state.json", {"state": "finished"})
    assert plan_seeds(study, [run]) == planned
    record = read_json(tmp_path / "study.json")
    assert record["planned_seeds"] == planned
    assert record["primary"] == "zero_shot"


def test_a_run_without_a_finite_primary_score_is_refused():
    found = records(A=[50, float("nan")])
    with input_error("A_seed1 was measured without a finite zero_shot: "):
        check_measures(read_study("demo"), found)


@pytest.fixture
def trained(tmp_path):
    """The folder of a finished run, with a checkpoint."""
    (tmp_path / "a/checkpoints").mkdir(parents=True)
    torch.save({"epoch": 1}, tmp_path / "a/checkpoints/epoch_1.pt")
    return tmp_path / "a"


def study_run(folder, data=None):
    demo = dataclasses.replace(configured("demo", out=folder.parent), data=data)
    return StudyRun(demo, "A", None, 0, {}, read_recipe(demo.study.recipe), folder)


def measure(folder):
    return measured(study_run(folder))


@parametrize("damage", ["", "[]"])
def test_a_run_is_measured_once_and_again_if_its_measures_are_damaged(damage, trained, monkeypatch):
    monkeypatch.setattr(
        "openclip_superclip.study.study_run._measure", lambda *_: {"zero_shot": 41.5}
    )
    first = measure(trained)
    (trained / "demo-test.json").write_text(damage)
    assert measure(trained) == first == read_json(trained / "demo-test.json")
    monkeypatch.setattr("openclip_superclip.study.study_run._measure", None)
    assert measure(trained) == first
    write_json(trained / "state.json", {"state": "finished", "epoch": 2})
    with input_error(r"is finished but lacks its last checkpoint"):
        measure(trained)


@cases("after, reason", table("runs: failed runs"))
def test_a_study_says_why_the_last_start_of_a_run_failed(after, reason, trained, monkeypatch):
    def train(_, output, *__, **___):
        output.write_text("as it may")
        write_json(trained / "state.json", after)
        return 1

    (trained / "state.json").write_text('{"error": "stopped"}')
    monkeypatch.setattr("openclip_superclip.study.study_run.run_superclip", train)
    with input_error(f"a failed: {reason}; see"):
        study_run(trained, data="{0..9}.tar").train(threading.Event())


def test_a_study_trains_and_validates_on_the_tables_of_its_own_seeds(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"{seed}.csv").write_text("image,caption\na.png,a cat\nb.png,a dog\n")
    tables = f"{tmp_path}/{{seed}}.csv"
    study = write_study(
        tmp_path,
        arms=A_AND_B,
        set={
            "shards": tables,
            "flags.val-data": tables,
            "samples": "2 passes",
            "global_batch_size": 1,
            "lr": 1e-3,
        },
        measures="validation",
        primary="image_to_text_R@1",
        seeds=2,
    )
    assert {
        (run.recipe.shards, run.recipe.flags["val-data"], run.recipe.samples)
        for run in runs_of(configured(study, out=tmp_path / "out"))
    } == {(f"{tmp_path}/{seed}.csv",) * 2 + (4,) for seed in (0, 1)}


def test_a_run_that_another_study_writes_before_the_lock_is_taken_is_refused(tmp_path, monkeypatch):
    demo = configured("demo", out=tmp_path / "out", seeds=1)
    run, *_ = runs_of(demo)
    other = dataclasses.replace(run.described(), data="elsewhere/{000..001}.tar")

    @contextlib.contextmanager
    def waiting_lock(*_):
        run.run_folder.write(other, attempts=[{"started": "noon"}])
        yield

    training = "openclip_superclip.study.training"
    monkeypatch.setattr(f"{training}.lock", waiting_lock)
    monkeypatch.setattr(f"{training}.write_data", lambda _: None)
    monkeypatch.setattr(StudyRun, "train", None)
    with input_error("give --out another folder"):
        run_study(demo, 1)


@parametrize(
    "trainer", ["job 17 already trains", "belongs to another run: process", "a failed: as it may"]
)
def test_a_study_does_not_start_a_run_that_is_trained_elsewhere(trainer, trained, monkeypatch):
    (trained / "squeue").symlink_to("/bin/false")  # it does not answer: the job may be in the queue
    monkeypatch.setenv("PATH", str(trained))
    if "job" in trainer:
        RunFolder(trained).note_submission("17")
    held = lock(trained / "lock", Placement()) if "process" in trainer else contextlib.nullcontext()
    if "failed" in trainer:  # the job's earlier start held the lock
        owner = {"job": "17", "restarts": 0, "host": "elsewhere", "pid": 1, "since": "noon"}
        write_json(trained / "lock", owner)
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        train = "openclip_superclip.study.study_run.run_superclip"
        monkeypatch.setattr(train, lambda _, output, *__, **___: output.write_text("as it may"))
    with held, input_error(trainer):
        study_run(trained, data="pairs.csv").train(threading.Event())
    assert (trained / "checkpoints/epoch_1.pt").exists() == ("failed" not in trainer)
