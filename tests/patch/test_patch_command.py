"""superclip patch: apply, check and revert, interrupted or given bad input."""

import contextlib
import csv
import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.openclip_releases import CHANGED, HOOKS, PATCH, RELEASES, copy, each_release, held, metadata
from support.training_runs import run_ranks

from openclip_superclip import hooks
from openclip_superclip.__main__ import main
from openclip_superclip.openclip import patching


@each_release
def test_apply_names_the_release_and_every_file(release, released, superclip_patch, tmp_path):
    copied = copy(released[release], tmp_path / "copy")
    code, output = superclip_patch("apply", "--source", copied)
    assert code == 0
    first, *files = output.splitlines()
    assert first == f"open_clip_torch {release} in {copied}: applied"
    info = metadata(release)
    assert sorted(files) == sorted(
        [f"  changed {path}" for path in [*CHANGED, f"{info}/RECORD"]]
        + [f"  added {HOOKS}", f"  added {info}/hooks.patch"]
    )


@each_release
def test_apply_twice_is_harmless(release, released, superclip_patch, tmp_path):
    copied = copy(released[release], tmp_path / "copy")
    superclip_patch("apply", "--source", copied)
    before = held(copied)
    code, output = superclip_patch("apply", "--source", copied)
    assert (code, output) == (0, f"open_clip_torch {release} in {copied}: already applied\n")
    assert held(copied) == before


@each_release
def test_revert_restores_the_exact_bytes(release, released, superclip_patch, tmp_path):
    copied = copy(released[release], tmp_path / "copy")
    before = held(copied)
    superclip_patch("apply", "--source", copied)
    cached = copied / "open_clip/__pycache__/hooks.cpython-311.pyc"
    cached.parent.mkdir()
    cached.touch()
    code, output = superclip_patch("revert", "--source", copied)
    assert code == 0
    assert f"open_clip_torch {release} in {copied}: reverted\n  removed {HOOKS}\n" in output
    assert held(copied) == before
    assert "nothing to revert" in superclip_patch("revert", "--source", copied)[1]
    assert held(copied) == before


def test_revert_restores_a_record_as_pip_writes_it(wheel, superclip_patch):
    record = wheel / metadata("3.3.0") / "RECORD"
    lines = record.read_bytes().splitlines()
    record.write_bytes(
        b"".join(line + b"\r\n" for line in [*lines, b"open_clip/__pycache__/factory.cpython-311.pyc,,"])
    )
    before = held(wheel)
    superclip_patch("apply", "--source", wheel)
    assert record.read_bytes().count(b"\r\n") == record.read_bytes().count(b"\n") == len(lines) + 3
    superclip_patch("revert", "--source", wheel)
    assert held(wheel) == before


@each_release
def test_record_lists_every_file_once(release, patched):
    record = csv.reader((patched[release] / metadata(release) / "RECORD").read_text().splitlines())
    assert sorted(row[0] for row in record) == sorted(held(patched[release]))


def test_a_patch_that_was_applied_by_hand_is_completed_in_record(wheel, patched, superclip_patch):
    for path in [*CHANGED, HOOKS]:
        shutil.copy(patched["3.3.0"] / path, wheel / path)
    assert superclip_patch("check", "--source", wheel)[0] == 0
    superclip_patch("apply", "--source", wheel)
    info = metadata("3.3.0")
    assert (wheel / info / "RECORD").read_bytes() == (patched["3.3.0"] / info / "RECORD").read_bytes()


def test_a_checkout_is_patched_and_restored(checkout, superclip_patch):
    before = held(checkout)
    code, output = superclip_patch("apply", "--source", checkout)
    assert (code, output.splitlines()[0]) == (0, f"open_clip_torch 3.3.0 in {checkout}/src: applied")
    assert held(checkout).keys() - before.keys() == {f"src/{HOOKS}"}
    assert superclip_patch("revert", "--source", checkout)[0] == 0
    assert held(checkout) == before


def test_files_keep_their_mode_and_other_names_of_them_their_bytes(wheel, superclip_patch, tmp_path):
    factory, other_name = wheel / CHANGED[0], tmp_path / "cached.py"
    factory.chmod(0o640)
    os.link(factory, other_name)  # as uv installs from its cache
    before = factory.read_bytes()
    superclip_patch("apply", "--source", wheel)
    assert factory.stat().st_mode & 0o777 == 0o640
    assert (wheel / HOOKS).stat().st_mode == (wheel / "open_clip/__init__.py").stat().st_mode
    assert factory.read_bytes() != before == other_name.read_bytes()


