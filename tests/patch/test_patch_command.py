"""superclip patch: the patches themselves; apply, check and revert,
interrupted or given bad input; and pip."""

import csv
import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, parametrize
from support.openclip_trees import (
    HOOKS,
    PIP,
    RELEASES,
    copy,
    each_release,
    held,
    metadata,
)
from support.training_runs import call, on_a_full_disk, run_ranks

import openclip_superclip
from openclip_superclip import hooks
from openclip_superclip.__main__ import main
from openclip_superclip.trainer import disk_patch
from openclip_superclip.trainer.hook_calls import PATCHED_FILES

SCHEDULER = "open_clip_train/scheduler.py"  # of OpenCLIP 3
OUR_HOOKS = Path(hooks.__file__).read_bytes()


@pytest.fixture
def wheel(released, tmp_path):
    """The last release, unpacked: the files that matter to the patch, and
    RECORD."""
    return copy(released["3.3.0"], tmp_path / "wheel")


@pytest.fixture
def superclip_patch(capsys):
    """`superclip patch` of the OpenCLIP in a folder: its exit code and what
    it printed."""

    def superclip_patch(action, folder):
        capsys.readouterr()
        code = call(f"patch {action} --source {folder}")
        return code, "".join(capsys.readouterr())

    return superclip_patch


# The patches


