"""Truncated and damaged tar files: what raises an error, and the reason in a message."""

import lzma
import tarfile
import zlib

# exceptions raised for an unreadable shard
BROKEN = (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error)


def why_broken(error: Exception) -> str:
    """Returns why a shard cannot be read, from one of the BROKEN exceptions."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
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
        except tarfile.EmptyHeaderError as error:
            if tar.offset == 0:  # an empty file, for which tarfile has an error
                raise
            problem = f"it was cut at byte {tar.offset:,}, without an end marker"
            raise tarfile.ReadError(problem) from error
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(
                f"there is no valid tar member at byte {tar.offset:,}"
            ) from error
