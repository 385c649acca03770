"""An OpenCLIP on disk: where it is, which release it is, and the RECORD by which pip removes it."""

import base64
import hashlib
import importlib.util
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError

Contents = Mapping[str, bytes | None]  # path below the root: what the file holds, None where there is no file


class Installation(NamedTuple):
    """`root` is the folder with open_clip/ and open_clip_train/: site-packages, an unpacked wheel, a checkout's src."""

    root: Path
    version: str

    def __str__(self) -> str:
        return f"open_clip_torch {self.version} in {self.root}"

    def read(self, path: str) -> bytes | None:
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            return None

    @property
    def dist_info(self) -> str | None:
        """The folder of the wheel's metadata; None in a checkout."""
        folder = f"open_clip_torch-{self.version}.dist-info"
        return folder if (self.root / folder / "RECORD").is_file() else None


def find_installation(source: Path | None = None) -> Installation:
    """Returns the OpenCLIP in `source` or, without one, that which Python would import; imports nothing of it."""
    if source is None:
        package = importlib.util.find_spec("open_clip")
        if package is None or package.origin is None:
            raise InputError(
                "OpenCLIP is not installed: pip install 'open_clip_torch[training]>=3.0,<4', or use --source"
            )
        root = Path(package.origin).parent.parent
    else:
        roots = [root for root in (source, source / "src") if (root / "open_clip/__init__.py").is_file()]
        if not roots:
            raise InputError(f"--source {source} holds no OpenCLIP: expected open_clip/ or src/open_clip/ there")
        root = roots[0]
    version_file = root / "open_clip/version.py"
    version = re.search(r"__version__ = ['\"](.+)['\"]", version_file.read_text() if version_file.is_file() else "")
    if version is None:
        raise InputError(f"{version_file} does not tell the release of OpenCLIP: reinstall it")
    return Installation(root.absolute(), version[1])


def rewrite_record(record: bytes, contents: Contents, added: Collection[str]) -> bytes:
    """Returns `record` with what it tells of the files in `contents` made true; of these, `added` may be new to it.

    A line without a SHA-256 told nothing of the content and is left alone.
    """
    lines = record.splitlines(keepends=True)
    end = b"\r\n" if lines and lines[0].endswith(b"\r\n") else b"\n"
    for path, content in contents.items():
        told = [index for index, line in enumerate(lines) if line.startswith(path.encode() + b",sha256=")]
        true = [] if content is None else [_record_line(path, content) + end]
        if told:
            lines[told[0] : told[0] + 1] = true
        elif path in added:
            lines[:0] = true
    return b"".join(lines)


def _record_line(path: str, content: bytes) -> bytes:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return b"%s,sha256=%s,%d" % (path.encode(), digest, len(content))
