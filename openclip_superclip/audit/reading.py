"""Reads the pairs of a table or of shards in a fixed order."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..data.images import as_trained, read_image
from ..data.inspection import listed_samples
from ..data.pairs import Keys, pairs_of_table
from ..data.tables import Columns, is_table
from ..data.tar_shards import IMAGES, check_any_exists, expand, is_remote, read_members
from ..data.truncated_tar import BROKEN, why_broken
from ..errors import InputError

AHEAD = 2  # batches to prefetch


class AuditedPair(NamedTuple):
    """A pair, or the reason why it cannot be scored."""

    place: tuple[int, int]  # (shard, sample) or (0, row), in the order of the data
    where: str  # shard or row, for messages
    key: str  # the sample's key, or the image's path
    caption: str
    # path or content; [3, H, W] after reading; None if unreadable
    image: str | bytes | Tensor | None
    problem: str  # "" if there is none


def read_in_batches(
    pairs: Iterator[AuditedPair], preprocess: Callable, batch_size: int, threads: int
) -> Iterator[list[AuditedPair]]:
    """Yields batches of pairs, in order, with preprocessed images.

    Only the last batch may be smaller."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for pair in pairs:
            waiting.append(pool.submit(_read, pair, preprocess))
            if len(waiting) == (1 + AHEAD) * batch_size:
                yield [waiting.popleft().result() for _ in range(batch_size)]
        while waiting:
            yield [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]


def _read(pair: AuditedPair, preprocess: Callable) -> AuditedPair:
    if pair.problem or not pair.image:
        return pair._replace(image=None, problem=pair.problem or "no image")

    def pixels(image: Image.Image) -> Tensor:
        # OpenCLIP converts images of shards before it preprocesses them, and those of tables after.
        return preprocess(as_trained(image) if isinstance(pair.image, bytes) else image)

    image, problem = read_image(pair.image, pixels)
    return pair._replace(image=image, problem=problem)


@dataclass(frozen=True)
class AuditedData:
    """The rows of a table or the samples of WebDataset shards."""

    source: str
    files: list[str]  # the table, or the shards
    columns: Columns | None  # of the table; None for shards
    num_pairs: int | None  # None if unknown

    def pairs(self) -> Iterator[AuditedPair]:
        """Yields all pairs in order, and one with the problem for each damaged shard."""
        if self.columns is None:
            for index, shard in enumerate(self.files):
                yield from _pairs_of_shard(index, shard)
            return
        for row, pair in enumerate(pairs_of_table(self.source, Keys(self.columns), "DATA")):
            problem = "" if pair.caption else "no caption"
            yield AuditedPair((0, row), pair.where, pair.image, pair.caption, pair.image, problem)


def open_data(source: str, columns: Columns) -> AuditedData:
    """Returns the data set of DATA. Raises InputError if none of its files exists."""
    if is_table(source):
        images = [pair.image for pair in pairs_of_table(source, Keys(columns), "DATA")]
        if not images:
            raise InputError(f"DATA: {source} has no rows")
        if not any(map(os.path.exists, images)):
            raise InputError(
                f"DATA: none of the {len(images):,} images of {source} exists, for example "
                f"{images[-1]}: paths are relative to {os.getcwd()}, the working directory"
            )
        return AuditedData(source, [source], columns, len(images))
    shards = expand(source, "DATA")
    if not shards[0].endswith(".tar") or is_remote(shards[0]):
        raise InputError(
            f"DATA is {source}; expected a table (.csv, .tsv) or a brace pattern of local "
            "shards (.tar); superclip shards makes shards of folders and of COCO's JSON"
        )
    check_any_exists(shards, "DATA")
    sizes = listed_samples(shards, "DATA")
    num_pairs = sum(sizes.values()) if len(sizes) == len(shards) else None
    return AuditedData(source, shards, None, num_pairs)


def _pairs_of_shard(index: int, shard: str) -> Iterator[AuditedPair]:
    number = -1
    try:
        for number, sample in enumerate(read_members(shard, {"txt", *IMAGES})):
            caption = sample.get("txt", b"").decode("utf-8", "replace").strip()
            image = next((sample[extension] for extension in IMAGES if extension in sample), b"")
            problem = "" if caption else "no caption in .txt"
            yield AuditedPair((index, number), shard, sample["__key__"], caption, image, problem)
    except BROKEN as error:
        yield AuditedPair((index, number + 1), shard, "", "", b"", why_broken(error))
