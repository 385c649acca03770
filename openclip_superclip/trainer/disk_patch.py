"""Applies and reverts patches of OpenCLIP on disk: atomic per file, and idempotent.

A patch is a git diff, which git or patch applies to copies. Its headers contain the blob ids of
each file before and after. These ids determine the state of every file, so that an interrupted run
can be completed or reverted without a journal.
"""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import shipped_folder
from . import package_folder

NOT_PATCHED = "not patched"
PATCHED = "patched"
MODIFIED = "modified"
NO_FILE = "0" * 40  # git's id of a missing file
PROGRAMS = {"git": ["apply", "--whitespace=nowarn"], "patch": ["-p1", "-F0", "-s", "-E"]}
STAGED = "superclip-patch.part"  # the folder of changed files until they are moved


class FilePatch(NamedTuple):
    """The diff of a file, and git's blob id of the patched file by that of each release's file."""

    diff: str
    ids: dict[str, str]

    def state(self, file: Path) -> str:
        """Returns whether a file is patched."""
        blob = blob_id(file)
        if blob in self.ids:
            return NOT_PATCHED
        if blob in self.ids.values():
            return PATCHED
        return "missing" if blob == NO_FILE else "edited, or of another version"


def blob_id(file: Path) -> str:
    """Returns git's blob id of a file."""
    if not file.exists():
        return NO_FILE
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def patches() -> dict[str, dict[str, FilePatch]]:
    """Returns the patches of each release of OpenCLIP by path, from the files in patches/.

    The first lines of a file list its releases, and the blob ids that differ from those in its
    diffs:

        releases 3.2.0 3.3.0
        open_clip_train/main.py BEFORE..AFTER
    """
    known = {}
    for file in shipped_folder("patches").glob("*.patch"):
        about, *diffs = re.split(r"(?m)^(?=diff --git )", file.read_text("utf-8"))
        by_path = {}
        for diff in diffs:
            path = re.match(r"diff --git a/(\S+)", diff)[1]
            ids = re.findall(rf"(?m)^(?:index|{path}) (\w+)\.\.(\w+)", about + diff)
            by_path[path] = FilePatch(diff, dict(ids))
        for release in re.search(r"(?m)^releases (.+)", about)[1].split():
            known[release] = by_path
    return dict(sorted(known.items()))


class Installation(NamedTuple):
    """`root` is the folder with open_clip/ and open_clip_train/: site-packages, an unpacked
    wheel, a checkout's src."""

    root: Path
    version: str
    patches: dict[str, FilePatch]

    def __str__(self) -> str:
        return f"open_clip_torch {self.version} in {self.root}"

    def states(self) -> dict[str, str]:
        """Returns the state of each file that the patch changes."""
        return {path: patch.state(self.root / path) for path, patch in self.patches.items()}


def find_installation(source: Path | None) -> Installation:
    """Returns the OpenCLIP in `source` or, by default, the installed one, without importing it.

    Raises InputError if there is none, or no patch for it."""
    if source is None:
        root = package_folder().parent
    else:
        roots = [
            root for root in (source, source / "src") if (root / "open_clip/__init__.py").is_file()
        ]
        if not roots:
            raise InputError(
                f"--source {source} has no OpenCLIP: expected open_clip/ or src/open_clip/ there"
            )
        root = roots[0]
    version_file = root / "open_clip/version.py"
    text = version_file.read_text(errors="replace")
    version = re.search(r"__version__ = ['\"](.+)['\"]", text)
    if version is None:
        raise InputError(f"{version_file} does not contain the version of OpenCLIP: reinstall it")
    known = patches()
    openclip = Installation(root.absolute(), version[1], known.get(version[1], {}))
    if not openclip.patches:
        raise InputError(f"there is no patch for {openclip}; there is one for {', '.join(known)}")
    return openclip


