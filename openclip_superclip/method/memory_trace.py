"""The bytes that tensors without values would hold, followed as torch makes and frees them."""

import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class MemoryTrace:
    """Within it tensors have shapes alone; `bytes` are those that now live would hold, `peak` the most so far.

    What torch's allocators, kernels' workspaces and libraries hold beside tensors is not in it. A value that is read
    back from a tensor is 1. Storages are followed by torch's dispatch, as torch's own tracker does it, which is private
    (torch.distributed._tools).
    """

    def __init__(self):
        self.bytes = self.peak = 0
        self._fake, self._followed = FakeTensorMode(), _Storages(self)

    def __enter__(self) -> "MemoryTrace":
        self._fake.__enter__()
        self._followed.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._followed.__exit__(*error)
        self._fake.__exit__(*error)


class _Storages(TorchDispatchMode):
    """Follows the storages of every operator's results."""

    def __init__(self, trace: MemoryTrace):
        super().__init__()
        self.trace, self.sizes = trace, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1
        results = function(*args, **(kwargs or {}))
        for result in tree_iter(results):
            if isinstance(result, torch.Tensor):
                self._follow(result.untyped_storage())
        return results

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.sizes:
            return
        self.sizes[storage._cdata] = storage.nbytes()
        self.trace.bytes += storage.nbytes()
        self.trace.peak = max(self.trace.peak, self.trace.bytes)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, storage: int) -> None:
        self.trace.bytes -= self.sizes.pop(storage)
