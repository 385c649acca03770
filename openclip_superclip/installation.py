"""An OpenCLIP on disk: where it is, which release it is, and the RECORD by which pip removes it."""

import base64
import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .errors import InputError

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
            raise InputError("OpenCLIP is not installed: pip install 'open_clip_torch[training]>=3.0,<4', or use --source")
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


def rewrite_record(record: bytes, before: Contents, after: Contents) -> bytes:
    """Returns `record` with its lines about files as they were `before` replaced by what is true `after`.

    A line that says anything else is left alone, so that the opposite call gives back the same bytes.
    """
    lines = record.splitlines(keepends=True)
    end = b"\r\n" if record.endswith(b"\r\n") else b"\n"
    for path, content in after.items():
        old, new = _record_line(path, before[path], end), _record_line(path, content, end)
        if new in lines:
            continue
        if old in lines:
            lines[lines.index(old)] = new
        elif before[path] is None:
            lines.insert(0, new)
    return b"".join(lines)


def _record_line(path: str, content: bytes | None, end: bytes) -> bytes:
    if content is None:
        return b""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return b"%s,sha256=%s,%d%s" % (path.encode(), digest, len(content), end)
