"""A pass over the data in slices: which shards an epoch reads, how many of their samples, and what cannot be sliced.

OpenCLIP's epoch e is slice e mod K of pass e div K. A pass has an order of its own over all shards, drawn from the
seed, and slice s is every K-th shard of it from s on: the K slices of a pass hold each shard once. Nothing but the
epoch and the seed decides this, so ranks and workers may change from one slice to the next.

OpenCLIP then deals a slice's shards out, to ranks and then to workers, and has every worker give as many full batches:
ceil(ceil(--train-num-samples / (batch × ranks)) / workers). Each sample of the slice is read exactly once where the
slice's shards divide by ranks × workers and are of one size, and a worker's shards fill these batches. Otherwise a
worker that holds more leaves out what its shuffle brings last, and one that holds less leaves out what does not fill
its last batch and starts over on its own shards; `reads` counts both. With --accum-freq A, OpenCLIP also makes no step
of a rank's last batches where their number does not divide by A. Every pass deals the shards out anew, so that no
sample is left out for good.
"""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from ..errors import InputError


def shard_order(num_shards: int, seed: int, pass_: int) -> list[int]:
    """Returns the permutation of range(num_shards) that is the order of a pass: sorted by a hash, on any machine."""
    return sorted(range(num_shards), key=lambda shard: (blake2b(f"{seed}\0{pass_}\0{shard}".encode()).digest(), shard))


def slice_of(num_shards: int, slices: int, seed: int, epoch: int) -> list[int]:
    """Returns the indices of the shards that `epoch` reads, in the order in which ranks and workers divide them."""
    return shard_order(num_shards, seed, epoch // slices)[epoch % slices :: slices]


def shards_needed(slices: int, world_size: int, workers: int) -> int:
    """Returns the fewest shards of which every worker of every rank has one in each slice."""
    return slices * world_size * max(1, workers)


def more_than_a_slice(num_samples: int, total: int, slices: int, global_batch_size: int) -> bool:
    """Returns whether so many samples an epoch, in full batches, are more than a slice of `total` samples holds."""
    return -(-num_samples // global_batch_size) > -(-total // (slices * global_batch_size))


def too_few(held: int, batch_size: int) -> str:
    """Returns what to tell where the shards of a data-loading worker hold too few samples."""
    return (
        f"--superclip-slices: the shards that a worker reads of a slice hold {held:,} samples, and --batch-size is "
        f"{batch_size:,}; expected a full batch or more: give fewer slices or --workers, or a smaller --batch-size"
    )


class Reads(NamedTuple):
    """What an epoch reads of its slice, over all ranks and workers.

    `held` samples lie in the slice. `once` are read before a worker starts over, each of another sample; `again` are
    read afterwards. `held - once` are left out, but for those that come up again.
    """

    held: int
    once: int
    again: int


def reads(
    shard_sizes: Sequence[int],
    slices: int,
    seed: int,
    epoch: int,
    *,
    num_samples: int,
    batch_size: int,
    world_size: int = 1,
    workers: int = 1,
) -> Reads:
    """Returns what `epoch` reads of shards that hold so many samples each.

    Args:
        num_samples: --train-num-samples, those of one slice.
        batch_size: of one rank.
        workers: of one rank; 0 counts as 1.

    Raises InputError where a worker's shards fill no batch.
    """
    workers = max(1, workers)
    batches = math.ceil(math.ceil(num_samples / (batch_size * world_size)) / workers)
    shards = slice_of(len(shard_sizes), slices, seed, epoch)
    held = once = 0
    for rank in range(world_size):
        for worker in range(workers):
            holds = sum(shard_sizes[shard] for shard in shards[rank::world_size][worker::workers])
            if holds < batch_size:
                raise InputError(too_few(holds, batch_size))
            held += holds
            once += min(holds // batch_size, batches) * batch_size
    return Reads(held, once, batches * workers * world_size * batch_size - once)
