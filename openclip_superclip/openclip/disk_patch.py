"""Applies and reverts patches of OpenCLIP on disk: atomic per file, and idempotent.

A patch is a git diff. Its headers contain the blob ids of each file before and after. These ids
determine the state of every file, so that an interrupted run can be completed or reverted without a
journal.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import whatthepatch

from ..errors import InputError
from ..files import shipped_folder
from . import package_folder

NOT_PATCHED = "not patched"
PATCHED = "patched"
MODIFIED = "modified"
NO_FILE = "0" * 40  # git's id of a missing file


class Installation(NamedTuple):
    """`root` is the folder with open_clip/ and open_clip_train/: site-packages, an unpacked
    wheel, a checkout's src."""

    root: Path
    version: str

    def __str__(self) -> str:
        return f"open_clip_torch {self.version} in {self.root}"

    def read(self, path: str) -> bytes | None:
        file = self.root / path
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


def patches() -> dict[str, "Patch"]:
    """Returns the patch for each release of OpenCLIP, from the files in patches/.

    The first lines of a file list its releases, and the blob ids that differ from those in its
    diffs:

        release 3.3.0
        release 3.2.0
          open_clip_train/main.py BEFORE..AFTER
    """
    known = {}
    for file in shipped_folder("patches").glob("*.patch"):
        about, start, diffs = file.read_bytes().decode().partition("diff --git ")
        for block in about.split("\nrelease ")[1:]:
            release, *others = block.split("\n")
            own_ids = dict(line.split() for line in others if line.strip())
            known[release] = Patch(start + diffs, own_ids)
    return dict(sorted(known.items()))


def blob_id(content: bytes | None) -> str:
    """Returns git's blob id of `content`."""
    if content is None:
        return NO_FILE
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class Patch:
    """A git diff with full blob ids; `before` and `after` map each path to its blob id.

    `own_ids`, BEFORE..AFTER, replace those of the diff, by path."""

    def __init__(self, text: str, own_ids: Mapping[str, str]):
        self.diffs = {diff.header.new_path: diff for diff in whatthepatch.parse_patch(text)}
        self.before = {}
        self.after = {}
        for path, diff in self.diffs.items():
            ids = f"{diff.header.old_version}..{diff.header.new_version}"
            self.before[path], self.after[path] = own_ids.get(path, ids).split("..")

    def change(self, path: str, content: bytes | None, *, reverse: bool = False) -> bytes | None:
        """Returns a file's content with the patch or, with `reverse`, without it; None is no
        file."""
        if reverse and self.before[path] == NO_FILE:
            return None
        text = f"\n{(content or b'').decode()}"  # every line follows a \n
        changes = self.diffs[path].changes
        for number in dict.fromkeys(change.hunk for change in changes):
            hunk = [change for change in changes if change.hunk == number]
            old = "".join(f"\n{change.line}" for change in hunk if change.old is not None)
            new = "".join(f"\n{change.line}" for change in hunk if change.new is not None)
            if reverse:
                old, new = new, old
            # At any position in the file, as line numbers differ between releases.
            text = text.replace(old, new, 1)
        changed = text[1:].encode()
        assert blob_id(changed) == (self.before if reverse else self.after)[path]
        return changed


class Status:
    """The state of an OpenCLIP, and of each file that the patch changes."""

    def __init__(self, openclip: Installation):
        known = patches()
        if openclip.version not in known:
            raise InputError(
                f"there is no patch for {openclip}; there is one for {', '.join(known)}"
            )
        self.patch = known[openclip.version]
        self.contents = {path: openclip.read(path) for path in self.patch.diffs}
        self.files = {}
        for path, content in self.contents.items():
            known_ids = {
                NO_FILE: "missing",
                self.patch.after[path]: PATCHED,
                self.patch.before[path]: NOT_PATCHED,
            }
            self.files[path] = known_ids.get(blob_id(content), "edited, or of another version")
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
                cached.unlink()
    return done


def _contents(openclip: Installation, *, patched: bool) -> dict[str, bytes | None]:
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
    patch = status.patch
    added = [path for path in status.contents if patch.before[path] == NO_FILE]
    changed = [path for path in status.contents if path not in added]
    contents = {}
    record = f"open_clip_torch-{openclip.version}.dist-info/RECORD"  # not in a checkout
    record_content = openclip.read(record)
    if record_content is not None:
        contents[record] = _record(record_content, added, patched=patched)
    for path in changed + added:
        content = status.contents[path]
        is_patched = status.files[path] == PATCHED
        if is_patched != patched:
            content = patch.change(path, content, reverse=is_patched)
        contents[path] = content
    return contents


def _record(record: bytes, paths: Collection[str], *, patched: bool) -> bytes:
    """Returns a wheel's RECORD with or without lines for `paths`; with them, pip uninstalls these
    files too."""
    lines = record.splitlines(keepends=True)
    rest = b"".join(line for line in lines if line.split(b",")[0].decode() not in paths)
    if not patched:
        return rest
    end = b"\r\n" if b"\r\n" in rest else b"\n"
    return b"".join(path.encode() + b",," + end for path in paths) + rest


def _write(openclip: Installation, contents: Mapping[str, bytes | None]) -> dict[str, str]:
    """Writes `contents` (None: no file), and returns what was done to each file; InputError if
    one is not writable."""
    held = {path: openclip.read(path) for path in contents}
    changed = {path: content for path, content in contents.items() if content != held[path]}
    parts = {
        path: (openclip.root / path).with_name(f"{Path(path).name}.superclip-part")
        for path in contents
    }
    done = {}
    try:
        for path, content in changed.items():
            if content is not None:
                parts[path].write_bytes(content)
                like = path if held[path] is not None else "open_clip/__init__.py"
                shutil.copymode(openclip.root / like, parts[path])
        for path, content in changed.items():
            if content is None:
                (openclip.root / path).unlink()
                done[path] = "removed"
            else:
                os.replace(parts[path], openclip.root / path)
                done[path] = "added" if held[path] is None else "changed"
    except OSError as error:
        so_far = "nothing was changed"
        if done:
            so_far = f"changed so far: {', '.join(done)}; run this again, or undo it"
        raise InputError(
            f"cannot write {openclip.root / path}: {error.strerror}; {so_far}"
        ) from None
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)  # including those of a killed run
    return done
