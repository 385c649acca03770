"""The patches, on the four released wheels: what they change, what `superclip patch` does, what then trains."""

import base64
import contextlib
import csv
import functools
import hashlib
import importlib
import importlib.metadata
import itertools
import os
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import types
import zipfile
from pathlib import Path

import pytest
import webdataset
import whatthepatch
from support.models import write_model
from support.plugins import BROKEN, install_plugin
from support.training_runs import Run, run_ranks

from openclip_superclip import hooks
from openclip_superclip.__main__ import main
from openclip_superclip.integration import patching
from openclip_superclip.integration.installed_openclip import rewrite_record

ROOT = Path(__file__).parents[2]
RELEASES = ["3.0.0", "3.1.0", "3.2.0", "3.3.0"]
CHANGED = [
    "open_clip/factory.py", "open_clip_train/main.py", "open_clip_train/params.py", "open_clip_train/data.py",
]  # fmt: skip
HOOKS = "open_clip/hooks.py"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]

each_release = pytest.mark.parametrize("release", RELEASES)


# OpenCLIP's releases


@pytest.fixture(scope="session")
def wheels(pytestconfig) -> dict[str, Path]:
    """The released wheels; downloaded once, into pytest's cache."""
    folder = pytestconfig.cache.mkdir("open_clip_torch")
    for release in RELEASES:
        if not [*folder.glob(f"open_clip_torch-{release}-*.whl")]:
            with tempfile.TemporaryDirectory(dir=folder) as partial:
                subprocess.run(
                    [*PIP, "download", "--no-deps", "--dest", partial, f"open_clip_torch=={release}"], check=True
                )
                (wheel,) = Path(partial).iterdir()
                wheel.rename(folder / wheel.name)
    return {release: next(folder.glob(f"open_clip_torch-{release}-*.whl")) for release in RELEASES}


@pytest.fixture(scope="session")
def released(wheels, tmp_path_factory) -> dict[str, Path]:
    """The wheels, unpacked; not to be changed."""
    folder = tmp_path_factory.mktemp("released")
    for release, wheel in wheels.items():
        zipfile.ZipFile(wheel).extractall(folder / release)
    return {release: folder / release for release in RELEASES}


@pytest.fixture(scope="session")
def patched(released, tmp_path_factory) -> dict[str, Path]:
    """The wheels, unpacked and patched; not to be changed."""
    folder = tmp_path_factory.mktemp("patched")
    for release in RELEASES:
        shutil.copytree(released[release], folder / release)
        assert main(["patch", "apply", "--source", str(folder / release)]) == 0
    return {release: folder / release for release in RELEASES}


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


def copy(source: Path, folder: Path) -> Path:
    """Copies what the patch can touch, and what tells the release, to `folder`, and returns it."""
    return shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model_configs", "*.gz"))


