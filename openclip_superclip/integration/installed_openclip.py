"""An OpenCLIP on disk: where it is, which release it is, and the RECORD of what pip removes."""

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


def without_lines(record: bytes, paths: Collection[str]) -> bytes:
    """Returns the RECORD of a wheel without its lines for `paths`."""
    lines = record.splitlines(keepends=True)
    return b"".join(line for line in lines if line.split(b",")[0].decode() not in paths)


def with_lines(record: bytes, paths: Collection[str]) -> bytes:
    """Returns the RECORD of a wheel with a line for each of `paths`, so that pip removes these files as well."""
    rest = without_lines(record, paths)
    end = b"\r\n" if b"\r\n" in rest else b"\n"
    return b"".join(path.encode() + b",," + end for path in paths) + rest
