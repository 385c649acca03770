"""Intervals: the bootstrap over test samples, against slow plain versions and scipy's."""

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score

from openclip_superclip.errors import InputError
from openclip_superclip.evaluation.outcomes import (
    MEAN,
    PRECISION,
    RECALL,
    RESAMPLES,
    Outcome,
    _means,
    _precisions,
    _recalls,
    draws,
    interval,
    mcnemar,
    read_outcomes,
    right,
    write_outcomes,
)

RNG = np.random.default_rng(0)
HITS = RNG.random(400) < 0.3
OTHER = np.where(RNG.random(400) < 0.2, RNG.random(400) < 0.6, HITS)


def test_a_resample_scores_what_the_repeated_samples_score():
    labels = RNG.integers(0, 7, 50)
    hits = RNG.random(50) < 0.5
    captions = RNG.integers(1, 6, 50)
    found = RNG.binomial(captions, 0.4)
    scores, relevant = RNG.normal(size=(50, 3)), RNG.integers(0, 2, (50, 3))
    counts = RNG.multinomial(50, [1 / 50] * 50, size=20)
    columns = [part[:, None] for part in (found, captions, hits, labels)]
    means, recalls = _means(counts, *columns[:2]), _recalls(counts, *columns[2:])
    precisions = _precisions(counts, scores, relevant)
    for row, count in enumerate(counts):
        places = np.repeat(np.arange(50), count)
        assert means[row] == pytest.approx(found[places].sum() / captions[places].sum())
        predicted = np.where(hits, labels, -1)[places]
        assert recalls[row] == pytest.approx(balanced_accuracy_score(labels[places], predicted))
        by_class = []
        for score, label in zip(scores.T, relevant.T, strict=True):
            precise = [label[places][score[places] >= score[place]].mean() for place in places if label[place]]
            by_class.append(np.mean(precise))
        assert precisions[row] == pytest.approx(np.mean(by_class))


def test_intervals_are_those_of_scipys_bootstrap_for_one_model_and_for_a_pair():
    drawn = draws([right(HITS), right(OTHER)], "imagenet1k")
    assert drawn.shape == (RESAMPLES, 2)
    for values, samples in ((drawn[:, 0], HITS), (drawn[:, 1] - drawn[:, 0], OTHER.astype(float) - HITS)):
        theirs = bootstrap((samples,), np.mean, method="percentile", rng=0).confidence_interval
        assert interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.005)
    alone = np.std(drawn[:, 1]) ** 2 + np.std(drawn[:, 0]) ** 2
    assert np.var(drawn[:, 1] - drawn[:, 0]) < alone / 2  # paired: what both share is no luck of the difference


def test_the_same_samples_give_the_same_interval_and_other_data_sets_others():
    assert np.array_equal(draws([right(HITS)], "a"), draws([right(HITS)], "a"))
    assert not np.array_equal(draws([right(HITS)], "a"), draws([right(HITS)], "b"))


def test_mcnemar_asks_only_where_two_models_differ():
    first = right(np.array([1] * 10 + [0] * 90))
    assert mcnemar(first, first) == 1.0
    better = right(np.array([1] * 15 + [0] * 85))
    assert mcnemar(first, better) == pytest.approx(2 / 2**5)  # five to none
    assert mcnemar(first, right(np.array([0] * 5 + [1] * 10 + [0] * 85))) == 1.0  # five to five
    assert mcnemar(Outcome(MEAN, HITS, np.full(400, 5)), first) is None


def test_outcomes_are_read_as_they_were_written(tmp_path):
    outcomes = {
        "acc1": right(HITS),
        "mean_per_class_recall": Outcome(RECALL, HITS.astype(np.uint8), RNG.integers(0, 9, 400)),
        "mean_average_precision": Outcome(PRECISION, RNG.normal(size=(400, 3)), RNG.integers(0, 2, (400, 3))),
    }
    write_outcomes(tmp_path / "outcomes.npz", outcomes)
    read = read_outcomes(tmp_path / "outcomes.npz")
    assert read.keys() == outcomes.keys()
    for name, outcome in outcomes.items():
        assert read[name].kind == outcome.kind
        assert np.array_equal(read[name].scored, outcome.scored)
        assert np.array_equal(read[name].of, outcome.of)
    assert read_outcomes(tmp_path / "nowhere.npz") == {}
    broken = tmp_path / "x.outcomes.npz"
    for size in (0, 30, 300):
        broken.write_bytes((tmp_path / "outcomes.npz").read_bytes()[:size])
        with pytest.raises(InputError, match=r"x.outcomes.npz is broken \(.*\): remove it and x.json beside it"):
            read_outcomes(broken)
