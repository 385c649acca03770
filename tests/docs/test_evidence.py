"""The evidence pages state what the records of the studies hold, and no
verdict contradicts its CSV."""

import collections
import csv
import json
import re

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel
from support import parametrize, read_json, read_rows
from support.pages import PAGES, ROOT, marked, script

from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.study.study_file import Study, read_study
from openclip_superclip.study.study_results import StudyResults

DOCS = ROOT / "docs"
STUDIES = DOCS / "studies"
RECORDED = {path.parent.name: path for path in sorted(STUDIES.glob("*/study.json"))}


def recorded(path):
    return read_json(DOCS / path)


verdicts = script("studies/verdicts.py")
FOUND = verdicts.read_comparisons()


def results(name):
    content = read_json(RECORDED[name])
    study = content["study"]
    for field, cells in study["cells"].items():
        if isinstance(cells, dict) and field != "shards":  # JSON's keys are text
            study["cells"] = {field: {json.loads(cell): fields for cell, fields in cells.items()}}
    return StudyResults(Study(**study), content["runs"])


@parametrize("name", RECORDED)
def test_the_files_of_a_study_hold_the_same_and_its_page_says_why_it_has_fewer_seeds_than_planned(
    name,
):
    found, folder = results(name), RECORDED[name].parent
    # of studies that are not shipped
    files = [file for file in (folder / "decision.yaml", folder / f"{name}.yaml") if file.exists()]
    shipped = read_study(str(files[0]) if files else name)
    assert f"{found.tables()}\n" == (folder / "study.md").read_text()
    assert found.csv() == (folder / "study.csv").read_text()
    assert (folder / "study.png").is_file()
    for field in "question primary recipe arms measures choose pairs cell_values".split():
        assert getattr(found.study, field) == getattr(shipped, field), field
    page = " ".join((folder / "README.md").read_text().split())
    assert f"n = {found.study.seeds} paired seeds" in page
    assert found.study.seeds <= shipped.seeds
    assert ("seeds were planned" in page and "computing time" in page) == (
        found.study.seeds < shipped.seeds
    )


# An independent derivation from the CSV files alone: {(study, comparison,
# measure): (arm's scores, baseline's scores)}


def scores_by_csv():
    found = collections.defaultdict(dict)
    for file in sorted(STUDIES.rglob("study.csv")):
        study, rows = file.parent.relative_to(STUDIES).as_posix(), read_rows(file)
        swept = next((field for field in ("lr", "global_batch_size") if field in rows[0]), None)
        for row in rows:
            where = f", {swept} {row[swept]}" if swept else version(row)
            others = "arm seed cpu_seconds checkpoint shards version".split()
            for measure in row.keys() - {*others, swept}:
                scores = found[study, row["arm"], where, measure]
                scores[int(row["seed"])] = float(row[measure])
    for row in read_rows(DOCS / "audit/train_again.csv"):
        key = "train_again", row["trained on"], f", {row['method']}", row["measure"]
        found[key][int(row["seed"])] = float(row["percent"])
    return {
        key: np.array([scores[seed] for seed in sorted(scores)]) for key, scores in found.items()
    }


def version(row):
    """The version of a study's scenes, or the captions and frequencies that
    the name of its shards gives."""
    if "version" in row:
        return f", {row['version']}"
    return re.sub(
        r".*/(\w+)-(\w+)-.*", r", \1 captions, \2 frequencies", row.get("shards", "")
    ).replace("zipf", "Zipf's")


FIRST = [-0.5, 0.5] * 2
SECOND = [-0.5, -0.5, 0.5, 0.5]
EFFECTS = {  # weights of four versions, of which the first factor changes fastest
    ", careless − clean captions": FIRST,
    ", Zipf's − equal frequencies": SECOND,
    ", 100 − 25 objects": FIRST,
    ", 128 − 512 scenes of each": SECOND,
    ", interaction": [1, -1, -1, 1],
}


