"""The ranks that share an evaluation: torchrun's, or one alone."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

WAIT = timedelta(days=7)  # while the first rank computes what is not shared


class EvaluationRanks:
    """This process among those that torchrun has started. All of them make the same calls, in the same order."""

    def __init__(self):
        self.world_size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.world_size > 1:
            dist.init_process_group("gloo", timeout=WAIT)
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def of_first(self, value: Any) -> Any:
        """Returns the first rank's value on all."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def on_first(self, value: Any) -> list[Any] | None:
        """Returns the values of all ranks on the first one, None on the others."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values

    def raise_together(self, error: BaseException | None) -> None:
        """Raises what went wrong on this rank or, where only others failed, the first of their errors."""
        errors = [error]
        if self.world_size > 1:
            told = [None] * self.world_size
            dist.all_gather_object(told, None if error is None else f"{type(error).__name__}: {error}")
            errors += [RuntimeError(other) for other in told if other is not None]
        for found in errors:
            if found is not None:
                raise found

    def end(self) -> None:
        """Lets the others go."""
        if self.world_size > 1:
            dist.barrier()
            dist.destroy_process_group()
