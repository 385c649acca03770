"""words.jsonl.part: what a call has tagged so far, which the same command takes up where it was stopped."""

import json
from pathlib import Path
from types import TracebackType

from .tagged_picture import TaggedPicture, tagged_earlier


class UnfinishedWords:
    """Keeps each tagged picture as it comes, until all are there.

    Args:
        file: of an earlier call, perhaps; it is resumed if that had the same settings.
        settings: what the words depend on, besides the pictures.
    """

    def __init__(self, file: Path, settings: dict):
        self.file = file
        first = json.dumps({"settings": settings})
        lines = file.read_text().splitlines() if file.is_file() else []
        self.earlier = dict(_read(lines[1:])) if lines[:1] == [first] else {}
        if not self.earlier:
            file.write_text(f"{first}\n")
        elif not file.read_text().endswith("\n"):  # a line that was cut
            file.write_text("\n".join([first, *map(_line, self.earlier.values())]) + "\n")
        self.lines = file.open("a")

    def add(self, picture: TaggedPicture) -> None:
        """Keeps a picture with its words; one that cannot be read is looked at again."""
        if picture.words is not None and picture.path not in self.earlier:
            self.lines.write(f"{_line(picture)}\n")
            self.lines.flush()

    def __enter__(self) -> "UnfinishedWords":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.lines.close()
        if kind is None:
            self.file.unlink()


def _line(picture: TaggedPicture) -> str:
    return json.dumps({"state": _state(picture.path), **picture.record()})


def _read(lines: list[str]):
    """Yields the pictures that are as they were, with their heat maps."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut
            continue
        picture = tagged_earlier(record)
        if record["state"] == _state(picture.path) and (picture.heatmap is None or picture.heatmap.is_file()):
            yield picture.path, picture


def _state(path: Path) -> list[int] | None:
    """Returns what changes when a file does; None where it is gone."""
    try:
        state = path.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]
