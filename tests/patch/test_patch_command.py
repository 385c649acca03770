"""superclip patch: the patches themselves; apply, check and revert, interrupted or given bad input; and pip."""

import contextlib
import csv
import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import whatthepatch
from support.openclip_releases import CHANGED, HOOKS, PATCH, PIP, RELEASES, ROOT, copy, each_release, held, metadata
from support.training_runs import run_ranks

import openclip_superclip
from openclip_superclip import hooks
from openclip_superclip.__main__ import main
from openclip_superclip.openclip import patching

OUR_HOOKS = Path(hooks.__file__).read_bytes()


@pytest.fixture
def wheel(released, tmp_path) -> Path:
    """The last release, unpacked: the files that matter to the patch, and RECORD."""
    return copy(released["3.3.0"], tmp_path / "wheel")


@pytest.fixture
def checkout(released, tmp_path) -> Path:
    """The last release as a checkout has it: below src, without metadata."""
    copy(released["3.3.0"], tmp_path / "checkout/src")
    shutil.rmtree(next((tmp_path / "checkout/src").glob("*.dist-info")))
    return tmp_path / "checkout"


@pytest.fixture
def superclip_patch(capsys):
    """`superclip patch`: its exit code and what it printed."""

    def superclip_patch(*argv):
        capsys.readouterr()
        code = main(["patch", *map(str, argv)])
        return code, "".join(capsys.readouterr())

    return superclip_patch


# The patches


def test_the_patch_is_a_few_lines_that_know_nothing_of_superclip():
    text = PATCH.read_text()
    assert "superclip" not in text.lower()
    diffs = {diff.header.new_path: diff for diff in whatthepatch.parse_patch(text)}
    assert diffs.keys() == {*CHANGED, HOOKS}
    changes = [change for path in CHANGED for change in diffs[path].changes]
    assert sum(change.new is None for change in changes) == 9
    assert sum(change.old is None for change in changes) <= 64


def test_there_is_a_patch_for_each_of_the_releases_and_for_the_main_branch():
    assert list(patching.patches()) == [*RELEASES, "4.2.0.dev0"]
    patch = patching.Patch(patching.patches()["4.2.0.dev0"])
    assert patch.apply(HOOKS, b"") == OUR_HOOKS, "run patches/refresh.py"
    assert b"superclip" not in patch.text.lower()
    assert patch.diffs.keys() == {*CHANGED, HOOKS, "open_clip/task/coca_task.py"}


@pytest.mark.parametrize(("release", "folder"), [*((release, ".") for release in RELEASES), ("3.3.0", "src")])
def test_git_and_the_patch_program_give_what_the_command_gives(release, folder, released, patched, tmp_path):
    copied = copy(released[release], tmp_path / "copy" / folder)
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": "/"}
    subprocess.run(["git", "apply", "--check", PATCH], cwd=copied, env=environment, check=True)
    with open(PATCH) as patch:
        command = ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch", "-d", folder]
        subprocess.run(command, stdin=patch, cwd=tmp_path / "copy", check=True)
    for path in [*CHANGED, HOOKS]:
        assert (copied / path).read_bytes() == (patched[release] / path).read_bytes()
    assert main(["patch", "check", "--source", str(tmp_path / "copy")]) == 0


# Apply and revert


@each_release
def test_a_release_is_patched_once_and_reverted_to_its_exact_bytes(release, released, superclip_patch, tmp_path):
    copied, info = copy(released[release], tmp_path / "copy"), metadata(release)
    before, about = held(copied), f"open_clip_torch {release} in {copied}"
    code, output = superclip_patch("apply", "--source", copied)
    first, *files = output.splitlines()
    assert (code, first) == (0, f"{about}: applied")
    changed = [f"  changed {path}" for path in [*CHANGED, f"{info}/RECORD"]]
    assert sorted(files) == sorted([*changed, f"  added {HOOKS}", f"  added {info}/hooks.patch"])
    assert (copied / HOOKS).read_bytes() == OUR_HOOKS, "run patches/refresh.py"
    patched = held(copied)
    assert listed(copied, release) >= patched.keys() - before.keys()
    assert superclip_patch("apply", "--source", copied) == (0, f"{about}: already applied\n")
    assert held(copied) == patched
    cached = copied / "open_clip/__pycache__/hooks.cpython-311.pyc"
    cached.parent.mkdir()
    cached.touch()
    code, output = superclip_patch("revert", "--source", copied)
    assert code == 0
    assert f"{about}: reverted\n  removed {HOOKS}\n" in output
    assert held(copied) == before
    assert "nothing to revert" in superclip_patch("revert", "--source", copied)[1]
    assert held(copied) == before


