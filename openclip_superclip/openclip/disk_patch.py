"""Applies and reverts patches of OpenCLIP on disk: atomic per file, and idempotent.

A patch is a git diff, which git or patch applies to copies. Its headers contain the blob ids of
each file before and after. These ids determine the state of every file, so that an interrupted run
can be completed or reverted without a journal.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import shipped_folder
from . import package_folder

NOT_PATCHED = "not patched"
PATCHED = "patched"
MODIFIED = "modified"
NO_FILE = "0" * 40  # git's id of a missing file
PROGRAMS = {"git": ["apply", "--whitespace=nowarn"], "patch": ["-p1", "-F0", "-s"]}
Contents = dict[str, bytes | None]  # of files by path; None is no file


class Installation(NamedTuple):
    """`root` is the folder with open_clip/ and open_clip_train/: site-packages, an unpacked
    wheel, a checkout's src."""

    root: Path
    version: str

    def __str__(self) -> str:
        return f"open_clip_torch {self.version} in {self.root}"

    def read(self, path: str) -> bytes | None:
        return read(self.root / path)


def read(file: Path) -> bytes | None:
    """Returns the content of a file, None if there is none."""
    return file.read_bytes() if file.exists() else None


def find_installation(source: Path | None) -> Installation:
    """Returns the OpenCLIP in `source` or, by default, the installed one, without importing it."""
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
    return Installation(root.absolute(), version[1])


class FilePatch(NamedTuple):
    """The diff of a file, and its blob ids without and with it."""

    diff: str
    before: str
    after: str

    def state(self, content: bytes | None) -> str:
        """Returns whether a file of this content is patched."""
        states = {NO_FILE: "missing", self.after: PATCHED, self.before: NOT_PATCHED}
        return states.get(blob_id(content), "edited, or of another version")


def patches() -> dict[str, dict[str, FilePatch]]:
    """Returns the patches of each release of OpenCLIP by path, from the files in patches/.

    The first lines of a file list its releases, and the blob ids that differ from those in its
    diffs:

        release 3.3.0
        release 3.2.0
          open_clip_train/main.py BEFORE..AFTER
    """
    known = {}
    for file in shipped_folder("patches").glob("*.patch"):
        about, *diffs = re.split(r"(?m)^(?=diff --git )", file.read_text("utf-8"))
        paths = [re.match(r"diff --git a/(\S+)", diff)[1] for diff in diffs]
        ids = [re.search(r"(?m)^index (\w+\.\.\w+)", diff)[1] for diff in diffs]
        for block in about.split("\nrelease ")[1:]:
            release, *others = block.split("\n")
            own_ids = dict(zip(paths, ids, strict=True))
            own_ids |= dict(line.split() for line in others if line.strip())
            known[release] = {
                path: FilePatch(diff, *own_ids[path].split(".."))
                for path, diff in zip(paths, diffs, strict=True)
            }
    return dict(sorted(known.items()))


def blob_id(content: bytes | None) -> str:
    """Returns git's blob id of `content`."""
    if content is None:
        return NO_FILE
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class Status:
    """The state of an OpenCLIP, and of each file that the patch changes."""

    def __init__(self, openclip: Installation):
        known = patches()
        if openclip.version not in known:
            raise InputError(
                f"there is no patch for {openclip}; there is one for {', '.join(known)}"
            )
        self.patches = known[openclip.version]
        self.contents = {path: openclip.read(path) for path in self.patches}
        self.files = {
            path: self.patches[path].state(content) for path, content in self.contents.items()
        }
        self.unknown = [
            path for path, state in self.files.items() if state not in (PATCHED, NOT_PATCHED)
        ]
        states = {*self.files.values()}
        self.state = states.pop() if len(states) == 1 and not self.unknown else MODIFIED


def apply(openclip: Installation) -> dict[str, str]:
    """Applies the patch. Returns what was done to each file, nothing if it was already applied."""
    return _write(openclip, _contents(openclip, patched=True))


def revert(openclip: Installation) -> dict[str, str]:
    """Restores the release's files.

    Returns what was done to each file, nothing if there was no patch."""
    contents = _contents(openclip, patched=False)
    done = _write(openclip, dict(reversed(contents.items())))
    for path, content in contents.items():
        if content is None:
            folder = (openclip.root / path).parent
            for cached in folder.glob(f"__pycache__/{Path(path).stem}.*.pyc"):
                with contextlib.suppress(OSError):
                    cached.unlink()
    return done


