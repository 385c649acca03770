"""DistributedDataParallel whose buckets of gradients stay as they are, so that a resumed run sums as one that goes on.

torch makes the buckets anew after the first step of a process, in the order in which its gradients came. How a sum over
three ranks or more is rounded depends on where in a bucket a gradient lies: a resumed run's first step would differ in
its last bits from the same step of a run that never stopped.
"""

import torch.nn.parallel


def fix_buckets() -> None:
    """Makes torch's DistributedDataParallel, wherever it is looked up from now on, keep its first buckets."""
    ddp = torch.nn.parallel.DistributedDataParallel
    if not hasattr(ddp, "has_fixed_buckets"):
        torch.nn.parallel.DistributedDataParallel = _with_fixed_buckets(ddp)


def _with_fixed_buckets(ddp: type) -> type:
    class DistributedDataParallel(ddp):
        has_fixed_buckets = True

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            # As if every gradient had come once, in the order of the parameters: torch makes its final buckets.
            self.reducer._push_all_rebuilt_params()
            self.reducer._rebuild_buckets()

        def _build_params_for_reducer(self):
            parameters, are_sparse = super()._build_params_for_reducer()
            return parameters[::-1], are_sparse[::-1]  # the last gradients come first: sums start during the backward

    return DistributedDataParallel