def write_other_version(folder: Path) -> Path:
    """Writes a patch for the last release that an earlier version of this package might have had."""
    diffs = re.split(r"^(?=diff --git )", PATCH.read_text(), flags=re.MULTILINE)
    factory, ours, _, train, _ = diffs[1:]  # data.py and params.py were not yet patched
    earlier = Path(hooks.__file__).read_bytes() + b"\n\n# An earlier contract.\n"
    lines = "".join(f"+{line}\n" for line in earlier.decode().splitlines())
    header = ours[: ours.index("@@")].replace(
        patching.blob_id(Path(hooks.__file__).read_bytes()), patching.blob_id(earlier)
    )
    path = folder / "open_clip-3.3.0.patch"
    path.write_text(f"{factory}{header}@@ -0,0 +1,{len(lines.splitlines())} @@\n{lines}{train}")
    return path


@pytest.fixture
def other_version(wheel, superclip_patch, tmp_path, monkeypatch) -> Path:
    """The unpacked wheel, patched by another version of this package."""
    path = write_other_version(tmp_path)
    with monkeypatch.context() as earlier:
        earlier.setattr(patching, "patches", lambda: {"3.3.0": path.read_bytes()})
        assert superclip_patch("apply", "--source", wheel)[0] == 0
    return wheel


def test_apply_replaces_the_patch_of_another_version(other_version, patched, superclip_patch):
    assert superclip_patch("apply", "--source", other_version)[0] == 0
    ours = held(patched["3.3.0"])
    assert all(ours[path] == content for path, content in held(other_version).items())
    assert {*CHANGED, HOOKS} <= held(other_version).keys()


def test_revert_restores_the_release_from_the_patch_of_another_version(other_version, released, superclip_patch):
    assert superclip_patch("revert", "--source", other_version)[0] == 0
    release = held(released["3.3.0"])
    assert all(release[path] == content for path, content in held(other_version).items())


def test_check_prints_the_state_and_exits_with_its_code(wheel, superclip_patch):
    def check():
        code, output = superclip_patch("check", "--source", wheel)
        return code, output.splitlines()[0]

    assert check() == (1, f"not patched: open_clip_torch 3.3.0 in {wheel}")
    superclip_patch("apply", "--source", wheel)
    assert check() == (0, f"patched: open_clip_torch 3.3.0 in {wheel}")
    with open(wheel / CHANGED[1], "a") as file:
        file.write("# mine\n")
    assert check() == (4, f"modified: open_clip_torch 3.3.0 in {wheel}")
    assert f"  {CHANGED[1]}: edited, or of another commit\n" in superclip_patch("check", "--source", wheel)[1]


def test_check_tells_a_patch_of_another_version(other_version, superclip_patch):
    code, output = superclip_patch("check", "--source", other_version)
    assert (code, output) == (3, f"patched by another version: open_clip_torch 3.3.0 in {other_version}\n")


def test_a_patch_of_another_version_that_was_applied_by_hand_is_told_and_left_alone(
    checkout, superclip_patch, tmp_path
):
    with open(write_other_version(tmp_path)) as patch:
        subprocess.run(["patch", "-p1", "-d", "src"], stdin=patch, cwd=checkout, check=True)
    before = held(checkout)
    assert superclip_patch("check", "--source", checkout)[0] == 3
    for action in ("apply", "revert"):
        code, output = superclip_patch(action, "--source", checkout)
        assert code == 2
        assert f"{HOOKS} (edited, or of another commit)" in output
    assert held(checkout) == before


def test_help_tells_every_exit_code(capsys):
    with pytest.raises(SystemExit):
        main(["patch", "--help"])
    text = capsys.readouterr().out
    for code, state in {0: "patched", 1: "not patched", 3: "patched by another version", 4: "modified"}.items():
        assert f"{code}  {state}\n" in text


def killed(steps: int, action: str, folder: Path) -> int:
    """`superclip patch`, killed where it would write, rename or remove for the time after `steps` such times."""
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
    return main(["patch", action, "--source", str(folder)])


def listed(folder: Path) -> set[str]:
    """What pip would remove."""
    return {row[0] for row in csv.reader((folder / metadata("3.3.0") / "RECORD").read_text().splitlines())}


