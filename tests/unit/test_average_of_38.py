"""The average over 38 data sets: which sets it contains, and what each set adds."""

import pytest
from clip_benchmark.datasets.builder import dataset_collection

from openclip_superclip.evaluation.suites import THE_38, VTAB_PLUS, averages


def results(names: list[str]) -> list[dict]:
    return [{"dataset": name, "task": "zeroshot_classification", "metrics": {"acc1": 0.5}} for name in names]


def test_the_38_are_clip_benchmarks_vtab_plus_and_two_more():
    assert dataset_collection["vtab+"] == VTAB_PLUS
    assert len(set(THE_38)) == len(THE_38) == 38


def test_an_average_is_over_the_data_sets_that_all_models_share_and_of_two_at_least():
    probe = {"dataset": "mnist", "task": "linear_probe", "metrics": {"lp_acc1": 0.9}}
    some = [*results(["mnist", "cars", "fer2013"]), probe]
    assert averages([results(THE_38), some])["average of 3 of the 38"] == [0.5, 0.5]
    assert averages([results(THE_38)])["average of 38"] == [pytest.approx(0.5)]
    assert averages([results(["mnist"]), results(["cars"])]) == {}
