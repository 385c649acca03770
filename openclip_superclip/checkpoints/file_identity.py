"""What tells a checkpoint's file from another of the same name, without reading its weights."""

import hashlib
import zipfile
from pathlib import Path


def file_identity(path: Path) -> str | None:
    """Returns a digest of the checksums that torch keeps of all that it saves; None for a file without such."""
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
