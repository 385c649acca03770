"""Looks at the training data before anything is loaded: whether OpenCLIP finds pictures, captions and enough shards."""

import contextlib
import itertools
import os

from ..errors import InputError
from .shard_contents import look
from .shard_pattern import expand, is_remote, refuse_other_patterns
from .slices import shards_needed

NUM_SHARDS = 3  # of each source: OpenCLIP skips a shard that is missing or broken, so one alone proves nothing


def is_table(train_data: str, dataset_type: str) -> bool:
    """Returns whether OpenCLIP reads the training data as a table; InputError where it could not tell."""
    if dataset_type != "auto":
        return dataset_type == "csv"
    kind = train_data.rpartition(".")[2]
    if kind not in ("csv", "tsv", "tar"):
        raise InputError(
            f"--train-data: {train_data} ends in neither .tar, .csv nor .tsv: say what it is with --dataset-type"
        )
    return kind != "tar"


def check_shards(
    train_data: str, long_caption: str, *, num_samples: int | None, world_size: int, workers: int, resampled: bool
) -> None:
    """Raises InputError where OpenCLIP could not train on the shards of `train_data`.

    Looks into the first local shards of each source; URLs and pipes are left to OpenCLIP.

    Args:
        long_caption: where the long caption is; "" where none is read.
        num_samples: --train-num-samples, None where it is not given.
        resampled: whether a worker draws its shards from all of them.
    """
    shards = expand(train_data, "--train-data")
    found = [path for source in train_data.split("::") for path in _first_shards(source)]
    needed = shards_needed(1, world_size, workers)
    if len(shards) < needed and not resampled:
        raise InputError(
            f"--train-data: {len(shards):,} shards are too few for {world_size} ranks × {max(1, workers)} workers; "
            f"expected {needed:,} or more, or fewer --workers"
        )
    if found:
        _check_captions(found, long_caption)
    if num_samples is None and total_samples(train_data) is None:
        raise InputError(
            "--train-num-samples is not given, and no sizes.json beside the shards tells it: expected the samples of "
            "an epoch"
        )


def total_samples(train_data: str) -> int | None:
    """Returns the samples of all shards as OpenCLIP finds them in a file beside the shards, None where it does not."""
    from open_clip_train.data import get_dataset_size

    with contextlib.suppress(OSError, KeyError, ValueError, SyntaxError):
        return get_dataset_size(train_data)[0]
    return None


def _first_shards(source: str) -> list[str]:
    """Returns the first shards of a source that exist; InputError where none does. URLs and pipes have none."""
    if is_remote(source):
        return []
    names = expand(source, "--train-data")
    refuse_other_patterns(names[0], "--train-data")
    paths = list(itertools.islice(filter(os.path.exists, names), NUM_SHARDS))
    if not paths:
        raise InputError(f"--train-data: there is no file {source}")
    return paths


def _check_captions(shards: list[str], place: str) -> None:
    """Raises InputError where no sample of these shards has picture and caption, and a long one where `place` asks."""
    refusals = []
    for shard in shards:
        found = look(shard, place, until_found=True)
        if found.problem:
            refusals.append(f"--train-data: {shard}: {found.problem}")
        elif place and not found.num_long:
            members = f"its members are {found.members}"
            refusals.append(f"--superclip-long-caption: no sample of {shard} holds '{place}'; {members}")
        else:
            return
    raise InputError(refusals[-1])
