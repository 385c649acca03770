"""The captions of WebDataset shards, without the pictures beside them."""

import tarfile
from collections.abc import Iterator

from open_clip_train.data import filter_no_caption_or_no_image, group_by_keys_nothrow
from webdataset import gopen


def read_captions(shard: str, long_caption: str = "") -> Iterator[dict]:
    """Yields the samples that OpenCLIP would train on: captions as bytes, whatever else they hold as b"".

    Args:
        shard: a file, which is read only where captions are, or a URL or pipe, of which the rest is passed over.
        long_caption: where the long caption is, a member or `json:FIELD`.
    """
    json = long_caption.startswith("json:")
    wanted = {"txt", "json" if json else long_caption.lower().lstrip(".")}
    yield from filter(filter_no_caption_or_no_image, group_by_keys_nothrow(_files(shard, wanted)))


def _files(shard: str, wanted: set[str]) -> Iterator[dict]:
    with _open(shard) as tar:
        for member in tar:
            if member.isfile():
                extension = member.name.rpartition("/")[2].partition(".")[2].lower()
                data = tar.extractfile(member).read() if extension in wanted else b""
                yield {"fname": member.name, "data": data, "__url__": shard}
            tar.members.clear()  # tarfile keeps every header it has read


def _open(shard: str) -> tarfile.TarFile:
    if "://" in shard or shard.startswith("pipe:"):
        return tarfile.open(fileobj=gopen(shard), mode="r|*")
    return tarfile.open(shard)
