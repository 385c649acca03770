"""Names and texts from files reach neither the terminal as control
characters."""

import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import parametrize, write_json
from support.training_runs import call

from openclip_superclip.__main__ import main
from openclip_superclip.errors import InputError, one_line, printable
from openclip_superclip.rendering import markdown_text

# A colour, a window's title, a byte that begins a sequence in Latin-1, a
# return to the line's start, a reversed text.
EVIL = "\x1b[31m\x1b]0;title\x07\x9b2J\u202e\rx"
COMMANDS = """
export {} --out out
average {} {} --out out
words {} --model x
evaluate x --data {}
plan {}
patch apply --source {}
frequencies x.csv --tokenizer-of {} --out o
submit {} --dry-run
study {}
"""


def assert_is_one_error(text, *parts):
    """The text is one error line without control characters, which shows
    those of EVIL."""
    (line,) = text.splitlines()
    assert line.startswith("error: ")
    assert not [character for character in line if unicodedata.category(character)[0] == "C"]
    assert all(part in line for part in (r"\x1b[31m", *parts)), line


@parametrize("command", COMMANDS.strip().splitlines())
def test_an_error_shows_the_control_characters_of_an_argument_as_escapes(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    code = main([part.format(EVIL) for part in command.split()])
    assert code == (2 if command.startswith("patch") else 1)
    assert_is_one_error(capsys.readouterr().err)


def test_an_unknown_command_or_flag_is_shown_with_escapes(capsys):
    assert main([EVIL]) == 2
    assert_is_one_error(capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["export", "x", "--out", "y", f"--{EVIL}"])
    assert_is_one_error(capsys.readouterr().err)


def test_the_names_of_tensors_and_fields_of_json_are_shown_with_escapes(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("a", EVIL):
        torch.save({f"visual.{name}": torch.zeros(1)}, f"{'other' if name == EVIL else 'first'}.pt")
    assert call("average first.pt other.pt --out out.pt") == 1
    assert_is_one_error(capsys.readouterr().err, "visual.a is missing")
    text = {"tokenizer_kwargs": {EVIL: EVIL}}
    write_json(Path("x.json"), {"embed_dim": 8, "vision_cfg": {}, "text_cfg": text})
    assert call("export first.pt --model x.json --out out") == 1
    assert_is_one_error(capsys.readouterr().err)


def test_a_table_of_words_shows_an_images_name_with_escapes(squares_run, tmp_path, capsys):
    Image.new("RGB", (32, 32)).save(tmp_path / f"{EVIL}.png")
    assert main(["words", f"{tmp_path}/{EVIL}.png", "--model", str(squares_run)]) == 0
    printed = capsys.readouterr().out
    assert r"\x1b[31m" in printed
    assert not [one for one in printed if unicodedata.category(one)[0] == "C" and one != "\n"]


def test_text_in_any_script_is_shown_as_it_is():
    text = "ein Bär 熊 медведь दिल دب 🐻‍❄️ e\u0301"
    assert printable(text) == text


def test_an_error_of_several_lines_is_one_line_and_that_of_a_worker_has_no_traceback():
    assert one_line(InputError("a\nb")) == r"a\nb"
    worker = (
        "Caught InputError in DataLoader worker process 0.\nTraceback:\n  File "
        '"x"\npackage.InputError: row 3\n'
    )
    assert one_line(InputError(worker)) == "row 3"


def test_markdown_shows_html_and_links_as_text():
    assert markdown_text("<img src=x> [a](b)\n# c *d*") == r"\<img src=x\> [a\](b) \# c \*d\*"


def test_control_characters_of_names_are_escapes_in_files_that_a_terminal_may_show():
    assert markdown_text("\x1b[31mred\u202e") == r"\\x1b[31mred\\u202e"
