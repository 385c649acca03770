"""The file of scores, a line of JSON a pair in the order of the data, which a call that was stopped goes on with."""

import contextlib
import heapq
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from ..atomic_files import whole_file
from ..errors import InputError


class UnfinishedScores:
    """Writes FILE.part batch by batch, and gives it FILE's name once all are there.

    What an earlier call has left there is kept up to its last whole batch, so that the same pairs meet in a batch and
    get the same scores as if it had never stopped; a line that was cut goes.

    Args:
        file: takes its name at the end.
        batch_size: lines of a batch, all but the last of the file.

    Attributes:
        last: the place of the last pair that is there; (0, -1) where none is.
        num_lines: that are there.
    """

    def __init__(self, file: Path, batch_size: int):
        self.file, self.part = file, file.with_name(f"{file.name}.part")
        self.lock = FileLock(f"{file}.lock")
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"--out: another call writes {self.part} now: let it end, or give another --out") from None
        except (OSError, NotImplementedError):  # a file system without locks
            pass
        try:
            self.num_lines, end, self.last = _whole_batches(self.part, batch_size)
            self.opened = open(self.part, "r+b" if self.part.exists() else "w+b")  # noqa: SIM115
            self.opened.truncate(end)
            self.opened.seek(end)
        except OSError as error:
            raise _cannot_write(self.part, error) from error

    def add(self, records: Sequence[dict]) -> None:
        """Writes a batch; InputError where the disk does not take it."""
        lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        try:
            self.opened.write(lines.encode("utf-8", "replace"))
            self.opened.flush()
        except OSError as error:
            raise _cannot_write(self.part, error) from error
        self.num_lines += len(records)

    def finish(self) -> None:
        """Gives the file its name."""
        try:
            os.fsync(self.opened.fileno())
            os.replace(self.part, self.file)
        except OSError as error:
            raise _cannot_write(self.part, error) from error

    def close(self) -> None:
        """Lets go of the file, finished or not."""
        with contextlib.suppress(OSError):  # what could not be written was told
            self.opened.close()
        self.lock.release()
        Path(self.lock.lock_file).unlink(missing_ok=True)


def read_scores(file: Path) -> Iterator[dict]:
    """Yields the records of a finished file."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise InputError(
                    f"--out: line {number:,} of {file} is damaged: remove the file, and the same command scores anew"
                ) from None


def merge_scores(parts: Sequence[Path], out: Path) -> None:
    """Writes one file of the parts' lines in the order of the data, and removes the parts."""
    opened = [open(part, "rb") for part in parts]  # noqa: SIM115
    try:
        with whole_file(out) as file:
            for line in heapq.merge(*opened, key=_place):
                file.write(line)
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        for part in opened:
            part.close()
    for part in parts:
        part.unlink()


def _whole_batches(file: Path, batch_size: int) -> tuple[int, int, tuple[int, int]]:
    """Returns how many lines of whole batches a file holds, the byte where they end, and the last one's place."""
    kept = 0, 0, (0, -1)
    if not file.exists():
        return kept
    with open(file, "rb") as lines:
        end = 0
        for number, line in enumerate(lines, 1):
            if not _is_whole(line):
                break
            end += len(line)
            if number % batch_size == 0:
                kept = number, end, _place(line)
    return kept


def _is_whole(line: bytes) -> bool:
    """Returns whether a line is one that was written, neither cut nor damaged."""
    try:
        return line.startswith(b'{"place"') and line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _place(line: bytes) -> tuple[int, int]:
    shard, number = json.loads(line)["place"]
    return shard, number


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"--out: {path} cannot be written ({error.strerror or error}): the same command goes on from there"
    )
