"""`--help` of every command ends with an example that the command takes."""

import re
import shlex

import pytest
from support.pages import parse_superclip, superclip_parser

from openclip_superclip.__main__ import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_the_command_takes(command, monkeypatch):
    shown = superclip_parser(command, monkeypatch).format_help()
    (example,) = re.findall(r"\nexample: (superclip .*)\n$", shown, flags=re.DOTALL)
    program, *argv = shlex.split(example)
    assert (program, argv[0]) == ("superclip", command)
    assert parse_superclip(argv, monkeypatch)