def listed(folder: Path, release: str = "3.3.0") -> set[str]:
    """What pip would remove, each once."""
    paths = [row[0] for row in csv.reader((folder / metadata(release) / "RECORD").read_text().splitlines())]
    assert len(paths) == len({*paths})
    return {*paths}


def test_revert_restores_a_record_as_pip_writes_it(wheel, superclip_patch):
    record = wheel / metadata("3.3.0") / "RECORD"
    lines = [*record.read_bytes().splitlines(), b"open_clip/__pycache__/factory.cpython-311.pyc,,"]
    record.write_bytes(b"".join(line + b"\r\n" for line in lines))
    before = held(wheel)
    superclip_patch("apply", "--source", wheel)
    assert record.read_bytes().count(b"\r\n") == record.read_bytes().count(b"\n") == len(lines) + 2
    superclip_patch("revert", "--source", wheel)
    assert held(wheel) == before


def test_a_patch_that_was_applied_by_hand_is_completed_in_record(wheel, patched, superclip_patch):
    for path in [*CHANGED, HOOKS]:
        shutil.copy(patched["3.3.0"] / path, wheel / path)
    assert superclip_patch("check", "--source", wheel)[0] == 0
    superclip_patch("apply", "--source", wheel)
    record = Path(metadata("3.3.0"), "RECORD")
    assert (wheel / record).read_bytes() == (patched["3.3.0"] / record).read_bytes()


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


# A patch of another version of this package


def write_other_version(folder: Path) -> Path:
    """Writes a patch for the last release that an earlier version of this package might have had."""
    diffs = re.split(r"^(?=diff --git )", PATCH.read_text(), flags=re.MULTILINE)
    factory, ours, _, train, _ = diffs[1:]  # data.py and params.py were not yet patched
    earlier = OUR_HOOKS + b"\n\n# An earlier contract.\n"
    lines = "".join(f"+{line}\n" for line in earlier.decode().splitlines())
    header = ours[: ours.index("@@")].replace(patching.blob_id(OUR_HOOKS), patching.blob_id(earlier))
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


@pytest.mark.parametrize(("action", "result"), [("apply", "patched"), ("revert", "released")])
def test_a_patch_of_another_version_is_reported_replaced_and_reverted(
    action, result, other_version, superclip_patch, request
):
    about = f"patched by another version: open_clip_torch 3.3.0 in {other_version}\n"
    assert superclip_patch("check", "--source", other_version) == (3, about)
    assert superclip_patch(action, "--source", other_version)[0] == 0
    expected = held(request.getfixturevalue(result)["3.3.0"])
    assert all(expected[path] == content for path, content in held(other_version).items())
    assert (HOOKS in held(other_version)) == (action == "apply")


def test_a_patch_of_another_version_that_was_applied_by_hand_is_left_alone(checkout, superclip_patch, tmp_path):
    with open(write_other_version(tmp_path)) as patch:
        subprocess.run(["patch", "-p1", "-d", "src"], stdin=patch, cwd=checkout, check=True)
    before = held(checkout)
    assert superclip_patch("check", "--source", checkout)[0] == 3
    for action in ("apply", "revert"):
        code, output = superclip_patch(action, "--source", checkout)
        assert code == 2
        assert f"{HOOKS} (edited, or of another commit)" in output
    assert held(checkout) == before


# Interrupted


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


KILLED = [("released", "apply", "revert"), ("patched", "revert", "apply"), ("other_version", "apply", "apply")]


@pytest.mark.parametrize(("before", "action", "then"), KILLED)
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


# Refused