@pytest.mark.parametrize("then", ["apply", "revert"])
@pytest.mark.parametrize(
    ("before", "action"), [("released", "apply"), ("patched", "revert"), ("other_version", "apply")]
)
def test_the_next_run_completes_or_undoes_a_killed_one(before, action, then, request, superclip_patch, tmp_path):
    release, patch = (copy(request.getfixturevalue(tree)["3.3.0"], tmp_path / tree) for tree in ("released", "patched"))
    start = {"released": release, "patched": patch}.get(before) or request.getfixturevalue(before)
    ends = {"apply": held(patch), "revert": held(release)}
    num_interrupted = 0
    for steps in itertools.count():
        folder = shutil.copytree(start, tmp_path / f"killed-{steps}")
        (run,) = run_ranks(killed, steps, action, folder, cwd=tmp_path)
        if run.returncode == 0:
            assert held(folder) == ends[action]
            break
        assert run.returncode == -signal.SIGKILL
        assert {path for path in held(folder) if not path.endswith(".superclip-part")} <= listed(folder)
        code, output = superclip_patch("check", "--source", folder)
        assert (code == 4) == ("was interrupted: run either of them again" in output)
        num_interrupted += code == 4
        assert superclip_patch(then, "--source", folder)[0] == 0
        assert held(folder) == ends[then]
    assert steps >= 10
    assert num_interrupted >= 3


@pytest.mark.parametrize("path", [*CHANGED, HOOKS])
@pytest.mark.parametrize("action", ["apply", "revert"])
def test_a_file_that_a_user_has_edited_is_named_and_nothing_is_touched(action, path, wheel, superclip_patch):
    if action == "revert":
        superclip_patch("apply", "--source", wheel)
    with open(wheel / path, "a") as file:
        file.write("# mine\n")
    before = held(wheel)
    code, output = superclip_patch(action, "--source", wheel)
    assert code == 2
    assert output.startswith("error: ")
    assert f": {path} (edited, or of another commit); " in output
    assert output.count("\n") == 1
    assert held(wheel) == before


def test_a_checkout_at_another_commit_is_refused_by_file_and_nothing_is_touched(checkout, superclip_patch):
    (checkout / "src" / CHANGED[2]).unlink()
    factory = checkout / "src" / CHANGED[0]
    factory.write_text(factory.read_text().replace("Determine model class", "Choose model class"))
    before = held(checkout)
    code, output = superclip_patch("apply", "--source", checkout)
    assert code == 2
    assert f"{CHANGED[0]} (edited, or of another commit), {CHANGED[2]} (missing); " in output
    assert "git checkout v3.3.0" in output
    assert held(checkout) == before
    assert superclip_patch("check", "--source", checkout)[0] == 4


@pytest.mark.parametrize("action", ["apply", "check", "revert"])
def test_an_unknown_release_is_refused_and_the_known_ones_are_named(action, wheel, superclip_patch):
    (wheel / "open_clip/version.py").write_text("__version__ = '4.2.0'\n")
    before = held(wheel)
    code, output = superclip_patch(action, "--source", wheel)
    assert code == 2
    assert "no patch for open_clip_torch 4.2.0" in output
    assert ", ".join(RELEASES) in output
    assert output.count("\n") == 1
    assert held(wheel) == before


@pytest.mark.parametrize("source", ["nowhere", "."])
def test_a_source_without_openclip_is_refused(source, superclip_patch, tmp_path):
    code, output = superclip_patch("apply", "--source", tmp_path / source)
    assert (code, output.count("\n")) == (2, 1)
    assert f"--source {tmp_path / source} holds no OpenCLIP" in output


@contextlib.contextmanager
def any_user():
    """Leaves root's rights aside, if these are ours: root may write wherever a mode forbids it."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("action", ["apply", "revert"])
@pytest.mark.parametrize("read_only", ["open_clip", "open_clip_train", metadata("3.3.0")])
def test_a_read_only_installation_is_refused_and_nothing_is_touched(
    read_only, action, released, patched, superclip_patch, monkeypatch
):
    with tempfile.TemporaryDirectory() as folder:  # which any user may enter, as opposed to tmp_path
        os.chmod(folder, 0o755)
        copied = copy((released if action == "apply" else patched)["3.3.0"], Path(folder) / "wheel")
        patches = patching.patches()
        monkeypatch.setattr(patching, "patches", lambda: patches)  # any user may read them
        for path in [Path(folder), *Path(folder).rglob("*")]:
            path.chmod(0o777 if path.is_dir() else 0o666)
        (copied / read_only).chmod(0o555)
        before = held(copied)
        with any_user():
            code, output = superclip_patch(action, "--source", copied)
        assert code == 2
        assert f"error: cannot write {copied / read_only}/" in output
        assert "Permission denied; nothing was changed" in output
        assert output.count("\n") == 1
        assert held(copied) == before


def apply_on_a_full_disk(folder) -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # main.py still fits, factory.py does not
    return main(["patch", "apply", "--source", str(folder)])


def test_a_full_disk_is_an_error_and_nothing_is_touched(wheel, tmp_path):
    before = held(wheel)
    (run,) = run_ranks(apply_on_a_full_disk, wheel, cwd=tmp_path)
    assert run.returncode == 2
    assert f"error: cannot write {wheel / CHANGED[0]}: " in run.output
    assert "nothing was changed" in run.output
    assert held(wheel) == before
