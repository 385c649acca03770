"""The batches that a rank reads in an epoch of OpenCLIP: for plans, checks and slices alike.

Steps are batches // --accum-freq: OpenCLIP makes no step of batches that do not complete an
accumulation.
"""

import math


def batches_of_shards(num_samples: int, batch_size: int, world_size: int, workers: int) -> int:
    """Returns the batches of a rank in an epoch of `num_samples` over WebDataset shards.

    OpenCLIP gives every data-loading worker the same number of batches, rounded up.
    """
    workers = max(1, workers)
    num_batches = math.ceil(num_samples / (batch_size * world_size))
    return math.ceil(num_batches / workers) * workers


def batches_of_table(num_rows: int, batch_size: int, world_size: int) -> int:
    """Returns the batches of a rank in a pass over a table.

    OpenCLIP distributes the rows to the ranks, rounding up, and drops the rest of the last batch.
    """
    return math.ceil(num_rows / world_size) // batch_size