def test_each_release_and_the_main_branch_has_a_patch_that_does_not_mention_superclip():
    assert list(disk_patch.patches()) == [*RELEASES, "4.2.0.dev0"]
    others = {"3.3.0": SCHEDULER, "4.2.0.dev0": "open_clip/task/coca_task.py"}
    for release, other in others.items():
        patches = disk_patch.patches()[release]
        ours = disk_patch.blob_id(Path(hooks.__file__))
        assert [*patches[HOOKS].ids.values()] == [ours], "run patches/refresh.py"
        assert not any("superclip" in patch.diff.lower() for patch in patches.values())
        assert patches.keys() == {*PATCHED_FILES, HOOKS, other}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Makes PATH a folder of only these programs."""
    path = os.environ["PATH"]

    def programs(*names):
        folder = tmp_path / "-".join(["bin", *names])
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(shutil.which(name, path=path))
        monkeypatch.setenv("PATH", str(folder))

    return programs


@parametrize("release", ["3.0.0", "3.3.0"])
def test_git_and_the_patch_program_give_the_same_files(
    release, released, patched, programs, superclip_patch, tmp_path, monkeypatch
):
    outer = tmp_path / "repository"
    subprocess.run(["git", "init", "--quiet", outer], check=True)
    monkeypatch.setenv("GIT_DIR", str(outer / ".git"))
    # in a repository, git would skip files outside of its folder
    copied = {name: copy(released[release], outer / name) for name in ("git", "patch")}
    for name, folder in copied.items():
        before = held(folder)
        programs(name)
        assert superclip_patch("apply", folder)[0] == 0
        for path in [*PATCHED_FILES, HOOKS]:
            assert (folder / path).read_bytes() == (patched[release] / path).read_bytes()
        assert superclip_patch("revert", folder)[0] == 0
        assert held(folder) == before


def test_without_both_programs_one_line_says_so_and_nothing_is_touched(
    wheel, programs, superclip_patch
):
    before = held(wheel)
    programs()
    code, output = superclip_patch("apply", wheel)
    assert (code, output.count("\n")) == (2, 1)
    assert "calls git or patch, and neither is on PATH" in output
    assert superclip_patch("check", wheel)[0] == 1
    assert held(wheel) == before


# Apply and revert


@each_release
def test_a_release_is_patched_once_and_reverted_to_its_exact_bytes(
    release, released, superclip_patch, tmp_path
):
    copied, info = copy(released[release], tmp_path / "copy"), metadata(release)
    before, about = held(copied), f"open_clip_torch {release} in {copied}"
    code, output = superclip_patch("apply", copied)
    first, *files = output.splitlines()
    assert (code, first) == (0, f"{about}: applied")
    changed = [f"  changed {path}" for path in [*PATCHED_FILES, SCHEDULER, f"{info}/RECORD"]]
    assert sorted(files) == sorted([*changed, f"  added {HOOKS}"])
    assert (copied / HOOKS).read_bytes() == OUR_HOOKS, "run patches/refresh.py"
    patched = held(copied)
    assert listed(copied, release) >= patched.keys() - before.keys()
    assert superclip_patch("apply", copied) == (0, f"{about}: already applied\n")
    assert held(copied) == patched
    cached = copied / "open_clip/__pycache__/hooks.cpython-311.pyc"
    cached.parent.mkdir()
    cached.touch()
    code, output = superclip_patch("revert", copied)
    assert code == 0
    assert f"{about}: reverted\n  removed {HOOKS}\n" in output
    assert held(copied) == before
    assert "nothing to revert" in superclip_patch("revert", copied)[1]
    assert held(copied) == before


def listed(folder, release="3.3.0"):
    """What pip would remove, each once."""
    paths = [
        row[0]
        for row in csv.reader((folder / metadata(release) / "RECORD").read_text().splitlines())
    ]
    assert len(paths) == len({*paths})
    return {*paths}


def test_files_keep_their_mode_other_names_of_them_their_bytes_and_a_record_how_pip_writes_it(
    wheel, superclip_patch, tmp_path
):
    factory, other_name = wheel / PATCHED_FILES[0], tmp_path / "cached.py"
    factory.chmod(0o640)
    os.link(factory, other_name)  # as uv installs from its cache
    record = wheel / metadata("3.3.0") / "RECORD"
    lines = [
        *record.read_bytes().splitlines(),
        b"open_clip/__pycache__/factory.cpython-311.pyc,,",
    ]
    record.write_bytes(b"".join(line + b"\r\n" for line in lines))
    before = held(wheel)
    superclip_patch("apply", wheel)
    assert factory.stat().st_mode & 0o777 == 0o640
    assert (wheel / HOOKS).stat().st_mode == (wheel / "open_clip/__init__.py").stat().st_mode
    assert factory.read_bytes() != before[PATCHED_FILES[0]] == other_name.read_bytes()
    assert record.read_bytes().count(b"\r\n") == record.read_bytes().count(b"\n") == len(lines) + 1
    superclip_patch("revert", wheel)
    assert held(wheel) == before


def test_check_prints_the_state_and_exits_with_its_code(wheel, superclip_patch):
    def check():
        code, output = superclip_patch("check", wheel)
        return code, output.splitlines()[0]

    assert check() == (1, f"not patched: open_clip_torch 3.3.0 in {wheel}")
    superclip_patch("apply", wheel)
    assert check() == (0, f"patched: open_clip_torch 3.3.0 in {wheel}")
    with open(wheel / PATCHED_FILES[1], "a") as file:
        file.write("# mine\n")
    assert check() == (4, f"modified: open_clip_torch 3.3.0 in {wheel}")
    assert (
        f"  {PATCHED_FILES[1]}: edited, or of another version\n"
        in superclip_patch("check", wheel)[1]
    )


# Interrupted


def killed(steps, action, folder):
    """`superclip patch`, killed before it writes, copies, renames or removes a file
    after `steps` such times."""
    left = itertools.count(steps, -1)

    def counted(function, last_breath=lambda *args: None):
        def call(*args, **kwargs):
            if next(left) == 0:
                last_breath(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    write, unlink = Path.write_bytes, Path.unlink
    Path.write_bytes = counted(write, lambda path, content: write(path, content[:100]))
    Path.unlink = counted(unlink)
    os.replace = counted(os.replace)
    shutil.copyfile = counted(shutil.copyfile)
    return call(f"patch {action} --source {folder}")


@parametrize("action, then", [("apply", "revert"), ("revert", "apply")])
def test_the_next_run_completes_or_undoes_a_killed_one(
    action, then, released, patched, superclip_patch, tmp_path
):
    release = copy(released["3.3.0"], tmp_path / "released")
    patch = copy(patched["3.3.0"], tmp_path / "patched")
    start = release if action == "apply" else patch
    ends = {"apply": held(patch), "revert": held(release)}
    num_interrupted = 0
    for steps in itertools.count():
        folder = shutil.copytree(start, tmp_path / f"killed-{steps}")
        (run,) = run_ranks(killed, steps, action, folder, cwd=tmp_path)
        if run.returncode == 0:
            assert held(folder) == ends[action]
            break
        assert run.returncode == -signal.SIGKILL
        files = {path for path in held(folder) if not path.startswith(disk_patch.STAGED)}
        assert files <= listed(folder)
        code, output = superclip_patch("check", folder)
        assert (code == 4) == ("was interrupted: run either of them again" in output)
        num_interrupted += code == 4
        assert superclip_patch(then, folder)[0] == 0
        assert held(folder) == ends[then]
    assert steps >= 10
    assert num_interrupted >= 3


# Refused


@parametrize("path", [PATCHED_FILES[0], HOOKS])
@parametrize("action", ["apply", "revert"])
def test_a_file_that_a_user_has_edited_is_named_and_nothing_is_touched(
    action, path, wheel, superclip_patch
):
    if action == "revert":
        superclip_patch("apply", wheel)
    with open(wheel / path, "a") as file:
        file.write("# mine\n")
    before = held(wheel)
    code, output = superclip_patch(action, wheel)
    assert (code, output.count("\n")) == (2, 1)
    assert output.startswith("error: ")
    assert f": {path} (edited, or of another version); " in output
    assert held(wheel) == before


def test_an_unknown_release_and_a_source_without_openclip_are_refused(wheel, superclip_patch):
    (wheel / "open_clip/version.py").write_bytes(b"# \xe9\n__version__ = '4.2.0'\n")
    before = held(wheel)
    code, output = superclip_patch("apply", wheel)
    assert (code, output.count("\n")) == (2, 1)
    assert "no patch for open_clip_torch 4.2.0" in output
    assert ", ".join(RELEASES) in output
    assert held(wheel) == before
    code, output = superclip_patch("check", wheel / "nowhere")
    assert (code, output.count("\n")) == (2, 1)
    assert f"--source {wheel / 'nowhere'} has no OpenCLIP" in output


def test_a_full_disk_is_an_error_and_nothing_is_touched(wheel, tmp_path):
    before = held(wheel)
    apply = on_a_full_disk(main, 30_000)  # main.py still fits, the copy of factory.py does not
    (run,) = run_ranks(apply, f"patch apply --source {wheel}".split(), cwd=tmp_path)
    assert run.returncode == 2
    assert "error: [Errno 27] File too large" in run.output
    assert "nothing was changed" in run.output
    assert held(wheel) == before


# Installed


def test_pip_replaces_and_removes_a_patched_openclip_without_a_trace(wheels, tmp_path):
    """In a virtual environment without torch, and with this package beside
    it on the path."""
    subprocess.run(f"{sys.executable} -m venv --without-pip {tmp_path}/venv".split(), check=True)
    python, path = tmp_path / "venv/bin/python", tmp_path / "path"
    site_packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    shutil.copytree(Path(openclip_superclip.__file__).parent, path / "openclip_superclip")
    shutil.copytree(ROOT / "patches", path / "patches")

    def pip(*argv):
        subprocess.run([*PIP, "--python", python, *argv], check=True)

    def apply():
        command = f"{python} -m openclip_superclip patch apply".split()
        environment = os.environ | {"PYTHONPATH": str(path)}
        done = subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, output = apply()
    assert code == 2
    assert output.startswith("error: OpenCLIP is not installed: pip install ")
    empty = held(site_packages)
    pip("install", "--no-deps", wheels["3.3.0"])
    fresh = held(site_packages).keys()
    pip("install", "--no-deps", wheels["3.2.0"])
    assert apply()[0] == 0
    pip("install", "--no-deps", wheels["3.3.0"])
    assert held(site_packages).keys() == fresh
    assert apply()[0] == 0
    subprocess.run(f"{python} -m compileall -q {site_packages}/open_clip".split(), check=True)
    pip("uninstall", "--yes", "open_clip_torch")
    assert held(site_packages) == empty
