"""Looks at the training data before anything is loaded: whether OpenCLIP finds pictures, captions and enough shards."""

import contextlib
import itertools
import os

from ..errors import InputError
from .shard_contents import look
from .shard_pattern import expand, is_remote, refuse_other_patterns
from .slices import shards_needed
from .table_columns import is_table_file

NUM_SHARDS = 3  # of each source: OpenCLIP skips a shard that is missing or broken, so one alone proves nothing
NUM_LOOKED_FOR = 1000  # shards, which a network's file system tells in a moment


def is_table(data: str, dataset_type: str, flag: str = "--train-data") -> bool:
    """Returns whether OpenCLIP reads the data as a table; InputError, which names `flag`, where it could not tell."""
    if dataset_type != "auto":
        return dataset_type == "csv"
    if not is_table_file(data) and not data.endswith(".tar"):
        raise InputError(f"{flag}: {data} ends in neither .tar, .csv nor .tsv: say what it is with --dataset-type")
    return is_table_file(data)


def check_shards(
    train_data: str, long_caption: str, *, num_samples: int | None, world_size: int, workers: int, resampled: bool
) -> list[str]:
    """Returns what is to be said of the shards of `train_data`; InputError where OpenCLIP could not train on them.

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
    return missing_shards(train_data, "--train-data")


def check_validation_shards(val_data: str) -> list[str]:
    """Returns what is to be said of the shards of --val-data; InputError where no sample of them can be measured."""
    found = [path for source in val_data.split("::") for path in _first_shards(source, "--val-data")]
    if found:
        _check_captions(found, "", "--val-data")
    return missing_shards(val_data, "--val-data")


def missing_shards(data: str, flag: str) -> list[str]:
    """Returns a line on the local shards that are not there, or nothing: OpenCLIP trains without them."""
    local = [shard for shard in expand(data, flag) if not is_remote(shard)][:NUM_LOOKED_FOR]
    missing = [shard for shard in local if not os.path.exists(shard)]
    if not missing:
        return []
    return [
        f"{flag}: {len(missing):,} of {'the first ' * (len(local) == NUM_LOOKED_FOR)}{len(local):,} shards are not "
        f"there, the first is {missing[0]}; OpenCLIP goes on without them"
    ]


def total_samples(train_data: str) -> int | None:
    """Returns the samples of all shards as OpenCLIP finds them in a file beside the shards, None where it does not."""
    from open_clip_train.data import get_dataset_size

    with contextlib.suppress(OSError, KeyError, ValueError, SyntaxError):
        return get_dataset_size(train_data)[0]
    return None


def _first_shards(source: str, flag: str = "--train-data") -> list[str]:
    """Returns the first shards of a source that exist; InputError where none does. URLs and pipes have none."""
    if is_remote(source):
        return []
    names = expand(source, flag)
    refuse_other_patterns(names[0], flag)
    paths = list(itertools.islice(filter(os.path.exists, names), NUM_SHARDS))
    if not paths:
        raise InputError(f"{flag}: there is no file {source}")
    return paths


def _check_captions(shards: list[str], place: str, flag: str = "--train-data") -> None:
    """Raises InputError where no sample of these shards has picture and caption, and a long one where `place` asks."""
    refusals = []
    for shard in shards:
        found = look(shard, place, until_found=True)
        if found.problem:
            refusals.append(f"{flag}: {shard}: {found.problem}")
        elif place and not found.num_long:
            members = f"its members are {found.members}"
            refusals.append(f"--superclip-long-caption: no sample of {shard} holds '{place}'; {members}")
        else:
            return
    raise InputError(refusals[-1])
