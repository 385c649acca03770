"""Truncated and damaged tar files: what raises an error, and the reason in a message.

In training, openclip/data.py skips and lists such a shard, and runs/unreadable.py limits their
number."""

import lzma
import tarfile
import zlib

# exceptions raised for an unreadable shard
BROKEN = (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error)
# at the end of a file without an end marker, and in the middle of a damaged one
NO_MEMBER = (tarfile.EmptyHeaderError, tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)


NO_FILE = "no such file"


def why_broken(error: Exception) -> str:
    """Returns why a shard cannot be read, from one of the BROKEN exceptions."""
    if isinstance(error, FileNotFoundError):
        return NO_FILE
    # tarfile lists every format it tried
    return f"broken tar file ({str(error).partition(':')[0]})"


class StrictTarInfo(tarfile.TarInfo):
    """A member's header; a broken or missing one raises ReadError.

    tarfile takes these for the end of the file, which blocks of zeros should mark.
    """

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except NO_MEMBER as error:
            if tar.offset == 0:  # for which tarfile has an error
                raise
            raise tarfile.ReadError(
                f"there is no valid tar member and no end marker at byte {tar.offset:,}"
            ) from error
