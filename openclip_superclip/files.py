"""Atomic writing of files and folders; JSON; checks of outputs; files of the package."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError, as_input_error

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors that only writing raises
# the same of safetensors and tokenizers, and of torch.save, which have no errno
FULL_TEXTS = re.compile(
    rf"\(os error ({'|'.join(map(str, FULL))})\)|inline_container\.cc.*(unexpected "
    r"pos|PytorchStreamWriter)"
)


def is_full(error: Exception) -> bool:
    """Returns whether a file could not be written because the disk is full, or a similar limit
    is reached."""
    return getattr(error, "errno", None) in FULL or bool(FULL_TEXTS.search(str(error)))


def why_full(error: Exception) -> str:
    """Returns the text of an error for which `is_full` is true; those of torch.save do not name
    the disk."""
    return getattr(error, "strerror", None) or "the disk is full, or a limit is reached"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A temporary file to write to, renamed to `path` when it is complete."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # otherwise a power failure may leave an empty file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file; file names in it may not be valid UTF-8."""
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: Path, values: dict) -> None:
    """Writes indented JSON."""
    write_text(path, json_text(values))


def json_text(values: dict) -> str:
    """Returns indented JSON."""
    return json.dumps(values, indent=1) + "\n"


MAX_TEXT = 2**28  # bytes of a file that is read whole


def check_regular(path: str | Path) -> None:
    """Raises OSError for a device or a pipe: reading it may never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is not a regular file")


def read_whole(path: Path, most: int = MAX_TEXT) -> bytes:
    """Returns the content of a file; OSError if it is not a regular one, or larger than `most`
    bytes."""
    check_regular(path)
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(f"it is larger than {most:,} bytes")
        return file.read()


def read_json(path: Path, flag: str = "", advice: str = "") -> dict:
    """Returns the JSON object in a file; InputError, with `flag`, the file and `advice`, if it is
    missing or broken, or contains something else."""
    prefix = f"{flag}: " if flag else ""
    with as_input_error(f"{prefix}{path} cannot be read", f": {advice}" if advice else ""):
        content = json.loads(read_whole(path))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    return content


def json_or_empty(path: Path) -> dict:
    """Returns the JSON object in a file; {} if it is missing or broken."""
    try:
        return read_json(path)
    except InputError:
        return {}


@contextmanager
def atomic_output(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path for a folder or file, renamed to `out` when it is complete.

    With `overwrite`, an existing folder is replaced completely. Raises InputError if the folder of
    `out` cannot be written.
    """
    target = Path(os.path.realpath(out))
    make_folder(target.parent)
    _clean(target)
    name = f"{target.name}.{socket.gethostname()}-{os.getpid()}"
    part = target.with_name(f"{name}.part{target.suffix}")
    old = target.with_name(f"{name}.old")
    try:
        yield part
        if overwrite and target.is_dir():
            os.replace(target, old)
        os.replace(part, target)
    finally:
        _clean(target)


def _clean(target: Path) -> None:
    """Removes what this process, and killed ones of this machine, have left beside an output, and
    restores the output that they were replacing."""
    host = re.escape(f"{target.name}.{socket.gethostname()}")
    name = re.compile(rf"{host}-(\d+)\.(old|part{re.escape(target.suffix)})")
    for path in list(target.parent.iterdir()):
        match = name.fullmatch(path.name)
        if match is None:
            continue
        pid = int(match[1])
        if pid != os.getpid() and is_running(pid):
            continue
        if match[2] == "old" and not target.exists():
            os.replace(path, target)
        else:
            _remove(path)


def is_running(pid: int | None) -> bool:
    """Returns whether this machine has a process with this number."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def take_lock(file: BinaryIO | int) -> bool | None:
    """Locks an open file, or a file's descriptor, until it is closed; returns whether no other
    process holds the lock, None on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _remove(path: Path) -> None:
    """Removes a file or folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(folder: Path, flag: str = "--out") -> None:
    """Creates a folder for results; InputError, naming `flag`, if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # os.access allows root to write below /proc
            pass
    except OSError as error:
        raise InputError(f"{flag}: {folder} cannot be written ({error.strerror})") from error


PACKAGE = Path(__file__).parent


def shipped_folder(name: str) -> Path:
    """Returns the folder `name` (recipes, patches, slurm) of the installed package or, in a
    checkout, beside it."""
    return next(path for path in (PACKAGE / name, PACKAGE.parent / name) if path.is_dir())


# in folders that --overwrite may replace: the command that wrote them, and each file's digest
WRITTEN = "superclip.json"


def write_record(folder: Path, command: str) -> None:
    """Writes which command has written the files of a folder."""
    digests = {file.name: content_digest(file) for file in sorted(folder.iterdir())}
    write_json(folder / WRITTEN, {"command": command, "files": digests})


def check_out(
    out: Path, inputs: Iterable[Path], command: str, *, overwrite: bool, folder: bool = False
) -> None:
    """Raises InputError if `out` exists, unless `overwrite` may replace it.

    It may replace a file or, with `folder`, a folder that contains only files that the same command
    has written, but no input and no folder of an input.
    """
    target = Path(os.path.realpath(out))
    if target.parent.is_dir():
        _clean(target)
    if not os.path.lexists(target):
        return
    sources = [path for path in inputs if _touches(target, path)]
    foreign = _foreign_files(target, command) if folder and target.is_dir() else set()
    problem = ""
    if not overwrite:
        problem = "exists, and --overwrite is not given"
    elif folder != target.is_dir():
        problem = f"is a {'file' if folder else 'folder'}"
    elif sources:
        problem = f"is, contains or is in {sources[0]}, which is an input"
    elif foreign:
        problem = f"contains {min(foreign)}, which this command has not written"
    if problem:
        raise InputError(f"--out: {out} {problem}; give another name")


def _touches(target: Path, path: Path) -> bool:
    """Returns whether an input is the output, is in it, or is its folder."""
    source = Path(os.path.realpath(path))
    return source.is_relative_to(target) or source == target.parent


def _foreign_files(folder: Path, command: str) -> set[str]:
    """Returns the names in a folder that the command has not recorded as its own."""
    record = json_or_empty(folder / WRITTEN)
    written = record.get("files", {}) if record.get("command") == command else {}
    return {*os.listdir(folder)} - {WRITTEN, *written}


def check_results(folder: Path, names: Sequence[str], key: str) -> None:
    """Raises InputError, naming --out, if a folder contains files of these names, and the first of
    them is not the command's: JSON with this key."""
    present = [name for name in names if os.path.lexists(folder / name)]
    if present and key not in json_or_empty(folder / names[0]):
        raise InputError(
            f"--out: {folder} contains {present[0]}, which this command has not written; give "
            "another name"
        )


def file_identity(path: Path) -> str | None:
    """Returns a digest of the checksums in a file that torch saved, of the content of another file,
    or of the record in a folder of ours; None if there is none."""
    file = path / WRITTEN if path.is_dir() else path
    try:
        with zipfile.ZipFile(file) as archive:
            parts = [
                (info.filename.partition("/")[2], info.CRC, info.file_size)
                for info in archive.infolist()
            ]
    except OSError:
        return None
    except zipfile.BadZipFile:
        return content_digest(file)
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """Returns a digest of the names, sizes and modification times of the files in a folder."""
    digest = hashlib.sha256()
    paths = [
        Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names
    ]
    for path in sorted(paths):
        if path.exists():
            state = path.stat()
            name = os.path.relpath(path, folder)
            digest.update(repr((name, state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """Returns a digest of a whole file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            digest.update(chunk)
    return digest.hexdigest()