@pytest.mark.parametrize("path", [CHANGED[0], HOOKS])
@pytest.mark.parametrize("action", ["apply", "revert"])
def test_a_file_that_a_user_has_edited_is_named_and_nothing_is_touched(action, path, wheel, superclip_patch):
    if action == "revert":
        superclip_patch("apply", "--source", wheel)
    with open(wheel / path, "a") as file:
        file.write("# mine\n")
    before = held(wheel)
    code, output = superclip_patch(action, "--source", wheel)
    assert (code, output.count("\n")) == (2, 1)
    assert output.startswith("error: ")
    assert f": {path} (edited, or of another commit); " in output
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
def test_an_unknown_release_and_a_source_without_openclip_are_refused(action, wheel, superclip_patch):
    (wheel / "open_clip/version.py").write_text("__version__ = '4.2.0'\n")
    before = held(wheel)
    code, output = superclip_patch(action, "--source", wheel)
    assert (code, output.count("\n")) == (2, 1)
    assert "no patch for open_clip_torch 4.2.0" in output
    assert ", ".join(RELEASES) in output
    assert held(wheel) == before
    code, output = superclip_patch(action, "--source", wheel / "nowhere")
    assert (code, output.count("\n")) == (2, 1)
    assert f"--source {wheel / 'nowhere'} holds no OpenCLIP" in output


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


@pytest.mark.parametrize(
    ("action", "read_only"), [("apply", "open_clip"), ("apply", metadata("3.3.0")), ("revert", "open_clip_train")]
)
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
        assert (code, output.count("\n")) == (2, 1)
        assert f"error: cannot write {copied / read_only}/" in output
        assert "Permission denied; nothing was changed" in output
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


# Installed


class Environment:
    """A virtual environment without torch, and with our package beside it on the path."""

    def __init__(self, folder: Path):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv/bin/python"
        self.site_packages = next((folder / "venv").glob("lib/python*/site-packages"))
        self.path = folder / "path"
        shutil.copytree(Path(whatthepatch.__file__).parent, self.path / "whatthepatch")
        shutil.copytree(Path(openclip_superclip.__file__).parent, self.path / "openclip_superclip")
        shutil.copytree(ROOT / "patches", self.path / "patches")

    def pip(self, *argv) -> None:
        subprocess.run([*PIP, "--python", self.python, *argv], check=True)

    def apply(self) -> tuple[int, str]:
        command = [self.python, "-m", "openclip_superclip", "patch", "apply"]
        environment = os.environ | {"PYTHONPATH": str(self.path)}
        done = subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr


def test_pip_replaces_and_removes_a_patched_openclip_without_a_trace(wheels, tmp_path):
    environment = Environment(tmp_path)
    code, output = environment.apply()
    assert code == 2
    assert output.startswith("error: OpenCLIP is not installed: pip install ")
    empty = held(environment.site_packages)
    environment.pip("install", "--no-deps", wheels["3.3.0"])
    fresh = held(environment.site_packages).keys()
    environment.pip("install", "--no-deps", wheels["3.2.0"])
    assert environment.apply()[0] == 0
    environment.pip("install", "--no-deps", wheels["3.3.0"])
    assert held(environment.site_packages).keys() == fresh
    assert environment.apply()[0] == 0
    subprocess.run([environment.python, "-m", "compileall", "-q", environment.site_packages / "open_clip"], check=True)
    environment.pip("uninstall", "--yes", "open_clip_torch")
    assert held(environment.site_packages) == empty


def test_our_wheel_holds_the_patches_and_patches_the_installed_openclip_without_torch(wheel, tmp_path):
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT], check=True)
    (ours,) = (tmp_path / "dist").iterdir()
    zipfile.ZipFile(ours).extractall(tmp_path / "ours")
    patches = {path.name: path.read_bytes() for path in (ROOT / "patches").glob("*.patch")}
    assert held(tmp_path / "ours/openclip_superclip/patches") == patches
    program = (
        "import sys; from openclip_superclip.__main__ import main; main(['patch', 'apply'])\n"
        "sys.exit(bool({'torch', 'open_clip'} & sys.modules.keys()))\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'ours'}:{wheel}"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"open_clip_torch 3.3.0 in {wheel}: applied\n")
    assert (wheel / HOOKS).read_bytes() == OUR_HOOKS