def held(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def metadata(release: str) -> str:
    return f"open_clip_torch-{release}.dist-info"


@pytest.fixture
def superclip_patch(capsys):
    """`superclip patch`: its exit code and what it printed."""

    def superclip_patch(*argv):
        capsys.readouterr()
        code = main(["patch", *map(str, argv)])
        return code, "".join(capsys.readouterr())

    return superclip_patch


# What a patch is


@each_release
def test_a_patch_adds_our_hooks_byte_for_byte(release, patched):
    ours = Path(hooks.__file__).read_bytes()
    assert (patched[release] / HOOKS).read_bytes() == ours, "run patches/refresh.py"


@each_release
def test_git_accepts_the_patch_on_the_unpacked_wheel(release, released, tmp_path):
    check = ["git", "apply", "--check", "--verbose", ROOT / f"patches/open_clip-{release}.patch"]
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": "/"}
    copied = copy(released[release], tmp_path / release)
    done = subprocess.run(check, cwd=copied, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Checking patch") == len(CHANGED) + 1


@pytest.mark.parametrize(("folder", "flags"), [(".", []), ("src", ["-d", "src"])], ids=["site-packages", "checkout"])
@each_release
def test_the_patch_program_gives_what_the_command_gives(release, folder, flags, released, patched, tmp_path):
    copied = copy(released[release], tmp_path / "copy" / folder)
    with open(ROOT / f"patches/open_clip-{release}.patch") as patch:
        command = ["patch", "-p1", "--fuzz=0", "--no-backup-if-mismatch", *flags]
        subprocess.run(command, stdin=patch, cwd=tmp_path / "copy", check=True)
    for path in [*CHANGED, HOOKS]:
        assert (copied / path).read_bytes() == (patched[release] / path).read_bytes()
    assert main(["patch", "check", "--source", str(tmp_path / "copy")]) == 0


@each_release
def test_a_patch_is_a_few_lines_that_know_nothing_of_superclip(release):
    text = (ROOT / f"patches/open_clip-{release}.patch").read_text()
    assert "superclip" not in text.lower()
    diffs = {diff.header.new_path: diff for diff in whatthepatch.parse_patch(text)}
    assert diffs.keys() == {*CHANGED, HOOKS}
    changes = [change for path in CHANGED for change in diffs[path].changes]
    assert sum(change.new is None for change in changes) == 8
    assert sum(change.old is None for change in changes) <= 56
    assert len(changes) <= 180  # the rest is the context by which a hunk is found


def test_there_is_a_patch_for_each_of_the_releases():
    assert list(patching.patch_files()) == RELEASES


# apply, check, revert


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


def test_a_line_of_record_without_a_sha256_is_left_alone():
    record = b"open_clip/factory.py,md5=abc,3\n"
    assert rewrite_record(record, {"open_clip/factory.py": b"new"}, added=[]) == record


@each_release
def test_record_tells_the_truth_of_every_file(release, patched):
    record = csv.reader((patched[release] / metadata(release) / "RECORD").read_text().splitlines())
    files = held(patched[release])
    for path, digest, size in record:
        content = files.pop(path)
        if path.endswith("/RECORD"):
            continue
        assert int(size) == len(content)
        expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert digest == f"sha256={expected}"
    assert not files


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
    diffs = re.split(r"^(?=diff --git )", (ROOT / "patches/open_clip-3.3.0.patch").read_text(), flags=re.MULTILINE)
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
        earlier.setattr(patching, "patch_files", lambda: {"3.3.0": path})
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


# Interruptions


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


# Bad input


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
        patches = shutil.copytree(ROOT / "patches", Path(folder) / "patches")
        monkeypatch.setattr(patching, "patch_files", lambda: {"3.3.0": patches / "open_clip-3.3.0.patch"})
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


# What is installed


class Environment:
    """A virtual environment without torch, and with our package beside it on the path."""

    def __init__(self, folder: Path):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv/bin/python"
        self.site_packages = next((folder / "venv").glob("lib/python*/site-packages"))
        self.path = folder / "path"
        shutil.copytree(Path(whatthepatch.__file__).parent, self.path / "whatthepatch")
        shutil.copytree(Path(patching.__file__).parent, self.path / "openclip_superclip")
        shutil.copytree(ROOT / "patches", self.path / "patches")

    def pip(self, *argv) -> None:
        subprocess.run([*PIP, "--python", self.python, *argv], check=True)

    def superclip_patch(self, *argv) -> tuple[int, str]:
        command = [self.python, "-m", "openclip_superclip", "patch", *argv]
        environment = os.environ | {"PYTHONPATH": str(self.path)}
        done = subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def compile(self) -> None:
        """Leaves what a first import leaves beside the files."""
        subprocess.run([self.python, "-m", "compileall", "-q", self.site_packages], check=True)


def test_pip_replaces_and_removes_a_patched_openclip_without_a_trace(wheels, tmp_path):
    environment = Environment(tmp_path)
    code, output = environment.superclip_patch("apply")
    assert code == 2
    assert output.startswith("error: OpenCLIP is not installed: pip install ")
    empty = held(environment.site_packages)

    environment.pip("install", "--no-deps", wheels["3.3.0"])
    fresh = held(environment.site_packages).keys()
    environment.pip("install", "--no-deps", wheels["3.2.0"])
    assert environment.superclip_patch("apply")[0] == 0
    environment.compile()
    environment.pip("install", "--no-deps", wheels["3.3.0"])
    assert held(environment.site_packages).keys() == fresh
    assert environment.superclip_patch("check")[0] == 1

    assert environment.superclip_patch("apply")[0] == 0
    environment.compile()
    assert held(environment.site_packages).keys() > fresh
    environment.pip("uninstall", "--yes", "open_clip_torch")
    assert held(environment.site_packages) == empty


def test_without_source_it_is_the_installed_openclip_and_torch_is_not_imported(wheel):
    program = (
        "import sys; from openclip_superclip.__main__ import main; main(['patch', 'apply'])\n"
        "sys.exit(bool({'torch', 'open_clip'} & sys.modules.keys()))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(wheel)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"open_clip_torch 3.3.0 in {wheel}: applied\n")


def test_our_wheel_holds_the_patches(wheel, tmp_path):
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", tmp_path / "dist", ROOT], check=True)
    (ours,) = (tmp_path / "dist").iterdir()
    zipfile.ZipFile(ours).extractall(tmp_path / "ours")
    patches = {path.name: path.read_bytes() for path in (ROOT / "patches").glob("*.patch")}
    assert held(tmp_path / "ours/openclip_superclip/patches") == patches
    command = [sys.executable, "-m", "openclip_superclip", "patch", "apply", "--source", wheel]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "ours")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (wheel / HOOKS).read_bytes() == Path(hooks.__file__).read_bytes()


# What then trains


def enter(tree: Path) -> None:
    """Makes `tree` the OpenCLIP of this process, which has torch imported already."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("open_clip", "open_clip_train", "openclip_superclip", "pluggy"):
            del sys.modules[name]
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree))


def openclip_train(tree: Path, *argv: str) -> None:
    """`python -m open_clip_train.main` of the OpenCLIP in `tree`."""
    enter(tree)
    sys.argv = ["open_clip_train.main", *argv]
    runpy.run_module("open_clip_train.main", run_name="__main__", alter_sys=True)
    assert Path(sys.modules["open_clip"].__file__).parent.parent == tree


def openclip_train_without_plugins(tree: Path, *argv: str) -> None:
    """The same where no distribution has named a plugin."""
    find = importlib.metadata.entry_points
    importlib.metadata.entry_points = lambda **which: () if which.get("group") == "open_clip" else find(**which)
    openclip_train(tree, *argv)


def superclip_train(tree: Path, *argv: str) -> int:
    """`superclip train` with the OpenCLIP in `tree`."""
    enter(tree)
    code = importlib.import_module("openclip_superclip.__main__").main(["train", *argv])
    assert Path(sys.modules["open_clip"].__file__).parent.parent == tree
    return code


def shuffle_in_one_order() -> None:
    """Makes WebDataset, which seeds itself with the time, shuffle alike in every run."""
    webdataset.filters.random = types.SimpleNamespace(Random=lambda *_: random.Random(0))


def openclip_train_in_one_order(tree: Path, *argv: str) -> None:
    shuffle_in_one_order()
    openclip_train(tree, *argv)


def superclip_train_in_one_order(tree: Path, *argv: str) -> int:
    shuffle_in_one_order()
    return superclip_train(tree, *argv)


@pytest.fixture(scope="session")
def losses(train_flags, tmp_path_factory):
    """What a training printed of the losses, a string a step; each is run once, and must succeed."""

    @functools.cache
    def losses(train, tree, flags="", world_size=1):
        argv = [*train_flags, "--batch-size", str(32 // world_size), "--logs", "none", *flags.split()]
        runs = run_ranks(train, tree, *argv, world_size=world_size, cwd=tmp_path_factory.mktemp("run"))
        assert [run.returncode for run in runs] == [0] * world_size, runs[0].output[-2000:]
        assert len(runs[0].losses()) == 2
        return runs[0].losses()

    return losses


@each_release
def test_patched_and_unpatched_losses_are_equal_step_by_step(release, released, patched, losses):
    expected = losses(superclip_train, released[release], "--superclip")
    assert all("Class_loss" in line for line in expected)
    assert losses(openclip_train, patched[release], "--superclip") == expected


@each_release
def test_without_the_flag_or_a_plugin_the_losses_are_stock_to_the_last_digit(release, released, patched, losses):
    stock = losses(openclip_train, released[release])
    assert losses(openclip_train, patched[release]) == stock
    assert losses(openclip_train_without_plugins, patched[release]) == stock


VARIANTS = [
    "--siglip",
    "--accum-freq 2 --batch-size 16",
    "--force-custom-text",
    "--superclip-captions mixed:0.5 --superclip-long-caption filepath",
    "--superclip-captions dual --superclip-long-caption filepath --superclip-long-context 30",
    "--distill-model {teacher} --distill-pretrained {teacher}",
]


@pytest.fixture(scope="session")
def teacher(released, tmp_path_factory) -> str:
    """--model of a folder that holds the weights of a plain model as well."""
    import open_clip
    import torch

    model = write_model(tmp_path_factory.mktemp("teacher"))
    weights = Path(model.removeprefix("local-dir:")) / "pytorch_model.bin"
    torch.save(open_clip.create_model(model).state_dict(), weights)
    return model


@pytest.mark.parametrize("flags", VARIANTS)
def test_other_models_and_losses_are_equal_too(flags, released, patched, teacher, losses):
    flags = f"--superclip {flags.format(teacher=teacher)}"
    assert losses(openclip_train, patched["3.3.0"], flags) == losses(superclip_train, released["3.3.0"], flags)


@pytest.mark.parametrize("captions", ["short", "long", "mixed:0.5", "dual"])
def test_long_captions_of_webdataset_are_equal_too(captions, released, patched, shards, losses):
    flags = f"--superclip --superclip-captions {captions} --superclip-long-caption txt --dataset-type webdataset"
    flags += f" --train-data {shards} --train-num-samples 64"
    expected = losses(superclip_train_in_one_order, released["3.3.0"], flags)
    assert losses(openclip_train_in_one_order, patched["3.3.0"], flags) == expected


def test_webdataset_without_the_flags_is_stock_to_the_last_digit(released, patched, shards, losses):
    flags = f"--dataset-type webdataset --train-data {shards} --train-num-samples 64"
    stock = losses(openclip_train_in_one_order, released["3.3.0"], flags)
    assert losses(superclip_train_in_one_order, released["3.3.0"], flags) == stock
    assert losses(openclip_train_in_one_order, patched["3.3.0"], flags) == stock


@pytest.mark.parametrize("workers", [0, 1])
@each_release
def test_slices_are_equal_too(release, workers, released, patched, shards, losses):
    flags = f"--dataset-type webdataset --train-data {shards} --train-num-samples 32 --workers {workers}"
    flags += f" --superclip-slices 2 --epochs 2 {'--superclip' if workers else ''}"
    expected = losses(superclip_train, released[release], flags)
    assert losses(openclip_train, patched[release], flags) == expected


def test_two_cpu_ranks_train_as_with_the_launcher(released, patched, losses):
    expected = losses(superclip_train, released["3.3.0"], "--superclip", world_size=2)
    assert losses(openclip_train, patched["3.3.0"], "--superclip", world_size=2) == expected


def test_two_cpu_ranks_train_with_a_teacher(patched, teacher, losses):
    flags = f"--superclip --distill-model {teacher} --distill-pretrained {teacher}"
    assert losses(openclip_train, patched["3.3.0"], flags, world_size=2)


def superclip_train_that_cannot_replace(tree: Path, *argv: str) -> int:
    """`superclip train` of a launcher that has lost the means to replace a name."""
    enter(tree)
    importlib.import_module("openclip_superclip.integration.unpatched_openclip")._replace = None
    return importlib.import_module("openclip_superclip.__main__").main(["train", *argv])


def test_the_launcher_replaces_nothing_in_a_patched_openclip(patched, losses):
    printed = losses(superclip_train_that_cannot_replace, patched["3.3.0"], "--superclip")
    assert printed == losses(openclip_train, patched["3.3.0"], "--superclip")


def test_the_launcher_trains_with_a_release_that_has_the_names_it_needs(released, losses, tmp_path):
    later = shutil.copytree(released["3.3.0"], tmp_path / "later")
    (later / "open_clip/version.py").write_text("__version__ = '3.9.0'\n")
    expected = losses(superclip_train, released["3.3.0"], "--superclip")
    assert losses(superclip_train, later, "--superclip") == expected


def import_openclip(tree: Path) -> int:
    enter(tree)
    importlib.import_module("open_clip")
    return bool({"open_clip.hooks", "pluggy"} & sys.modules.keys())


@each_release
def test_a_plain_import_of_openclip_imports_no_hooks(release, patched, tmp_path):
    (run,) = run_ranks(import_openclip, patched[release], cwd=tmp_path)
    assert run.returncode == 0, run.output


SECOND_PLUGIN = """
import pluggy

hookimpl = pluggy.HookimplMarker("open_clip")


@hookimpl
def open_clip_add_options(parser):
    parser.add_argument("--second", action="store_true", help="a flag of the second plugin")


@hookimpl(wrapper=True)
def open_clip_create_loss(args):
    loss = yield
    if not args.second:
        return loss
    from open_clip import create_loss
    from torch import nn

    class SecondLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = loss or create_loss(args)

        def forward(self, *, output_dict, **outputs):
            second = outputs["image_features"].square().sum(dim=1).mean() / 2
            return {**self.first(**outputs, output_dict=True), "second_loss": second}

    return SecondLoss()
"""


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("", ["Contrastive_loss", "Loss"]),
        ("--second", ["Contrastive_loss", "Loss", "Second_loss"]),
        ("--superclip --second", ["Class_loss", "Contrastive_loss", "Loss", "Second_loss"]),
    ],
)
def test_two_plugins_train_at_once(flags, names, patched, losses, tmp_path):
    tree = shutil.copytree(patched["3.3.0"], tmp_path / "tree")
    install_plugin(tree, "second", SECOND_PLUGIN)
    for line in losses(openclip_train, tree, flags):
        assert sorted(set(re.findall(r"(\w*loss): ", line, flags=re.IGNORECASE))) == names


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_plugin_that_fails_to_load_is_named_in_the_last_line(source, reason, patched, train_flags, tmp_path):
    install_plugin(tmp_path, "broken", source)
    sys_path = [str(tmp_path), *sys.path]

    def train(*argv):
        sys.path[:] = sys_path
        sys.modules.pop("broken_module", None)  # another test's
        openclip_train(*argv)

    (run,) = run_ranks(train, patched["3.3.0"], *train_flags, cwd=tmp_path)
    assert run.returncode != 0
    last = run.output.splitlines()[-1]
    assert "open_clip plugin 'broken' failed to load: " in last
    assert reason in last


def in_a_process_of_its_own(tree: Path, module: str, *argv: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *module.split(), *argv], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_usual_command_with_the_flag_trains_in_a_process_of_its_own(patched, train_flags, losses, tmp_path):
    flags = [*train_flags, "--batch-size", "32", "--logs", "none", "--superclip"]
    done = in_a_process_of_its_own(patched["3.3.0"], "open_clip_train.main", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Run(0, done.stderr).losses() == losses(openclip_train, patched["3.3.0"], "--superclip")


@pytest.mark.parametrize("tree", ["released", "patched"])
def test_a_flag_that_nobody_knows_is_openclips_own_error(tree, request, tmp_path):
    tree = request.getfixturevalue(tree)["3.3.0"]
    (run,) = run_ranks(openclip_train, tree, "--nonsense", cwd=tmp_path)
    assert run.returncode == 2
    assert run.output.endswith("main.py: error: unrecognized arguments: --nonsense\n")


def test_what_superclip_finds_while_it_trains_is_one_line_without_a_traceback(patched, train_flags, tmp_path):
    model = write_model(tmp_path / "model", text={"vocab_size": 300})
    argv = [*train_flags, "--model", model, "--superclip"]
    run = in_a_process_of_its_own(patched["3.3.0"], "open_clip_train.main", *argv, cwd=tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert re.search(r"^error: caption \d+ of the batch holds token id \d+", run.stderr, flags=re.MULTILINE)


def test_what_superclip_finds_in_a_data_loaders_worker_is_one_line_too(patched, train_flags, csv_data, tmp_path):
    header, *rows = csv_data.read_text().splitlines()
    table = tmp_path / "table.csv"
    table.write_text("\n".join([f"{header}\tlong", f"{rows[0]}\ta long caption", *(f"{row}\t" for row in rows[1:])]))
    argv = [*train_flags, "--train-data", str(table), "--workers", "1", "--superclip", "--superclip-captions", "long"]
    argv += ["--superclip-long-caption", "long", "--superclip-missing-long", "error"]
    run = in_a_process_of_its_own(patched["3.3.0"], "open_clip_train.main", *argv, cwd=tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    (error,) = Run(1, run.stderr).errors()
    assert error.startswith("error: --superclip-missing-long: sample ")


def test_the_launcher_refuses_an_openclip_whose_patch_was_interrupted(patched, train_flags, tmp_path):
    tree = shutil.copytree(patched["3.3.0"], tmp_path / "tree")
    (tree / "open_clip/hooks.py").unlink()
    run = in_a_process_of_its_own(tree, "openclip_superclip train", *train_flags, cwd=tmp_path)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "superclip patch apply" in line


def test_what_superclip_refuses_is_one_line_without_a_traceback(patched, train_flags, tmp_path):
    (run,) = run_ranks(openclip_train, patched["3.3.0"], *train_flags, "--superclip", "--trace", cwd=tmp_path)
    assert run.returncode == 1
    assert "Traceback" not in run.output
    assert run.output.startswith("error: --trace cannot carry the class head")
    assert not (tmp_path / "logs").exists()
