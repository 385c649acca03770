"""Scores and intervals of outcomes, against slow plain versions and
scipy's, and averages over data sets."""

import inspect
import math

import numpy as np
import pytest
import torch
from clip_benchmark.datasets.builder import dataset_collection
from clip_benchmark.metrics.zeroshot_classification import accuracy, average_precision_per_class
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from support import parametrize

from openclip_superclip.evaluation import intervals
from openclip_superclip.evaluation.features import EvaluationSettings, Features
from openclip_superclip.evaluation.intervals import (
    IOU,
    MEAN,
    PRECISION,
    RECALL,
    RMSE,
    Outcome,
    difference,
    estimate,
    right,
)
from openclip_superclip.evaluation.metrics import _of_logits, linear_probe_metrics
from openclip_superclip.evaluation.suites import THE_38, VTAB_PLUS, averaged

RNG = np.random.default_rng(0)
HITS = RNG.random(400) < 0.3
LABELS = RNG.integers(0, 7, 400)


def test_a_score_is_what_sklearn_computes():
    captions = RNG.integers(1, 300, 50)  # more than uint8 can hold
    found = RNG.binomial(captions, 0.9)
    assert estimate(Outcome(MEAN, found, captions)).value == pytest.approx(
        found.sum() / captions.sum()
    )
    assert estimate(Outcome(RECALL, HITS, LABELS)).value == pytest.approx(
        balanced_accuracy_score(LABELS, np.where(HITS, LABELS, -1))
    )
    scores, relevant = RNG.random((50, 3)), RNG.integers(0, 2, (50, 3))
    assert estimate(Outcome(PRECISION, scores, relevant)).value == pytest.approx(
        average_precision_score(relevant, scores)
    )


@parametrize("num_right", [0, 1, 150, 399, 400])
def test_an_accuracys_interval_is_wilsons_and_holds_the_score(num_right):
    hits = np.arange(400) < num_right
    theirs = binomtest(num_right, 400).proportion_ci(method="wilson")
    found = estimate(right(hits))
    assert found[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert found.low <= found.value <= found.high
    of_one = estimate(right(hits[:1]))  # one image proves little
    assert of_one.high - of_one.low > 0.7


def test_a_difference_is_newcombes_published_example():
    """Newcombe (1998), Statistics in Medicine 17:2635, table II, method 10:
    36, 12, 2, 0 pairs."""
    first = right(np.array([1] * 36 + [1] * 12 + [0] * 2))
    second = right(np.array([1] * 36 + [0] * 12 + [1] * 2))
    found = difference(second, first)
    assert found.value == pytest.approx(0.2)
    assert found[1:] == pytest.approx((0.0569, 0.3404), abs=5e-4)


def outcome_of(kind):
    if kind == PRECISION:
        labels = RNG.integers(0, 2, (40, 3))
        return Outcome(kind, RNG.random((40, 3)) + 0.3 * labels, labels)
    either = RNG.integers(0, 2, (40, 3 if kind == IOU else 1)) * RNG.integers(1, 50, (40, 1))
    return Outcome(kind, RNG.random(either.shape) * either, either)


@parametrize("kind", [PRECISION, IOU, RMSE])
def test_a_difference_does_not_contain_what_two_models_share(kind):
    one = outcome_of(kind)
    two = one._replace(scored=one.scored * np.linspace(0.8, 1, 40)[:, None])
    apart, alone = difference(one, two), [estimate(one), estimate(two)]
    for interval in (apart, *alone):
        assert interval.low <= interval.value <= interval.high
    assert apart.high - apart.low < math.hypot(*(each.high - each.low for each in alone))
    assert difference(one, one).value == 0


def test_equal_logits_are_decided_as_clip_benchmark_decides_them():
    logits = torch.tensor(RNG.integers(0, 4, (300, 12)), dtype=torch.bfloat16)  # ties in every row
    target = torch.tensor(RNG.integers(0, 12, 300))
    found = _of_logits(logits, target, 12)
    assert estimate(found["acc1"]).value == pytest.approx(accuracy(logits, target, topk=(1, 5))[0])
    assert estimate(found["mean_per_class_recall"]).value == pytest.approx(
        balanced_accuracy_score(target, logits.argmax(axis=1))
    )
    labels = torch.tensor(RNG.integers(0, 2, (300, 12)))
    found = _of_logits(logits.float(), labels, 12)["mean_average_precision"]
    precisions = average_precision_per_class(logits.float(), labels)
    assert estimate(found).value == pytest.approx(precisions.mean().item(), abs=1e-6)


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
    settings = EvaluationSettings("cpu", precision, 8, 0, 0.1, 2, dense_lr=1.0, dense_epochs=1)
    ours, outcomes = linear_probe_metrics(train, test, settings)
    assert [ours["lp_acc1"], ours["lp_acc5"]] == [theirs["lp_acc1"], theirs["lp_acc5"]]
    assert outcomes["lp_acc1"].scored.mean() == pytest.approx(theirs["lp_acc1"])


def test_outcomes_are_read_as_they_were_written_and_damaged_ones_are_none(tmp_path):
    precision = Outcome(PRECISION, RNG.normal(size=(9, 3)), RNG.integers(0, 2, (9, 3)))
    written, file = {"acc1": right(HITS), "mAP": precision}, tmp_path / "x.outcomes.npz"
    intervals.write_outcomes(file, written)
    read = intervals.read_outcomes(file)
    assert read.keys() == written.keys()
    for name, (kind, *arrays) in written.items():
        assert read[name].kind == kind
        assert all(map(np.array_equal, read[name][1:], arrays))
    content = file.read_bytes()
    for damaged in (b"", content[:-30], content[:100] + b"x" + content[101:]):
        file.write_bytes(damaged)
        assert intervals.read_outcomes(file) == {}


def results(names):
    return [
        {"dataset": name, "task": "zeroshot_classification", "metrics": {"acc1": 0.5}}
        for name in names
    ]


def test_an_average_is_over_the_data_sets_that_all_models_share_and_of_two_at_least():
    assert dataset_collection["vtab+"] == VTAB_PLUS
    assert len(set(THE_38)) == len(THE_38) == 38
    probe = {"dataset": "mnist", "task": "linear_probe", "metrics": {"lp_acc1": 0.9}}
    some = [*results(["mnist", "cars", "fer2013"]), probe]
    for shared in averaged([results(THE_38), some])["average of 3 of the 38"]:
        assert {record["dataset"] for record, _ in shared} == {"mnist", "cars", "fer2013"}
    (parts,) = averaged([results(THE_38)])["average of 38"]
    assert [record["metrics"][measure] for record, measure in parts] == [0.5] * 38
    assert averaged([results(["mnist"]), results(["cars"])]) == {}
