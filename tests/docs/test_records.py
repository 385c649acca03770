"""The records of studies hold what their pages say, and pages quote no
other intervals."""

import csv
import re

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel
from support import ROOT, parametrize, read_json, read_rows
from support.pages import PAGES, marked, script

STUDIES = ROOT / "studies"
verdicts = script("studies/verdicts.py")
FOUND = verdicts.read_comparisons()
WITHOUT_CELLS = {  # studies without a swept field
    file.parent.relative_to(STUDIES).as_posix()
    for file in STUDIES.rglob("study.csv")
    if not {"lr", "global_batch_size", "shards", "version"} & {*read_rows(file)[0]}
}
UNFINISHED = {"head_rate"}
LONGER = STUDIES / "longer_fine_tuning"
script(LONGER / "run_study.py")
analyse = script(LONGER / "analyse.py")
RESULTS = analyse.read_results(LONGER / "runs")
RECORDS = sorted({path.parent for path in STUDIES.glob("**/README.md")} - {STUDIES})


@parametrize("folder", RECORDS, ids=lambda folder: folder.relative_to(STUDIES).as_posix())
def test_a_record_is_listed_and_names_its_commit_and_command(folder):
    name = folder.relative_to(STUDIES).as_posix()
    assert f"]({name}/README.md)" in (STUDIES / "README.md").read_text()
    if name not in UNFINISHED:
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


@parametrize("study", sorted({one.study for one in FOUND} & WITHOUT_CELLS))
def test_a_studys_differences_follow_from_its_csv(study):
    scores = {}
    for row in read_rows(STUDIES / study / "study.csv"):
        for measure in row.keys() & verdicts.TITLES.keys():
            scores.setdefault((row["arm"], measure), []).append(float(row[measure]))
    for one in FOUND:
        if one.study == study:
            ours, theirs = scores[one.arm, one.measure], scores[one.baseline, one.measure]
            assert np.subtract(ours, theirs).mean() == pytest.approx(one.mean, abs=0.01), one
            if any(one.differences):
                assert ttest_rel(ours, theirs).pvalue == pytest.approx(one.p, rel=0.1), one


def test_holms_correction_of_an_example_and_the_power_of_simulated_studies():
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    draws = np.random.default_rng(0).normal(3.2, 4.1, (4000, 20))
    rate = (ttest_1samp(draws, 0, axis=1).pvalue <= 0.05).mean()
    assert rate == pytest.approx(verdicts.power(3.2, 4.1, 20), abs=0.02)


def test_a_verdict_is_a_gain_or_a_loss_only_after_correction_and_at_equal_tuning():
    for one in FOUND:
        if one.verdict in ("gain", "loss"):
            assert one.holm <= 0.05 and not one.flaw and not one.is_unequally_tuned, one
            assert not one.interval[0] <= 0 <= one.interval[1], one
        if one.verdict == "no gain":
            assert one.interval[1] < verdicts.SMALLEST_EFFECT[one.study], one


def test_the_tables_of_the_records_are_the_computed_ones():
    for page, tables in verdicts.blocks(FOUND).items():
        for name, content in tables.items():
            assert f"<!-- {name} -->\n{content}\n<!-- end of {name} -->" in page.read_text(), page
    rows = [*csv.reader((STUDIES / "verdicts.csv").read_text().splitlines())]
    assert rows == verdicts.verdicts_csv(FOUND)
    changed = sum(one.depends_on_family for one in FOUND)
    assert f"{changed} comparisons depend on it" in (STUDIES / "README.md").read_text()


def test_the_tables_of_longer_fine_tuning_are_computed_from_its_runs():
    assert (LONGER / "results.md").read_text() == analyse.report(RESULTS)


QUOTED = re.compile(r"([+−-]\d+\.\d) (?:points )?\\?\[([+−-]\d+\.\d), ([+−-]\d+\.\d)\\?\]")


@parametrize("page", PAGES)
def test_a_page_quotes_at_most_six_intervals_all_of_the_records(page):
    quoted = {
        "{} [{}, {}]".format(*numbers).replace("-", "−")
        for numbers in QUOTED.findall(" ".join(PAGES[page].split()))
    }
    assert len(quoted) <= 6
    both, _, others = analyse.words(RESULTS)
    assert quoted <= {*map(str, FOUND), *(one.text(1) for one in both + others)}
    if page == "docs/results.md":
        assert quoted <= {str(comparison) for _, comparison in verdicts.cases(FOUND)}


def test_the_table_of_the_demo_is_that_of_its_record_and_readme_quotes_it():
    table = marked("studies.md", "demo table").strip()
    assert table in (STUDIES / "demo/study.md").read_text()
    (row,) = re.findall(
        r"\| zero shot \(primary\) \| (\S+) ± .*? \| (\S+) ± .*? \| (.+?) \|", table
    )
    assert "rises from {} % to {} %: {} points".format(*row) in " ".join(PAGES["README.md"].split())
