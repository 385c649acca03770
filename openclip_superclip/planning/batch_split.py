"""The global batch split over GPUs: batch size per GPU and gradient accumulation."""

from ..errors import InputError

WELL_FILLED = 0.5  # of what a GPU holds; below it another number of GPUs trains faster


def split(
    global_batch: int, nodes: int, gpus_per_node: int, gpu_batch_max: int | None = None
) -> tuple[int, int, list[str]]:
    """Returns batch size per GPU, accumulation and warnings: their product with the number of GPUs is `global_batch`.

    Raises InputError, with the nearest numbers of GPUs, where the batch cannot be divided among so many.
    """
    world_size = nodes * gpus_per_node
    if global_batch % world_size:
        raise InputError(_refusal(global_batch, nodes, gpus_per_node))
    per_gpu = global_batch // world_size
    if gpu_batch_max is None:
        return per_gpu, 1, []
    if gpu_batch_max < 1:
        raise InputError(f"--gpu-batch-max is {gpu_batch_max}; expected 1 or more")
    batch_size = max(size for size in divisors(per_gpu) if size <= gpu_batch_max)
    warnings = []
    if batch_size < WELL_FILLED * min(gpu_batch_max, per_gpu):
        above = min(size for size in divisors(per_gpu) if size > gpu_batch_max)
        warnings.append(
            f"each GPU's {per_gpu:,} samples of a step come in batches of {batch_size:,}: no larger number up to "
            f"--gpu-batch-max {gpu_batch_max:,} divides them; the next is {above:,}"
        )
    return batch_size, per_gpu // batch_size, warnings


def divisors(number: int) -> list[int]:
    """Returns the divisors of a positive number, the smallest first."""
    small = [size for size in range(1, int(number**0.5) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def _refusal(global_batch: int, nodes: int, gpus_per_node: int) -> str:
    world_size = nodes * gpus_per_node
    possible = divisors(global_batch)
    near = [*[n for n in possible if n < world_size][-1:], *[n for n in possible if n > world_size][:1]]
    ways = [
        f"{n} GPUs" + (f" (--nodes {n // gpus_per_node} of {gpus_per_node})" if n % gpus_per_node == 0 else "")
        for n in near
    ]
    return (
        f"--nodes {nodes} --gpus-per-node {gpus_per_node}: a global batch of {global_batch:,} does not divide among "
        f"{world_size} GPUs; the nearest that work are {' and '.join(ways)}, or --set global_batch_size="
        + " or ".join(str(size) for size in _near_batches(global_batch, world_size))
    )


def _near_batches(global_batch: int, world_size: int) -> list[int]:
    below = global_batch // world_size * world_size
    return [size for size in (below, below + world_size) if size]
