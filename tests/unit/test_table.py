"""Tables in Markdown, and scores over several seeds."""

import pytest

from openclip_superclip.pages import markdown_table
from openclip_superclip.studies.statistics import Spread


def test_a_cell_with_a_bar_or_a_line_break_stays_one_cell_of_one_row():
    assert markdown_table(["", "a|b"], [["one\ntwo", ""]]) == "| | a\\|b |\n|---|---|\n| one two | |"


@pytest.mark.parametrize(("values", "told"), [([1.0], "1.0"), ([1.0, 3.0], "2.0 ± 1.4"), ([2.0, 2.0], "2.0 ± 0.0")])
def test_a_spread_is_mean_and_deviation_and_one_seed_has_no_deviation(values, told):
    assert str(Spread(values)) == told
