from argparse import Namespace

import pytest

from openclip_superclip.errors import InputError
from openclip_superclip.rules import Rule, at_least, check

RULES = [
    Rule("--batch is {batch:,}; expected a power of two", lambda facts: facts.batch & (facts.batch - 1)),
    Rule("--data: {found[0]} is empty, {{0..9}}.tar", lambda facts: [name for name in facts.files if not name.strip()]),
]


@pytest.mark.parametrize(
    "facts, message",
    [
        (Namespace(batch=3000, files=[" "]), "--batch is 3,000; expected a power of two"),
        (Namespace(batch=4096, files=["a", " "]), "--data:   is empty, {0..9}.tar"),
    ],
)
def test_the_first_broken_rule_is_the_error(facts, message):
    with pytest.raises(InputError) as error:
        check(RULES, facts)
    assert str(error.value) == message


def test_facts_that_break_no_rule_pass():
    check(RULES, Namespace(batch=4096, files=["a"]))


@pytest.mark.parametrize("value, accepted", [(1, True), (2, True), (None, True), (0, False), (float("nan"), False)])
def test_an_option_has_a_smallest_value(value, accepted):
    if accepted:
        return at_least(Namespace(num_jobs=value), num_jobs=1)
    with pytest.raises(InputError, match=f"--num-jobs is {value}; expected 1 or more"):
        at_least(Namespace(num_jobs=value), num_jobs=1)
