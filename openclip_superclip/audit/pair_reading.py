"""Pictures on their way to the model: read and decoded by threads, some batches ahead of it."""

import io
import itertools
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..data.shard_pattern import is_remote
from ..tagging.decoded_picture import check_sides
from .audited_data import AuditedPair

AHEAD = 2  # batches


class ReadPair(NamedTuple):
    """A pair with its picture as the model takes it, or with the reason why it has none."""

    pair: AuditedPair
    picture: Tensor | None  # [3, H, W]
    problem: str = ""


def read_in_batches(
    pairs: Iterator[AuditedPair], preprocess: Callable, batch_size: int, threads: int
) -> Iterator[list[ReadPair]]:
    """Yields the pairs in their order, whole batches but for the last."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        while batch := list(itertools.islice(pairs, batch_size)):
            waiting.append([pool.submit(_read, pair, preprocess) for pair in batch])
            if len(waiting) > AHEAD:
                yield [read.result() for read in waiting.popleft()]
        while waiting:
            yield [read.result() for read in waiting.popleft()]


def open_picture(picture: str | bytes) -> Image.Image:
    """Returns a picture, by its file or its content; raises what Pillow raises, and ValueError for too thin a one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what Pillow refuses is told all the same
        with Image.open(picture if isinstance(picture, str) else io.BytesIO(picture)) as image:
            check_sides(*image.size)
            image.load()
            return image


def _read(pair: AuditedPair, preprocess: Callable) -> ReadPair:
    if pair.problem:
        return ReadPair(pair, None, pair.problem)
    try:
        return ReadPair(pair, preprocess(open_picture(pair.picture)))
    except FileNotFoundError:
        remote = isinstance(pair.picture, str) and is_remote(pair.picture)
        return ReadPair(pair, None, "a URL: pictures of a table are read from files" if remote else "no such file")
    except Exception as error:  # of a broken file Pillow's decoders raise anything
        told = " ".join(re.sub(r"<[^<>]* object at 0x[0-9a-f]+>", "", str(error)).split())  # an address is no reason
        return ReadPair(pair, None, f"no readable picture ({told or type(error).__name__})")
