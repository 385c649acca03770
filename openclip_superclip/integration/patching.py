"""Gives an OpenCLIP on disk its hooks, and takes them away again.

A patch is a git diff: its headers name, by blob id, what each file holds before and after. These ids tell the state of
every file, so an interrupted run is completed or undone without a journal. A wheel also keeps, in its metadata, the
patch that was applied, so that another version of this package can undo it.
"""

import hashlib
import os
import shutil
from pathlib import Path

import whatthepatch

from ..errors import InputError
from ..shipped_files import shipped_folder
from .installed_openclip import Contents, Installation, rewrite_record

NOT_PATCHED, PATCHED, OTHER, MODIFIED = "not patched", "patched", "patched by another version", "modified"
MISSING, EDITED = "missing", "edited, or of another commit"
KEPT = "hooks.patch"  # in the wheel's metadata: the patch that was applied
NO_FILE = "0" * 40  # git's id of no blob
CONTRACT = b'HookspecMarker("open_clip")'  # in open_clip/hooks.py, whatever version wrote it


def patch_files() -> dict[str, Path]:
    """Returns the patches, of the installed package or of the checkout: release of OpenCLIP: file."""
    files = shipped_folder("patches").glob("*.patch")
    return {path.stem.removeprefix("open_clip-"): path for path in sorted(files)}


def blob_id(content: bytes | None) -> str:
    """Returns git's name for a file that holds `content`."""
    if content is None:
        return NO_FILE
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class Patch:
    """A git diff with full blob ids; `before` and `after` map each path to the id of what it holds then."""

    def __init__(self, text: bytes):
        self.text = text
        self.diffs = {diff.header.new_path: diff for diff in whatthepatch.parse_patch(text.decode())}
        self.before = {path: diff.header.old_version for path, diff in self.diffs.items()}
        self.after = {path: diff.header.new_version for path, diff in self.diffs.items()}

    def apply(self, path: str, content: bytes | None) -> bytes:
        return self._change(path, content or b"", reverse=False)

    def revert(self, path: str, content: bytes) -> bytes | None:
        return None if self.before[path] == NO_FILE else self._change(path, content, reverse=True)

    def _change(self, path: str, content: bytes, reverse: bool) -> bytes:
        lines = whatthepatch.apply_diff(self.diffs[path], content.decode().split("\n"), reverse=reverse)
        changed = "\n".join(lines).encode()
        assert blob_id(changed) == (self.before if reverse else self.after)[path]
        return changed


class Status:
    """What is known of an OpenCLIP: `state`, of the whole, and `files`, the state of each that a patch changes."""

    def __init__(self, openclip: Installation):
        known = patch_files()
        if openclip.version not in known:
            raise InputError(f"there is no patch for {openclip}; there is one for {', '.join(known)}")
        self.ours = Patch(known[openclip.version].read_bytes())
        kept = openclip.read(f"{openclip.dist_info}/{KEPT}") if openclip.dist_info else None
        self.applied = self.ours if kept is None else Patch(kept)
        before = self.applied.before | self.ours.before
        ids_of = {
            NOT_PATCHED: before,
            PATCHED: before | self.ours.after,
            OTHER: before | self.applied.after,
        }
        self.contents = {path: openclip.read(path) for path in before}
        self.ids = {path: blob_id(content) for path, content in self.contents.items()}
        self.files = {
            path: next((state for state, ids in ids_of.items() if ids[path] == found), None)
            or (MISSING if found == NO_FILE else EDITED)
            for path, found in self.ids.items()
        }
        self.unknown = [path for path, state in self.files.items() if state in (MISSING, EDITED)]
        self.state = next((state for state, ids in ids_of.items() if ids == self.ids), MODIFIED)
        hooks = "open_clip/hooks.py"
        if hooks in self.unknown and CONTRACT in self.contents[hooks]:
            self.state = OTHER  # by hand or in a checkout, where nothing tells what else that version changed

    def originals(self) -> Contents:
        """Returns what the release holds in the files; all of them must be in a known state."""
        originals = dict(self.contents)
        for patch in (self.applied, self.ours):
            for path in patch.diffs:
                if self.ids[path] == patch.after[path]:
                    originals[path] = patch.revert(path, self.contents[path])
        return originals


def apply(openclip: Installation) -> dict[str, str]:
    """Makes the files what our patch makes of the release. Returns what was done to each, nothing if all was so."""
    status = _known_status(openclip)
    undone = revert(openclip) if status.applied.text != status.ours.text else {}
    steps = _steps(openclip, _known_status(openclip))
    return undone | _write(openclip, {path: after for path, (_, after) in steps.items()})


def revert(openclip: Installation) -> dict[str, str]:
    """Makes the files what they are in the release. Returns what was done to each, nothing if all was so."""
    steps = _steps(openclip, _known_status(openclip))
    done = _write(openclip, {path: before for path, (before, _) in reversed(steps.items())})
    for path, (before, _) in steps.items():
        if before is None:
            for cached in (openclip.root / path).parent.glob(f"__pycache__/{Path(path).stem}.*.pyc"):
                cached.unlink()
    return done


def _known_status(openclip: Installation) -> Status:
    status = Status(openclip)
    if status.unknown:
        files = ", ".join(f"{path} ({status.files[path]})" for path in status.unknown)
        raise InputError(
            f"{openclip}: {files}; expected the release's file or the patched one; nothing was changed. Undo the edit, "
            f"reinstall with pip install --force-reinstall --no-deps open_clip_torch=={openclip.version}, or, in a "
            f"checkout, git checkout v{openclip.version}"
        )
    return status


def _steps(openclip: Installation, status: Status) -> dict[str, tuple[bytes | None, bytes | None]]:
    """Returns each file's content without and with the applied patch, in the order in which to apply it.

    RECORD first: pip then removes whatever else was written. Added files last: without open_clip/hooks.py whatever
    was patched before it refuses to run.
    """
    patch, info = status.applied, openclip.dist_info
    originals = {path: content for path, content in status.originals().items() if path in patch.diffs}
    before = dict(sorted(originals.items(), key=lambda item: item[1] is None))
    after = {path: patch.apply(path, content) for path, content in before.items()}
    if info:
        before, after = {f"{info}/{KEPT}": None, **before}, {f"{info}/{KEPT}": patch.text, **after}
        record = f"{info}/RECORD"
        added = [path for path, content in before.items() if content is None]
        listed = [rewrite_record(openclip.read(record), contents, added) for contents in (before, after)]
        before, after = {record: listed[0], **before}, {record: listed[1], **after}
    return {path: (before[path], after[path]) for path in after}


def _write(openclip: Installation, contents: Contents) -> dict[str, str]:
    """Makes the files hold `contents`, in this order, and returns what was done to those that did not.

    Raises InputError, before the first file has changed, where one cannot be written.
    """
    parts = {path: (openclip.root / path).with_name(f"{Path(path).name}.superclip-part") for path in contents}
    held = {path: openclip.read(path) for path in contents}
    changed = {path: content for path, content in contents.items() if content != held[path]}
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
            else:
                os.replace(parts[path], openclip.root / path)
            done[path] = "removed" if content is None else "added" if held[path] is None else "changed"
    except OSError as error:
        so_far = f"changed so far: {', '.join(done)}; run this again, or undo it" if done else "nothing was changed"
        raise InputError(f"cannot write {openclip.root / path}: {error.strerror}; {so_far}") from None
    finally:
        for part in parts.values():
            if part.exists():  # also what a killed run left behind
                part.unlink()
    return done
