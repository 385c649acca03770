"""Whether training data can be passed over in slices, told before anything is loaded."""

import math

from ..errors import InputError
from .shard_pattern import expand
from .slices import more_than_a_slice, shards_needed
from .training_data_check import total_samples


def check_slices(
    slices: int,
    train_data: str,
    dataset_type: str,
    resampled: bool,
    num_samples: int | None,
    batch_size: int,
    world_size: int,
    workers: int,
) -> None:
    """Raises InputError for training data that cannot be passed over in `slices`, and for a wrong --train-num-samples.

    Takes OpenCLIP's arguments of that name.
    """
    tar_files = dataset_type == "auto" and train_data.endswith(".tar")
    if dataset_type != "webdataset" and not tar_files:
        raise InputError(
            f"--superclip-slices cuts the shards of a WebDataset, and --dataset-type is {dataset_type}: expected "
            "webdataset and a pattern of .tar files, or leave --superclip-slices out"
        )
    if resampled:
        raise InputError(
            "--superclip-slices reads every shard once a pass, and --dataset-resampled draws them with replacement: "
            "leave one of them out"
        )
    num_shards = len(expand(train_data, "--train-data"))
    workers, needed = max(1, workers), shards_needed(slices, world_size, workers)
    if num_shards < needed:
        raise InputError(
            f"--superclip-slices {slices} leaves a data-loading worker without a shard: --train-data has {num_shards} "
            f"shards; expected {needed} or more, {slices} slices × {world_size} ranks × {workers} workers"
        )
    total = total_samples(train_data)
    if num_samples is None or (total and more_than_a_slice(num_samples, total, slices, batch_size * world_size)):
        found = "is not given" if num_samples is None else f"is {num_samples:,}"
        expected = f", {math.ceil(total / slices):,} of {total:,}" if total else ""
        raise InputError(f"--train-num-samples {found}; expected the samples of one of the {slices} slices{expected}")
