"""What is added to a rank's log, for the terminal."""

import sys
from pathlib import Path


class LogFollower:
    """Shows on standard output what is added to a file."""

    def __init__(self, path: Path):
        self.path, self.shown = path, 0

    def read(self) -> bytes:
        """Returns what was added since it was last called."""
        if not self.path.exists():
            return b""
        with open(self.path, "rb") as file:
            file.seek(self.shown)
            added = file.read()
        self.shown += len(added)
        return added

    @staticmethod
    def show(added: bytes) -> None:
        sys.stdout.buffer.write(added)
        sys.stdout.buffer.flush()