def _contents(openclip: Installation, *, patched: bool) -> Contents:
    """Returns each file's content with or without the patch, in the order in which to apply it.

    RECORD comes first, so that pip removes the added file. That file comes last: without
    open_clip/hooks.py, a patched file refuses to run. Raises InputError if a file is neither the
    release's nor the patched one.
    """
    status = Status(openclip)
    if status.unknown:
        files = ", ".join(f"{path} ({status.files[path]})" for path in status.unknown)
        raise InputError(
            f"{openclip}: {files}; expected the release's file or the patched one; nothing was "
            "changed. Undo the edit, reinstall with pip install --force-reinstall --no-deps "
            f"open_clip_torch=={openclip.version}, or, in a checkout, git checkout "
            f"v{openclip.version}"
        )
    added = [path for path, patch in status.patches.items() if patch.before == NO_FILE]
    contents = {}
    record = f"open_clip_torch-{openclip.version}.dist-info/RECORD"  # not in a checkout
    record_content = openclip.read(record)
    if record_content is not None:
        contents[record] = _record(record_content, added, patched=patched)
    contents |= {path: status.contents[path] for path in status.patches if path not in added}
    contents |= {path: status.contents[path] for path in added}
    state = PATCHED if patched else NOT_PATCHED
    others = [path for path in status.patches if status.files[path] != state]
    return contents | changed(
        {path: status.contents[path] for path in others}, status.patches, reverse=not patched
    )


def changed(contents: Contents, patches: Mapping[str, FilePatch], *, reverse: bool) -> Contents:
    """Returns the contents of files with their patches or, with `reverse`, without them.

    Raises InputError if there is neither git nor patch.
    """
    ids = {path: patches[path].before if reverse else patches[path].after for path in contents}
    result = {path: None for path in contents if ids[path] == NO_FILE}
    others = [path for path in contents if path not in result]
    if not others:
        return result
    program = next(filter(shutil.which, PROGRAMS), None)
    if program is None:
        raise InputError(
            "superclip patch calls git or patch, and neither is on PATH: install one of them; "
            "nothing was changed"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for path in others:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if contents[path] is not None:
                (folder / path).write_bytes(contents[path])
        run = subprocess.run(
            [program, *PROGRAMS[program], *(["-R"] if reverse else [])],
            input="".join(patches[path].diff for path in others).encode(),
            cwd=folder,
            # no settings of git's, and no repository around the folder
            env={"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(folder.parent)},
            capture_output=True,
            check=False,
        )
        result |= {path: read(folder / path) for path in others}
    if any(blob_id(content) != ids[path] for path, content in result.items()):
        output = " ".join(run.stderr.decode(errors="replace").split())
        raise InputError(f"{program} cannot apply the patch: {output}; nothing was changed")
    return result


def _record(record: bytes, paths: Collection[str], *, patched: bool) -> bytes:
    """Returns a wheel's RECORD with or without lines for `paths`; with them, pip uninstalls these
    files too."""
    lines = record.splitlines(keepends=True)
    rest = b"".join(line for line in lines if line.split(b",")[0].decode() not in paths)
    if not patched:
        return rest
    end = b"\r\n" if b"\r\n" in rest else b"\n"
    return b"".join(path.encode() + b",," + end for path in paths) + rest


def _write(openclip: Installation, contents: Contents) -> dict[str, str]:
    """Writes `contents` (None: no file), and returns what was done to each file; InputError if
    one is not writable."""
    new = {path: text for path, text in contents.items() if text != openclip.read(path)}
    files = {path: openclip.root / path for path in contents}
    parts = {path: file.with_name(f"{file.name}.superclip-part") for path, file in files.items()}
    done = {}
    try:
        for path, content in new.items():
            if content is not None:
                parts[path].write_bytes(content)
                exists = files[path].exists()
                like = files[path] if exists else openclip.root / "open_clip/__init__.py"
                shutil.copymode(like, parts[path])
        for path, content in new.items():
            if content is None:
                files[path].unlink()
                done[path] = "removed"
            else:
                action = "changed" if files[path].exists() else "added"
                os.replace(parts[path], files[path])
                done[path] = action
    except OSError as error:
        so_far = "nothing was changed"
        if done:
            so_far = f"changed so far: {', '.join(done)}; run this again, or undo it"
        raise InputError(f"cannot write {files[path]}: {error.strerror}; {so_far}") from None
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)  # including those of a killed run
    return done
