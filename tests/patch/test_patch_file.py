"""The patch itself, on the four released wheels: what it changes, and that git and patch take it."""

import os
import subprocess
from pathlib import Path

import pytest
import whatthepatch
from support.openclip_releases import CHANGED, HOOKS, PATCH, RELEASES, copy, each_release

from openclip_superclip import hooks
from openclip_superclip.__main__ import main
from openclip_superclip.openclip import patching


@each_release
def test_a_patch_adds_our_hooks_byte_for_byte(release, patched):
    ours = Path(hooks.__file__).read_bytes()
    assert (patched[release] / HOOKS).read_bytes() == ours, "run patches/refresh.py"


@each_release
def test_git_accepts_the_patch_on_the_unpacked_wheel(release, released, tmp_path):
    check = ["git", "apply", "--check", "--verbose", PATCH]
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": "/"}
    copied = copy(released[release], tmp_path / release)
    done = subprocess.run(check, cwd=copied, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Checking patch") == len(CHANGED) + 1


@pytest.mark.parametrize(("folder", "flags"), [(".", []), ("src", ["-d", "src"])], ids=["site-packages", "checkout"])
@each_release
def test_the_patch_program_gives_what_the_command_gives(release, folder, flags, released, patched, tmp_path):
    copied = copy(released[release], tmp_path / "copy" / folder)
    with open(PATCH) as patch:
        command = ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch", *flags]
        subprocess.run(command, stdin=patch, cwd=tmp_path / "copy", check=True)
    for path in [*CHANGED, HOOKS]:
        assert (copied / path).read_bytes() == (patched[release] / path).read_bytes()
    assert main(["patch", "check", "--source", str(tmp_path / "copy")]) == 0


def test_the_patch_is_a_few_lines_that_know_nothing_of_superclip():
    text = PATCH.read_text()
    assert "superclip" not in text.lower()
    diffs = {diff.header.new_path: diff for diff in whatthepatch.parse_patch(text)}
    assert diffs.keys() == {*CHANGED, HOOKS}
    changes = [change for path in CHANGED for change in diffs[path].changes]
    assert sum(change.new is None for change in changes) == 9
    assert sum(change.old is None for change in changes) <= 64
    assert len(changes) <= 190  # the rest is the context by which a hunk is found


def test_there_is_a_patch_for_each_of_the_releases():
    assert list(patching.patches()) == [*RELEASES, "4.2.0.dev0"]


def test_the_patch_for_the_main_branch_adds_our_hooks_byte_for_byte_and_knows_nothing_of_superclip():
    patch = patching.Patch(patching.patches()["4.2.0.dev0"])
    assert patch.apply(HOOKS, b"") == Path(hooks.__file__).read_bytes(), "run patches/refresh.py"
    assert b"superclip" not in patch.text.lower()
    assert patch.diffs.keys() == {*CHANGED, HOOKS, "open_clip/task/coca_task.py"}
