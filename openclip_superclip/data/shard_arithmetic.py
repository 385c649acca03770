"""What the number of shards alone tells of a run: whether every worker has one, and what a slice reads twice."""

from collections.abc import Sequence

from ..errors import InputError
from .slices import Reads, reads, shards_needed

TOLERANCE = 0.02  # of a number of samples: data sets that are downloaded at different times differ


def check_number(num_shards: int, world_size: int, workers: int, slices: int) -> None:
    """Raises InputError, with what would do, where a worker would have no shard of a slice."""
    workers = max(1, workers)
    needed = shards_needed(slices, world_size, workers)
    if num_shards >= needed:
        return
    advice = "fewer GPUs, or more and smaller shards"
    if num_shards >= slices * world_size:
        advice = f"--workers {num_shards // (slices * world_size)}"
    elif num_shards >= world_size * workers:
        advice = f"--set slices={num_shards // (world_size * workers)}"
    raise InputError(
        f"--data: {num_shards:,} shards are too few for {slices} slices × {world_size} ranks × {workers} workers; "
        f"expected {needed:,} or more, or {advice}"
    )


def equal_sizes(num_samples: int, num_shards: int) -> list[int]:
    """Returns the samples of each shard where nothing but their number in all is known."""
    return [num_samples * (i + 1) // num_shards - num_samples * i // num_shards for i in range(num_shards)]


def check_shares(
    shard_sizes: Sequence[int], slices: int, *, slice_samples: int, batch_size: int, world_size: int, workers: int
) -> list[str]:
    """Returns warnings of what the first slice reads twice and leaves out; InputError where a share fills no batch.

    Args:
        shard_sizes: samples of each shard, as far as they are known.
        slice_samples, batch_size: --train-num-samples and --batch-size.
    """
    first = reads(
        shard_sizes, slices, 0, 0,
        num_samples=slice_samples, batch_size=batch_size, world_size=world_size, workers=workers,
    )  # fmt: skip
    return _unevenly_read(first)


def _unevenly_read(first_slice: Reads) -> list[str]:
    """Returns a warning where the workers' shares of a slice are too small or too uneven to be read once each.

    What a slice holds beyond the samples that are trained of it is left out in any case, and not told here.
    """
    held, once, again = first_slice
    left_out = held - once
    uneven = left_out - max(0, held - once - again)
    if max(again / (once + again), uneven / held) <= TOLERANCE:
        return []
    return [
        f"{_percent(again / (once + again))} of what a slice trains on is read twice, and {_percent(left_out / held)} "
        "of its samples are left out until a later pass, as the workers' shares of the shards are small or uneven; "
        "fewer --workers, GPUs or slices make them larger"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
