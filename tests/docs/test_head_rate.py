"""The analysis of head_rate follows its protocol, on made-up scores."""

import json
import random

import pytest
from scipy.stats import ttest_1samp
from support import ROOT, parametrize
from support.pages import script

FOLDER = ROOT / "studies/head_rate"
study = script(FOLDER / "run_study.py")
analyse = script(FOLDER / "analyse.py")


def result(run, choice, offset):
    """A complete result whose scores are `offset` above a random number of the seed."""
    base = 30 + random.Random(f"{run.part} {run.seed}").gauss(0, 2)
    noise = random.Random(run.name).gauss(0, 0.5)
    names = (study.A_MEASURES if run.part == "A" else study.B_MEASURES) - {"choice"}
    measures = dict.fromkeys(names, base + offset + noise) | {"choice": choice}
    kinds = {"cosine": {"mAP": base}, "softmax": {"mAP": base}}
    if run.arm == "superclip":
        kinds["head"] = {"mAP": base + offset}
    images = study.longer.IMAGES if run.part == "A" else ("test",)
    return {
        **{name: getattr(run, name) for name in ("part", "seed", "rate", "arm")},
        **dict.fromkeys(("started", "ended", "processor", "versions", "commit"), "x"),
        "head": {"lr": "3e-3", "wd": "0.2"} if run.arm == "superclip" else None,
        "cpu_seconds": 1.0,
        "weights": "x",
        "measures": measures,
        "words": dict.fromkeys(images, kinds),
    }


def write(folder, gain, part="AB", left_out=""):
    """Writes results in which the higher rates, which are not chosen, are much worse."""
    for run in study.study_runs():
        if run.part not in part or run.name == left_out:
            continue
        is_chosen = run.rate == ("1e-4" if run.arm == "clip" else "3e-4")
        offset = (gain if run.arm == "superclip" else 0.0) if is_chosen else -20.0
        content = result(run, 50.0 if is_chosen else 40.0, offset)
        (folder / f"{run.name}.json").write_text(json.dumps(content))
    return analyse.read_parts(folder)


@parametrize(
    "gain, verdict",
    [
        (5.0, "gain"),
        (-5.0, "loss"),
        (0.0, "no gain (more than"),
        (1.2, "gain, too small to matter"),
    ],
)
def test_verdicts_compare_the_chosen_rates(gain, verdict, tmp_path):
    parts, missing = write(tmp_path, gain)
    assert not missing
    for part in parts:
        effects = part.primary() + part.secondary()
        assert all(effect.verdict.startswith(verdict) for effect in effects)
        assert part.primary()[0].mean == pytest.approx(gain, abs=1)
        assert "clip 1e-4: 8, 3e-4: 0" in analyse.rates_text(part)


def test_an_interval_and_a_corrected_p_value_are_those_of_scipy(tmp_path):
    (part, _), _ = write(tmp_path, 1.0)
    effects = part.secondary()
    for effect in effects:
        test = ttest_1samp(effect.values, 0)
        assert effect.interval == pytest.approx([*test.confidence_interval(0.95)])
    assert min(effect.corrected for effect in effects) == pytest.approx(
        5 * min(effect.p for effect in effects)
    )


def test_of_equal_rates_the_lowest_is_chosen(tmp_path):
    (part, _), _ = write(tmp_path, 0.0)
    for value in part.results.values():
        value["measures"]["choice"] = 1.0
    assert {*analyse.Part(part.name, part.results).chosen.values()} == {"1e-4"}


def test_an_unfinished_part_has_no_score_and_no_verdict(tmp_path):
    parts, missing = write(tmp_path, 5.0, left_out="A_clip_lr-1e-3_seed415")
    assert [part.name for part in parts] == ["B"]
    text = analyse.report(parts, missing)
    assert "A. scenes: unfinished, no verdict** (1 runs" in text
    assert "zero-shot" not in text
    (words,), _ = analyse.words(parts)
    assert words.corrected == pytest.approx(min(1, 2 * words.p))  # that of A is unknown


def test_runs_that_were_made_differently_are_refused(tmp_path):
    write(tmp_path, 0.0)
    file = tmp_path / "B_clip_lr-1e-4_seed500.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "versions": "y"}))
    with pytest.raises(SystemExit, match="differ in versions"):
        analyse.read_parts(tmp_path)