def differences_by_csv(one):
    """The scores of a comparison's arms; of a sweep's mean or slope, the
    combined differences and zeros."""
    where = one.name.removeprefix(f"{one.arm} − {one.baseline}")
    if (one.study, one.arm, where, one.measure) in SCORES:
        return [SCORES[one.study, arm, where, one.measure] for arm in (one.arm, one.baseline)]
    values = [
        key[2] for key in SCORES if (key[0], key[1], key[3]) == (one.study, one.arm, one.measure)
    ]
    if where in EFFECTS:
        weights = EFFECTS[where]
    elif where == ", mean":
        weights = [1 / len(values)] * len(values)
    else:
        points = np.array([float(value.rpartition(" ")[2]) for value in values])
        logs = np.log2(points) - np.log2(points).mean()
        weights = logs / (logs**2).sum()  # the least-squares slope over log2
        if where == ", mean up to CLIP's best rate":
            weights = np.where(points <= 5e-4, 0.5, 0)
    combined = sum(
        weight
        * (
            SCORES[one.study, one.arm, value, one.measure]
            - SCORES[one.study, one.baseline, value, one.measure]
        )
        for weight, value in zip(weights, values, strict=True)
    )
    return [combined, np.zeros(len(combined))]


SCORES = scores_by_csv()
BY_CSV = [differences_by_csv(one) for one in FOUND]


def test_mean_interval_n_and_p_of_each_comparison_follow_from_its_csv():
    for one, (ours, theirs) in zip(FOUND, BY_CSV, strict=True):
        assert one.n == len(ours) == len(one.seeds), one
        assert one.seeds == [*range(one.seeds[0], one.seeds[0] + one.n)], one  # no seed is left out
        if np.array_equal(ours, theirs):
            assert (one.mean, one.p, one.holm) == (0, 1, 1), one
            continue
        test = ttest_rel(ours, theirs)
        assert one.mean == pytest.approx((ours - theirs).mean(), abs=0.01), one
        assert one.interval == pytest.approx([*test.confidence_interval(0.95)], abs=0.02), one
        assert one.p == pytest.approx(test.pvalue, rel=0.1), one


def test_exactly_the_comparisons_that_holms_procedure_rejects_by_the_csv_are_significant():
    """Holm's rule as he states it: reject the smallest p-values while p(k)
    <= 5 % / (m - k)."""
    families = {}
    for one, (ours, theirs) in zip(FOUND, BY_CSV, strict=True):
        if np.array_equal(ours, theirs):
            continue
        key = tuple((ours - theirs).round(6))
        of_all = ["all studies"]
        if one.study in verdicts.OWN_FAMILY or not one.is_primary:
            of_all = []
        of_study = [] if one.flaw else [(one.study, one.is_primary)]
        for family in of_all + of_study:
            families.setdefault(family, {}).setdefault(key, []).append(one)
    by_all = rejected({"all studies": families.pop("all studies")})
    assert {
        id(one) for one in FOUND if one.holm_of_all is not None and one.holm_of_all <= 0.05
    } == by_all
    assert {id(one) for one in FOUND if one.holm <= 0.05} == rejected(families)
    assert {one.study for one in FOUND if one.is_primary} == {
        *(file.parent.relative_to(STUDIES).as_posix() for file in STUDIES.rglob("study.csv")),
        "train_again",
    }


def rejected(families):
    """The comparisons that Holm's procedure rejects in each family."""
    significant = set()
    for family in families.values():
        ordered = sorted(family, key=lambda key: ttest_1samp(key, 0).pvalue)
        for rank, key in enumerate(ordered):
            if ttest_1samp(key, 0).pvalue > 0.05 / (len(ordered) - rank):
                break
            significant |= {id(one) for one in family[key]}
    return significant


EVIDENCE_ROW = re.compile(
    r"\| \[(.+)\]\((.+)\) \| .*? \| .*? \| (.*?)(\S+ \[\S+, \S+\]) \| (\d+) \| (.+) \|"
)


