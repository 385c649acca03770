"""Reads the samples of CLIP_benchmark's shards at any position, not only from the start."""

import functools
import io
import re
import tarfile
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from webdataset import WebDataset
from webdataset.tariterators import group_by_keys, tar_file_expander, tarfile_samples

from ..data.tar_shards import numbered_members
from ..errors import InputError, reason

META = re.compile(r"__[^/]*__($|/)")  # names of files that webdataset does not read


def shards_of(split: Path) -> list[Path]:
    """Returns a split's shards; InputError if nshards.txt is not a number, or is smaller than
    the number of shards."""
    text = (split / "nshards.txt").read_text().strip()
    if not text.isdecimal():
        raise InputError(f"{split}/nshards.txt is '{text[:20]}'; expected the number of shards")
    shards = [split / f"{number}.tar" for number in range(int(text))]
    left_out = sorted(set(split.glob("*.tar")).difference(shards))
    if left_out:
        raise InputError(
            f"{split}/nshards.txt says {text}, which leaves out {left_out[0].name}; expected all "
            "shards"
        )
    return shards


class ShardSamples(Dataset):
    """CLIP_benchmark's WebDataset with random access, so that any number of workers reads it in the
    same order.

    Samples are decoded and transformed by CLIP_benchmark's own pipeline. Only tar headers are read
    to find them.
    """

    def __init__(self, dataset: WebDataset, shards: list[Path]):
        is_reader = [getattr(stage, "f", None) is tarfile_samples for stage in dataset.pipeline]
        self.stages = dataset.pipeline[is_reader.index(True) + 1 :]
        self.classes = dataset.classes
        self.templates = dataset.templates
        self.shards = shards

    @functools.cached_property
    def spans(self) -> np.ndarray:
        """Index of the shard, first byte and end of every sample, int64 [N, 3]."""
        spans = []
        for number, shard in enumerate(self.shards):
            spans += [(number, start, end) for start, end in _spans_in(shard)]
        return np.array(spans, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> tuple:
        number, start, end = self.spans[index].tolist()
        shard = self.shards[number]
        with open(shard, "rb") as file:
            file.seek(start)
            content = file.read(end - start)
        samples = group_by_keys(
            tar_file_expander([{"url": str(shard), "stream": io.BytesIO(content)}])
        )
        for stage in self.stages:
            samples = stage(samples)
        try:
            return next(iter(samples))
        except Exception as error:  # a broken sample can raise any exception
            sample = np.sum(self.spans[:index, 0] == number)
            raise InputError(f"{shard}, sample {sample}: {reason(error)}") from error


def _spans_in(shard: Path) -> list[tuple[int, int]]:
    """Returns first byte and end of a shard's samples: consecutive files that differ only in the
    extension."""
    spans = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for number, _, _, member in numbered_members(tar):
                if not META.match(member.name):
                    start, _ = spans.get(number, (member.offset, None))
                    num_blocks = -(-member.size // tarfile.BLOCKSIZE)
                    spans[number] = (start, member.offset_data + num_blocks * tarfile.BLOCKSIZE)
    except tarfile.TarError as error:
        raise InputError(f"{shard} is not a complete, uncompressed tar file ({error})") from error
    return list(spans.values())
