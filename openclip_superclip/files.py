"""Atomic writing of files and folders; JSON; checks of outputs; files of the package."""

import errno
import hashlib
import json
import os
import shutil
import signal
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError, reason

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors that only writing raises


class NotWritten(OSError):
    """A library could not write a file and gave no errno."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file to write to, renamed when it is complete."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with _terminated_as_by_exit():
        try:
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # otherwise a power failure may leave an empty file
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: dict, allow_nan: bool = True) -> None:
    """Writes indented JSON; ValueError for NaN and infinity if they are not allowed."""
    write_text(path, json.dumps(values, indent=1, allow_nan=allow_nan) + "\n")


def read_json(path: Path, default: dict | None = None, flag: str = "", advice: str = "") -> dict:
    """Returns the JSON object in a file.

    If the file is missing, broken or not a JSON object, returns `default`, if given; otherwise raises InputError with
    `flag`, the file and `advice`.
    """
    try:
        content = json.loads(path.read_text())
        problem = "it holds no JSON object"
    except (OSError, ValueError) as error:
        content, problem = None, reason(error)
    if isinstance(content, dict):
        return content
    if default is not None:
        return default
    raise InputError(f"{flag}{': ' if flag else ''}{path} cannot be read ({problem}){': ' if advice else ''}{advice}")


@contextmanager
def whole_output(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary path for a folder or file, renamed to `out` when it is complete.

    With `overwrite`, an existing folder is replaced completely. Raises InputError if `out` exists, unless `overwrite`,
    or cannot be written, for example on a full disk. Other files' OSErrors are not caught.
    """
    if os.path.exists(out) and not overwrite:
        raise InputError(f"--out: {out} exists; give another name, or --overwrite")
    place = Path(os.path.realpath(out))
    part = place.with_name(f"{place.name}.{os.getpid()}.part{place.suffix}")
    with _terminated_as_by_exit():
        is_body = False
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            is_body = True
            yield part
            is_body = False
            if overwrite and part.is_dir() and place.is_dir():
                _replace_folder(part, place)
            elif overwrite or part.is_dir():  # a folder cannot replace a non-empty one
                os.replace(part, place)
            else:
                os.link(part, place)  # fails if another process has written the file in the meantime
        except OSError as error:
            if is_body and not _is_of_writing(error, part):
                raise
            raise InputError(f"--out: {out} cannot be written ({reason(error)})") from error
        finally:
            if os.path.isdir(part):
                shutil.rmtree(part)
            elif os.path.lexists(part):
                part.unlink()


def _is_of_writing(error: OSError, part: Path) -> bool:
    """Returns whether an error comes from writing to `part` or a file in it."""
    if isinstance(error.filename, str | bytes | os.PathLike):
        return Path(os.path.realpath(os.fsdecode(error.filename))).is_relative_to(part)
    return isinstance(error, NotWritten) or error.errno in FULL


def _replace_folder(new: Path, old: Path) -> None:
    """Replaces `old` by `new`; undoes the first rename if the second fails."""
    aside = old.with_name(f"{old.name}.{os.getpid()}.old.part")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
    shutil.rmtree(aside)


def make_folder(folder: Path, flag: str) -> None:
    """Creates a folder for results; InputError, naming `flag`, if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"{flag}: {folder} cannot be written ({error.strerror})") from error


@contextmanager
def _terminated_as_by_exit() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP raise SystemExit, so that an incomplete output is removed.

    Has no effect if the process has its own handlers, or outside the main thread.
    """

    def end(number, frame):
        raise SystemExit(128 + number)

    signals = []
    if threading.current_thread() is threading.main_thread():
        signals = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in signals:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


PACKAGE = Path(__file__).parent


def shipped_folder(name: str) -> Path:
    """Returns the folder `name` (recipes, patches, slurm) of the installed package or, in a checkout, beside it."""
    return next(path for path in (PACKAGE / name, PACKAGE.parent / name) if path.is_dir())


# Files of export, import and tokenizers: --overwrite may only replace a folder of such files.
MODEL_FILES = {
    "README.md",
    "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "superclip_head.safetensors",
    "config.json", "model.safetensors", "pytorch_model.bin", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
}  # fmt: skip


def check_folder_out(out: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Raises InputError if `out` is not writable, or if --overwrite would delete more than a model.

    Args:
        inputs: files and folders that are read.
    """
    place = _checked_place(out, overwrite)
    if not place.exists():
        return
    if not place.is_dir():
        raise InputError(f"--out: {out} is a file; expected the name of a folder")
    working_folder = Path.cwd()
    if place in (working_folder, *working_folder.parents):
        raise InputError(f"--out: {out} is the working folder, or contains it; give another name")
    for path in inputs:
        real = Path(os.path.realpath(path))
        if place in (real, *real.parents):
            raise InputError(f"--out: {out} contains {path}, which is an input and would be deleted; give another name")
    foreign = sorted(entry.name for entry in place.iterdir() if entry.is_dir() or not _is_of_a_model(entry.name))
    if foreign:
        raise InputError(f"--out: {out} contains {foreign[0]}, which --overwrite would delete; give another name")


def check_file_out(out: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Raises InputError if `out` is not writable, or if it would replace an input."""
    place = _checked_place(out, overwrite)
    if place.is_dir():
        raise InputError(f"--out: {out} is a folder; expected the name of a .pt or .safetensors file")
    for path in inputs:
        if place == Path(os.path.realpath(path)):
            raise InputError(f"--out: {out} is an input, too, and would be replaced; give another name")


def _checked_place(out: Path, overwrite: bool) -> Path:
    if os.path.exists(out) and not overwrite:
        raise InputError(f"--out: {out} exists; give another name, or --overwrite")
    return Path(os.path.realpath(out))


def _is_of_a_model(name: str) -> bool:
    return name in MODEL_FILES or name.endswith(".txt.gz")  # a vocabulary


def file_identity(path: Path) -> str | None:
    """Returns a digest of the checksums in a file that torch saved; None for a file without checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [(info.filename.partition("/")[2], info.CRC, info.file_size) for info in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return None
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()


def content_digest(path: Path) -> str:
    """Returns a digest of a whole file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            digest.update(chunk)
    return digest.hexdigest()
