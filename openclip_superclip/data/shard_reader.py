"""The captions of WebDataset shards, without the pictures beside them."""

import tarfile
from collections.abc import Iterator

from open_clip_train.data import filter_no_caption_or_no_image, group_by_keys_nothrow
from webdataset import gopen

from .shard_pattern import is_remote


def read_captions(shard: str, long_caption: str = "") -> Iterator[dict]:
    """Yields the samples that OpenCLIP would train on: captions as bytes, whatever else they hold as b"".

    Args:
        shard: a file, which is read only where captions are, or a URL or pipe, of which the rest is passed over.
        long_caption: where the long caption is, a member or `json:FIELD`.
    """
    yield from filter(filter_no_caption_or_no_image, read_samples(shard, long_caption))


def read_samples(shard: str, long_caption: str = "") -> Iterator[dict]:
    """Yields all samples as `read_captions` does, with or without caption and picture."""
    json = long_caption.startswith("json:")
    yield from read_members(shard, {"txt", "json" if json else long_caption.lower().lstrip(".")})


def read_members(shard: str, wanted: set[str]) -> Iterator[dict]:
    """Yields all samples with the members whose extensions are `wanted` as bytes, and the others as b""."""
    yield from group_by_keys_nothrow(_files(shard, wanted))


def _files(shard: str, wanted: set[str]) -> Iterator[dict]:
    with _open(shard) as tar:
        for member in tar:
            if member.isfile():
                extension = member.name.rpartition("/")[2].partition(".")[2].lower()
                data = tar.extractfile(member).read() if extension in wanted else b""
                yield {"fname": member.name, "data": data, "__url__": shard}
            tar.members.clear()  # tarfile keeps every header it has read
        if not is_remote(shard):
            _check_end(tar)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises tarfile.ReadError where tarfile has taken broken data for the end of the archive."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"what should be a member at byte {tar.offset:,} is none")


def _open(shard: str) -> tarfile.TarFile:
    if is_remote(shard):
        return tarfile.open(fileobj=gopen(shard), mode="r|*")
    return tarfile.open(shard)
