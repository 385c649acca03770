"""The studies' pages give what follows from their scores, and other pages quote no other
intervals."""

import csv
import itertools
import re

import numpy as np
import pytest
from ruamel.yaml import YAML
from scipy.stats import ttest_1samp
from support import ROOT, parametrize, read_json, read_rows
from support.pages import PAGES, marked, script

STUDIES = ROOT / "studies"
verdicts = script("studies/verdicts.py")
FOUND, HISTORY = verdicts.read_comparisons()
LONGER = STUDIES / "longer_fine_tuning"
script(LONGER / "run_study.py")
analyse = script(LONGER / "analyse.py")
RESULTS = analyse.read_results(LONGER / "runs")
HEAD_RATE = STUDIES / "head_rate"
script(HEAD_RATE / "run_study.py")
head_rate = script(HEAD_RATE / "analyse.py")
PARTS, MISSING = head_rate.read_parts(HEAD_RATE / "runs")
RECORDS = sorted(path.parent for path in STUDIES.glob("*/README.md"))
PAGES_OF_STUDIES = {"studies": STUDIES / "README.md"} | {
    folder.name: folder / "README.md" for folder in RECORDS
}


@parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_a_record_is_listed_and_names_its_commit_and_command(folder):
    assert f"]({folder.name}/README.md)" in (STUDIES / "README.md").read_text()
    page = (folder / "README.md").read_text()
    assert re.search(r"^Made at commit [0-9a-f]{10}:\s`(superclip|python) ", page, re.MULTILINE)


@parametrize("file", sorted(STUDIES.rglob("study.json")), ids=lambda file: file.parent.name)
def test_a_studys_rows_are_its_runs_and_its_page_gives_the_number_of_seeds(file):
    content = read_json(file)
    scores = [
        (run["arm"], str(run["seed"]), *(f"{score:.2f}" for score in run["measures"].values()))
        for run in content["runs"]
    ]
    measures = content["runs"][0]["measures"]
    rows = [
        (row["arm"], row["seed"], *(row[measure] for measure in measures))
        for row in read_rows(file.with_name("study.csv"))
    ]
    assert rows == scores
    page = " ".join(file.with_name("README.md").read_text().split())
    assert f"n = {content['study']['seeds']} paired seeds" in page


def test_each_interval_and_p_value_is_that_of_the_paired_differences():
    for one in FOUND:
        assert one.seeds == [*range(one.seeds[0], one.seeds[0] + one.n)], one  # none is left out
        if any(one.differences):
            test = ttest_1samp(one.differences, 0)
            assert one.interval == pytest.approx([*test.confidence_interval(0.95)]), one
            assert one.p == pytest.approx(test.pvalue), one


def test_each_planned_comparison_of_a_record_is_in_the_verdicts():
    for file in STUDIES.rglob("study.json"):
        ours = {round(one.mean, 6) for one in FOUND if one.study == file.parent.name}
        for recorded in read_json(file)["differences"]:
            if any(recorded["values"]):
                assert round(recorded["mean"], 6) in ours, (file, recorded["arm"])


def test_holms_correction_of_an_example():
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_verdict_is_a_gain_or_a_loss_only_after_correction():
    for one in FOUND:
        if one.verdict in ("gain", "loss"):
            assert one.corrected <= 0.05, one
            assert not one.interval[0] <= 0 <= one.interval[1], one
        if one.verdict == "no gain":
            assert one.interval[1] < one.smallest_effect, one


def test_a_family_that_a_protocol_calls_all_studies_has_the_primary_comparisons_of_all():
    tests = [one for one in FOUND if one.is_primary and any(one.differences)] + HISTORY
    (second,) = [one for one in FOUND if one.name == "SuperCLIP − second contrastive"][:1]
    smaller = sum(one.p < second.p for one in tests)
    assert second.corrected == pytest.approx((len(tests) - smaller) * second.p)


def test_the_tables_of_the_records_are_the_computed_ones():
    for page, table in verdicts.tables(FOUND).items():
        assert f"{verdicts.START}{table}{verdicts.END}" in page.read_text(), page
    rows = [*csv.reader((STUDIES / "verdicts.csv").read_text().splitlines())]
    assert rows == verdicts.verdict_rows(FOUND)


def test_the_answers_of_studies_in_the_history_are_those_of_their_comparisons():
    page = (STUDIES / "README.md").read_text()
    answers = dict(re.findall(r"^\| ([\w/]+) \| \w{10} \| .* \| (.*) \|$", page, re.MULTILINE))
    assert {one.study for one in HISTORY} <= answers.keys()
    for one in HISTORY:
        if one.is_answer and not answers[one.study].startswith("no verdict: "):
            assert answers[one.study].split(":")[0] == one.verdict, one.study


def test_the_tables_of_longer_fine_tuning_are_computed_from_its_runs():
    assert (LONGER / "results.md").read_text() == analyse.report(RESULTS)


