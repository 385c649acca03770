"""The site builds without a warning, and does not hold the records of studies."""

import sys

import pytest
from support import ROOT, succeed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = f"{sys.executable} -m mkdocs build --strict --site-dir {folder}".split()
    done = succeed(build, cwd=ROOT)
    assert 'not included in the "nav"' not in done.stderr
    return folder


def test_the_site_builds_without_a_warning_and_its_navigation_holds_every_page(site):
    assert "class_loss" in (site / "api.html").read_text()


def test_links_to_records_lead_to_the_repository(site):
    assert not (site / "studies").exists()
    assert 'href="../studies' not in (site / "studies.html").read_text()
