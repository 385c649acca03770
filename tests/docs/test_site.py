"""The site builds without a warning, and its own search finds a question
first where a guide answers it."""

import sys

import pytest
from support import ROOT, read_json, succeed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = f"{sys.executable} -m mkdocs build --strict --site-dir {folder}".split()
    done = succeed(build, cwd=ROOT)
    assert 'not included in the "nav"' not in done.stderr
    return folder


def test_the_site_builds_without_a_warning_and_its_navigation_holds_every_page(site):
    assert "class_loss" in (site / "api.html").read_text()


def test_the_search_leaves_out_pages_of_records_which_the_site_holds(site):
    searched = {entry["location"] for entry in read_json(site / "search/search_index.json")["docs"]}
    assert (site / "studies/natural/protocol.html").exists()
    records = ("studies/", "audit/", "results/", "word-course/")
    assert not [page for page in searched if page.startswith(records)]
    assert "studies.html" in searched
