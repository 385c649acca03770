"""The file behind released weights."""

from pathlib import Path

from ..errors import InputError


def released_file(released: str, flag: str) -> str:
    """Returns the file behind MODEL:TAG, out of the cache or off the hub as OpenCLIP gets it; a path stays as it is.

    Raises InputError, naming `flag`, for weights that OpenCLIP does not know or cannot get.
    """
    if Path(released).exists():
        return released
    import open_clip

    cfg = open_clip.get_pretrained_cfg(*released.split(":", 1)) if ":" in released else None
    if not cfg:
        raise InputError(f"{flag} is {released}: no file, and no MODEL:TAG of open_clip.list_pretrained()")
    try:
        return open_clip.download_pretrained(cfg)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{flag} is {released}, which cannot be downloaded or read ({' '.join(str(error).split())})"
        ) from error