def change(openclip: Installation, state: str) -> dict[str, str]:
    """Applies the patch, or reverts it: brings every file into this state.

    Returns what was done to each file. RECORD is changed first, so that pip removes the added file.
    That file comes last: without open_clip/hooks.py, a patched file refuses to run. To revert, the
    order is reversed. Raises InputError if a file is neither the release's nor the patched one.
    """
    states = openclip.states()
    unknown = [
        f"{path} ({found})" for path, found in states.items() if found not in (PATCHED, NOT_PATCHED)
    ]
    if unknown:
        raise InputError(
            f"{openclip}: {', '.join(unknown)}; expected the release's file or the patched one; "
            "nothing was changed. Undo the edit, reinstall with pip install --force-reinstall "
            f"--no-deps open_clip_torch=={openclip.version}, or, in a checkout, git checkout "
            f"v{openclip.version}"
        )
    added = [path for path, patch in openclip.patches.items() if NO_FILE in patch.ids]
    paths = sorted(
        (path for path, found in states.items() if found != state), key=lambda path: path in added
    )
    record = f"open_clip_torch-{openclip.version}.dist-info/RECORD"  # not in a checkout
    staged = openclip.root.resolve() / STAGED
    shutil.rmtree(staged, ignore_errors=True)  # of a killed run
    try:
        if paths:
            _stage(openclip, paths, state, staged)
        if (openclip.root / record).exists():
            content = (openclip.root / record).read_bytes()
            changed = _record(content, added, patched=state == PATCHED)
            if changed != content:
                (staged / record).parent.mkdir(parents=True)
                (staged / record).write_bytes(changed)
                paths.insert(0, record)
        return _move(paths if state == PATCHED else paths[::-1], staged, openclip.root)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _stage(openclip: Installation, paths: list[str], state: str, staged: Path) -> None:
    """Writes files in another state to a folder; InputError if there is neither git nor patch."""
    program = next(filter(shutil.which, PROGRAMS), None)
    if program is None:
        raise InputError(
            "superclip patch calls git or patch, and neither is on PATH: install one of them; "
            "nothing was changed"
        )
    for path in paths:
        (staged / path).parent.mkdir(parents=True, exist_ok=True)
        if (openclip.root / path).exists():
            shutil.copyfile(openclip.root / path, staged / path)
    run = subprocess.run(
        [program, *PROGRAMS[program], *(["-R"] if state == NOT_PATCHED else [])],
        input="".join(openclip.patches[path].diff for path in paths).encode(),
        cwd=staged,
        # no settings of git's, and no repository around the folder
        env={"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(staged.parent)},
        capture_output=True,
        check=False,
    )
    if any(openclip.patches[path].state(staged / path) != state for path in paths):
        output = " ".join(run.stderr.decode(errors="replace").split())
        raise InputError(f"{program} cannot apply the patch: {output}; nothing was changed")


def _record(record: bytes, paths: list[str], *, patched: bool) -> bytes:
    """Returns a wheel's RECORD with or without lines for `paths`; with them, pip uninstalls these
    files too."""
    lines = record.splitlines(keepends=True)
    rest = b"".join(line for line in lines if line.split(b",")[0].decode() not in paths)
    if not patched:
        return rest
    end = b"\r\n" if b"\r\n" in rest else b"\n"
    return b"".join(path.encode() + b",," + end for path in paths) + rest


def _move(paths: list[str], staged: Path, root: Path) -> dict[str, str]:
    """Moves files from one folder to another, and removes those that are missing; returns what was
    done to each file, InputError if one is not writable."""
    done = {}
    for path in paths:
        file = root / path
        try:
            if (staged / path).exists():
                exists = file.exists()
                shutil.copymode(file if exists else root / "open_clip/__init__.py", staged / path)
                os.replace(staged / path, file)
                done[path] = "changed" if exists else "added"
            else:
                for cached in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
                    cached.unlink()
                file.unlink()
                done[path] = "removed"
        except OSError as error:
            so_far = "nothing was changed"
            if done:
                so_far = f"changed so far: {', '.join(done)}; run this again, or undo it"
            raise InputError(f"cannot write {file}: {error.strerror}; {so_far}") from None
    return done