def test_each_verdict_of_the_evidence_page_follows_from_its_csv():
    rows = [
        EVIDENCE_ROW.fullmatch(line)
        for line in PAGES["docs/evidence.md"].splitlines()
        if line.startswith("| [")
    ]
    claims = [claim for claim in verdicts.CLAIMS if verdicts.tested(claim, FOUND)]
    for claim, row in zip(claims, rows, strict=True):
        title, link, means, difference, n, verdict = row.groups()
        assert title == claim.text
        assert (DOCS / link).is_file()
        place = FOUND.index(verdicts.tested(claim, FOUND))
        ours, theirs = BY_CSV[place]
        mean, is_equal = (ours - theirs).mean(), np.array_equal(ours, theirs)
        if theirs.any():
            shown = [float(value) for value in re.findall(r"[\d.]+", means)]
            assert shown == pytest.approx([theirs.mean(), ours.mean()], abs=0.06)
        numbers = [float(value) for value in re.findall(r"[+-][\d.]+", difference)]
        interval = (0, 0) if is_equal else ttest_rel(ours, theirs).confidence_interval(0.95)
        assert numbers == pytest.approx([mean, *interval], abs=0.07)
        assert int(n) == len(ours)
        excludes_zero = interval[0] > 0 or interval[1] < 0
        if FOUND[place].flaw:
            expected = "cannot answer"
        elif is_equal:
            expected = "**equal**"
        elif FOUND[place].holm <= 0.05:
            expected = "**shown**" if mean * claim.sign > 0 else "**opposite**"
        else:
            expected = "**not after correction**" if excludes_zero else "**not shown**"
        assert verdict.startswith(expected), title


def test_the_tables_of_the_pages_and_the_list_of_verdicts_are_the_computed_ones():
    for page, tables in verdicts.blocks(FOUND).items():
        for name, content in tables.items():
            assert f"<!-- {name} -->\n{content}\n<!-- end of {name} -->" in page.read_text(), page
    rows = [*csv.reader((STUDIES / "verdicts.csv").read_text().splitlines())]
    assert rows == verdicts.verdicts_csv(FOUND)


def test_holms_correction_and_power_of_examples():
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # the rate at which simulated studies exclude zero
    draws = np.random.default_rng(0).normal(3.2, 4.1, (4000, 20))
    rate = (ttest_1samp(draws, 0, axis=1).pvalue <= 0.05).mean()
    assert rate == pytest.approx(verdicts.power(3.2, 4.1, 20), abs=0.02)


def test_the_limits_of_a_share_are_where_the_rest_of_the_gain_becomes_significant():
    draws = np.random.default_rng(0).normal((4, 10), (2, 3), (8, 2)).T
    half, whole = (
        verdicts.Comparison(measure="", seeds=[*range(8)], differences=list(gain)) for gain in draws
    )
    share, low, high = verdicts.share_that_remains(half, whole)
    assert share == pytest.approx(half.mean / whole.mean)
    assert low < share < high
    for limit in (low, high):
        assert ttest_1samp(draws[0] - limit * draws[1], 0).pvalue == pytest.approx(0.05)


def test_the_table_of_the_demo_is_what_it_printed_and_readme_quotes_its_primary_measure():
    table = marked("demo.md", "demo table")
    assert table.strip() in results("demo").tables()
    (row,) = re.findall(
        r"\| zero shot \(primary\) \| (\S+) ± .*? \| (\S+) ± .*? \| (.+?) \|", table
    )
    readme = " ".join(PAGES["README.md"].split())
    assert "rises from {} % to {} % (mean difference {}).".format(*row) in readme
    assert f"zero-shot {row[2]}" in readme


def test_the_table_of_contributed_runs_is_that_of_their_records_and_asks_for_gpus():
    table = marked("results/README.md", "results")
    assert table == script("results/table.py").table()
    folders = [path for path in (DOCS / "results/runs").iterdir() if path.is_dir()]
    assert len(folders) == sum(
        f"]({path.relative_to(DOCS / 'results')}/record.json)" in table for path in folders
    )
    for folder in folders:
        fields = "recipe settings versions device ranks processor gpu scores code".split()
        assert {*fields} <= recorded(f"results/runs/{folder.name}/record.json").keys()
    for recipe in re.findall(r"\*yours:\* `(.*?)`", table):
        assert read_recipe(recipe)


def test_the_tables_of_a_page_are_what_its_script_or_command_measured():
    planted = recorded("audit/planted.json")["measured"]
    tables = {
        "forgetting": script("forgetting/measure.py").table(DOCS / "forgetting/forgetting.csv"),
        "audit/planted": script("audit/measure.py").tables(planted),
        "audit/train_again": script("audit/train_again.py").tables(
            recorded("audit/train_again.json")
        ),
    }
    for page, table in tables.items():
        assert table in (DOCS / f"{page}.md").read_text(), page


def test_the_tables_of_the_tuning_study_of_fine_tuning_are_those_of_its_runs():
    tables = script("studies/finetune_defaults/tables.py")
    page = (STUDIES / "finetune_defaults/README.md").read_text()
    for table in tables.tables(tables.read_arms()):
        assert table in page
