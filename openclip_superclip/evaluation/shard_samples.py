"""The pictures of WebDataset shards one by one, in their order, whoever reads them."""

import functools
import io
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_convert
from webdataset import WebDataset
from webdataset.filters import default_collation_fn
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander, tarfile_samples

from ..errors import InputError


def collate(samples: list[tuple]) -> list:
    """Returns a batch as CLIP_benchmark's pipeline makes it."""
    return default_convert(default_collation_fn(samples))


class _Piece(NamedTuple):
    """Where the files of one sample lie in a shard, in bytes."""

    start: int
    end: int


class ShardSamples(Dataset):
    """CLIP_benchmark's WebDataset, asked for samples by their place: ranks and workers then share what they like.

    Each goes through CLIP_benchmark's own pipeline: decoding, transform, label. Only headers are read to find it.
    """

    def __init__(self, dataset: WebDataset, split: Path, num_shards: int):
        reader = next(place for place, stage in enumerate(dataset.pipeline) if _reads_tar(stage))
        self.stages = dataset.pipeline[reader + 1 :]
        self.classes, self.templates = dataset.classes, dataset.templates
        self.shards = [split / f"{number}.tar" for number in range(num_shards)]

    @functools.cached_property
    def pieces(self) -> np.ndarray:
        """Number of the shard, first byte and end of every sample, int64 [N, 3]."""
        found = [(number, *piece) for number, shard in enumerate(self.shards) for piece in _pieces(shard)]
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, place: int) -> tuple:
        number, start, end = self.pieces[place].tolist()
        with open(self.shards[number], "rb") as file:
            content = os.pread(file.fileno(), end - start, start)
        source = {"url": str(self.shards[number]), "stream": io.BytesIO(content)}
        samples = group_by_keys(tar_file_expander(iter([source])))
        for stage in self.stages:
            samples = stage(samples)
        return next(iter(samples))


def _reads_tar(stage) -> bool:
    return getattr(stage, "f", None) is tarfile_samples


def _pieces(shard: Path) -> list[_Piece]:
    """Returns where a shard's samples lie. Files that follow each other and differ in their ending are one sample."""
    found, key = [], None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # or it remembers all that it has seen
                prefix = base_plus_ext(member.name)[0] if member.isreg() and not member.name.startswith("__") else None
                if prefix is None:
                    continue
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if prefix == key:
                    found[-1] = _Piece(found[-1].start, end)
                else:
                    found.append(_Piece(member.offset, end))
                key = prefix
    except tarfile.TarError as error:
        raise InputError(f"{shard} is no whole, uncompressed tar file ({error})") from error
    return found
