"""The averages over many data sets: of which sets they are, and what each set adds."""

import pytest

from openclip_superclip.evaluation.suites import (
    DATACOMP,
    DATACOMP_BY_CLASS,
    RETRIEVAL,
    SUGAR_CREPE,
    THE_38,
    VTAB_PLUS,
    averages,
)

RECALL = {"image_retrieval_recall@1": 0.2, "text_retrieval_recall@1": 0.6}
ACCURACY = {"acc1": 0.5, "mean_per_class_recall": 0.1}


def results(names: list[str]) -> list[dict]:
    retrieval = [{"dataset": n, "task": "zeroshot_retrieval", "metrics": RECALL} for n in names if n in RETRIEVAL]
    others = [name for name in names if name not in RETRIEVAL]
    return retrieval + [{"dataset": n, "task": "zeroshot_classification", "metrics": ACCURACY} for n in others]


def test_vtab_plus_is_clip_benchmarks():
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    assert builder.dataset_collection["vtab+"] == VTAB_PLUS
    assert builder.dataset_collection["sugar_crepe"] == SUGAR_CREPE


def test_their_numbers_of_data_sets():
    assert len(set(THE_38)) == len(THE_38) == 38
    assert len(set(DATACOMP)) == 32  # CLIP_benchmark lacks six of DataComp's 38


def test_datacomps_average_takes_the_recall_of_the_classes_for_four_sets_and_both_directions_of_retrieval():
    expected = (26 * 0.5 + len(DATACOMP_BY_CLASS) * 0.1 + 2 * 0.4) / 32
    assert averages([results(DATACOMP)])["datacomp38 (32 of 38)"] == [pytest.approx(expected)]


def test_an_average_is_over_the_data_sets_that_all_models_share_and_of_two_at_least():
    probe = {"dataset": "mnist", "task": "linear_probe", "metrics": {"lp_acc1": 0.9}}
    some = [*results(["mnist", "cars", "fer2013"]), probe]
    assert averages([results(THE_38), some])["average of 3 of the 38"] == [0.5, 0.5]
    assert averages([results(THE_38)])["average of 38"] == [pytest.approx(0.5)]
    assert averages([results(["mnist"]), results(["cars"])]) == {}