def test_the_tables_of_head_rate_are_computed_from_the_runs_of_its_finished_parts():
    numbers = r"unfinished, no verdict\*\* \(\d+ runs"  # its runs are committed as they end
    shown, computed = (
        re.sub(numbers, "", text)
        for text in ((HEAD_RATE / "results.md").read_text(), head_rate.report(PARTS, MISSING))
    )
    assert shown == computed
    (part,) = (part for part in PARTS if part.name == "B")
    for title, measure in (head_rate.PRIMARY["B"] | head_rate.SECONDARY["B"]).items():
        one = verdicts.find(
            FOUND, "head_rate", "SuperCLIP − CLIP, each at its chosen rate", measure
        )
        assert one.differences == pytest.approx(part.at_chosen_rates(title, measure).values)


QUOTED = re.compile(r"([+−-]\d+\.\d) (?:points )?\\?\[([+−-]\d+\.\d), ([+−-]\d+\.\d)\\?\]")


def quoted(text):
    return {
        "{} [{}, {}]".format(*numbers).replace("-", "−")
        for numbers in QUOTED.findall(" ".join(text.split()))
    }


def recorded():
    both, _, others = analyse.words(RESULTS)
    words = [*both, *others, *itertools.chain(*head_rate.words(PARTS))]
    return {*map(str, FOUND), *(one.text(1) for one in words)}


@parametrize("page", PAGES)
def test_a_page_quotes_at_most_six_intervals_all_of_the_records(page):
    assert len(quoted(PAGES[page])) <= 6
    assert quoted(PAGES[page]) <= recorded()


@parametrize("page", PAGES_OF_STUDIES)
def test_a_studys_page_quotes_only_intervals_of_the_records(page):
    assert quoted(PAGES_OF_STUDIES[page].read_text()) <= recorded()


def scores_of(study, arm, measure="zero_shot"):
    runs = read_json(STUDIES / study / "study.json")["runs"]
    return [run["measures"][measure] for run in runs if run["arm"] == arm]


def test_the_scores_beside_the_demos_picture_are_those_of_ten_seeds():
    clip, superclip = (np.mean(scores_of("placebos", arm)) for arm in ("CLIP", "SuperCLIP"))
    sentence = f"rises from {clip:.1f} % to {superclip:.1f} %"
    assert sentence in " ".join(PAGES["README.md"].split())


@parametrize("page", ["README.md", "docs/words.md", "docs/results.md"])
def test_the_precision_of_the_heads_words_is_that_of_the_runs(page):
    (part,) = (part for part in PARTS if part.name == "B")
    shown = [
        np.mean([part.mean_ap(seed, arm, kind) for seed in head_rate.SEEDS["B"]])
        for arm, kind in (("superclip", "head"), ("clip", "softmax"))
    ]
    text = " ".join(PAGES[page].replace("*", "").split())
    assert re.search(r"{:.1f}\b.{{1,30}}\b{:.1f} %".format(*shown), text)


def test_the_table_of_the_demo_is_that_of_ten_seeds():
    rows = re.findall(
        r"^\| (.*?)(?: \(primary\))? \| (\S+ ± \S+) \| (\S+ ± \S+) \| (.*) \|$",
        marked("studies.md", "demo table"),
        flags=re.MULTILINE,
    )
    assert len(rows) == 5
    for name, *shown, difference in rows:
        measure = name.replace(" ", "_")
        for arm, cell in zip(("CLIP", "SuperCLIP"), shown, strict=True):
            scores = scores_of("placebos", arm, measure)
            assert cell == f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f}"
        assert difference == str(verdicts.find(FOUND, "placebos", "SuperCLIP − CLIP", measure))


def test_the_numbers_of_the_paper_are_those_of_the_recipes():
    recipes = YAML(typ="safe").load(ROOT / "recipes/datacomp1b.yaml")["runs"]

    def score(name):
        return recipes[name]["paper"]["values"]["imagenet_zero_shot"]

    page = " ".join(PAGES["docs/results.md"].split())
    for clip, superclip in re.findall(r"\| (\d\d\.\d) \| (\d\d\.\d) \| \+", page):
        assert f"| {clip} | {superclip} | +{float(superclip) - float(clip):.1f} |" in page
    pairs = {
        name: score(f"super{name}") - score(name)
        for name in recipes
        if f"super{name}" in recipes and "imagenet_zero_shot" in recipes[name]["paper"]["values"]
    }
    assert len(pairs) == 10
    shown = {"clip_vit-b-16_512m_bs1k", "clip_vit-b-16_512m_bs16k"}
    others = [gain for name, gain in pairs.items() if "vit-l" not in name and name not in shown]
    assert f"differences are +{min(others):.1f} to +{max(others):.1f}" in page
    falls = [
        score(f"{method}_vit-b-16_512m_bs16k") - score(f"{method}_vit-b-16_512m_bs1k")
        for method in ("superclip", "clip")
    ]
    assert "SuperCLIP loses {:.1f} points and CLIP {:.1f}".format(*falls) in page
    low, high = min(pairs.values()), max(pairs.values())
    assert f"+{low:.1f} (12.8 B samples) to +{high:.1f} points" in PAGES["README.md"]
