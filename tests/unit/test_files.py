"""Files: JSON, and outputs that are written whole or not at all; texts of
messages and tables."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import input_error, parametrize

from openclip_superclip.files import (
    atomic_output,
    check_out,
    json_or_empty,
    make_folder,
    read_json,
)
from openclip_superclip.rendering import bytes_text, markdown_table, significant


@parametrize("content", [None, "", "{", "[1]", b"\xff"])
def test_a_file_without_a_json_object_is_an_error_that_names_it_or_empty(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert json_or_empty(path) == {}
    with input_error(r"^--data: .*a\.json cannot be read \(.*\): remove it$") as error:
        read_json(path, flag="--data", advice="remove it")
    assert "\n" not in str(error.value)


def test_nothing_is_left_of_an_output_that_fails(tmp_path):
    with pytest.raises(OSError, match="No space left"):  # noqa: SIM117
        with atomic_output(tmp_path / "out", overwrite=True) as part:
            part.mkdir()
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def replaced(tmp_path):
    """A folder that is replaced while a signal comes; its files."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    return out


def replace(out):
    with atomic_output(out, overwrite=True) as part:
        part.mkdir()
        (part / "new").touch()


@parametrize("renamed", range(3))
def test_a_signal_between_two_renames_loses_no_output(replaced, monkeypatch, renamed):
    renames = []

    def rename(source, target):
        if len(renames) == renamed:
            monkeypatch.undo()
            raise KeyboardInterrupt
        renames.append(source)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", rename)
    if renamed == 2:  # there are only two
        replace(replaced)
    else:
        with pytest.raises(KeyboardInterrupt):
            replace(replaced)
    assert os.listdir(replaced.parent) == ["out"]
    assert os.listdir(replaced) == ["new" if renamed == 2 else "old"]


def test_the_next_call_restores_the_output_that_a_killed_one_was_replacing(replaced):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    name = f"out.{socket.gethostname()}-{killed.pid}"
    replaced.rename(replaced.with_name(f"{name}.old"))
    replaced.with_name(f"{name}.part").mkdir()
    with input_error("out exists, and --overwrite is not given"):
        check_out(replaced, [], "superclip", overwrite=False, folder=True)
    assert os.listdir(replaced.parent) == ["out"]
    assert os.listdir(replaced) == ["old"]


def test_an_output_below_a_folder_that_holds_no_files_is_an_input_error():
    with input_error(r"^--out: /proc cannot be written \("):  # noqa: SIM117
        with atomic_output(Path("/proc/out")) as part:
            part.mkdir()
    for folder in ("/proc", "/proc/out"):
        with input_error(rf"^--data: {folder} cannot be written \("):
            make_folder(Path(folder), "--data")


def test_a_cell_with_a_bar_or_a_line_break_stays_one_cell_of_one_row():
    assert (
        markdown_table(["", "a|b"], [["one\ntwo", ""]]) == "| | a\\|b |\n|---|---|\n| one two | |"
    )


def test_large_numbers_have_no_exponent():
    numbers = (0.00001234, 0.5, 12.345, 123.4, 999.6, 1094, 41888, 1e9)
    shown = "1.23e-05 0.5 12.3 123 1,000 1,090 41,900 1,000,000,000"
    assert [*map(significant, numbers)] == shown.split()
    assert significant(1234.56, 4) == "1,235"
    assert [*map(bytes_text, (999, 999_600, 1_090_000))] == ["999 B", "1 MB", "1.09 MB"]
