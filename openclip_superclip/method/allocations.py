"""The memory that a training step allocates on a GPU, computed without a GPU.

The step runs on tensors of torch's device "meta", which have shapes but no values.
"""

import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import open_clip
import torch
import torch.distributed.nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from ..environment import replaced
from . import loss as class_loss

META = "meta"
OPERATORS = {  # ours, whose allocations are counted inside them
    torch.ops.superclip.class_loss.default: class_loss.losses_and_gradients,
    torch.ops.superclip.scale_gradients.default: class_loss.scale_gradients,
}


class Allocations(TorchDispatchMode):
    """Records which tensors on "meta" are allocated, and which of them at the peak.

    Operators that only make new tensors run once for each shape of their inputs: later calls make
    tensors like the first results. `Tensor.item` returns 1.0 for floating-point tensors
    and 0 for others.
    """

    def __init__(self):
        super().__init__()
        self.in_head = False  # whether the class loss is running
        self.of_head: set[int] = set()  # numbers of the storages that the class loss allocated
        # bytes of each storage at the moment of their highest sum, by number
        self.at_peak: dict[int, int] = {}
        self._live: dict[int, tuple[int, int]] = {}  # number, bytes; by storage
        # tensors like the results of a call, and their structure; None if not all of them are new
        self._results: dict = {}
        self._num_storages = 0
        self._num_bytes = 0  # of all live storages
        self._most_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in OPERATORS:
            with self, replaced(self, in_head=True):
                return OPERATORS[function](*args, **kwargs)
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 0
        call = _signature((function, args, *kwargs.items()))
        if earlier := self._results.get(call):
            results, structure = earlier
            results = [*map(_like, results)]
            outputs = tree_unflatten(results, structure)
        else:
            outputs = function(*args, **kwargs)
            results, structure = tree_flatten(outputs)
        are_new = [
            self.add(result)
            for result in results
            if isinstance(result, Tensor) and result.device.type == META
        ]
        if call not in self._results:
            has_only_new = are_new and all(are_new)
            self._results[call] = ([*map(_like, results)], structure) if has_only_new else None
        return outputs

    def number_of(self, tensor: Tensor) -> int | None:
        """Returns the number of a tensor's storage; None if it is not recorded."""
        number, _ = self._live.get(tensor.untyped_storage()._cdata, (None, 0))
        return number

    def add(self, tensor: Tensor) -> bool:
        """Records the storage of a tensor; returns whether it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return False
        num_bytes = storage.nbytes()
        self._num_storages += 1
        self._live[key] = self._num_storages, num_bytes
        weakref.finalize(storage, self._free, key)
        if self.in_head:
            self.of_head.add(self._num_storages)
        self._num_bytes += num_bytes
        if self._num_bytes > self._most_bytes:
            self._most_bytes = self._num_bytes
            self.at_peak = dict(self._live.values())
        return True

    def _free(self, key: int) -> None:
        _, num_bytes = self._live.pop(key)
        self._num_bytes -= num_bytes

    def restart(self) -> None:
        """Forgets the peak so far; what is allocated remains allocated."""
        self._most_bytes = self._num_bytes
        self.at_peak = dict(self._live.values())


def _signature(value):
    """Returns what the shapes of a function's results depend on, hashable."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, tuple | list):
        return tuple(map(_signature, value))
    return value


def _like(result):
    """Returns a new tensor with the layout of a tensor, and any other result itself."""
    if not isinstance(result, Tensor):
        return result
    return torch.empty_strided(
        result.shape, result.stride(), dtype=result.dtype, device=result.device
    )


class Precision:
    """Autocast for the device "meta", which torch does not have: casts the arguments of functions.

    Autocast keeps a weight's copy until it ends; so does `forward`.
    """

    def __init__(self, dtype: torch.dtype | None):
        self.dtype = dtype
        self._weights: dict[Tensor, Tensor] | None = None  # the copies; None outside `forward`

    def forward(self):
        """A context for the forward pass and the loss."""
        return replaced(self, _weights={})

    def state(self) -> dict:
        """Returns torch's functions that get and set the state of autocast."""
        dtype_of = torch.get_autocast_dtype
        return {
            "autocast": lambda *_, **__: nullcontext(),
            "is_autocast_enabled": lambda device=None: device == META and self.dtype is not None,
            "get_autocast_dtype": lambda device: self.dtype if device == META else dtype_of(device),
        }

    def lowered(self, function):
        """Returns the function with its floating-point arguments in autocast's type."""
        return self.casting(function, self._lower)

    def casting(self, function, cast):
        """Returns the function with `cast` applied to its floating-point arguments; without
        autocast, the function itself."""
        if self.dtype is None:
            return function

        def cast_floating(tensor: Tensor) -> Tensor:
            return cast(tensor) if tensor.is_floating_point() else tensor

        @functools.wraps(function)
        def call(*args, **kwargs):
            args, kwargs = tree_map_only(Tensor, cast_floating, (args, kwargs))
            return function(*args, **kwargs)

        return call

    def _lower(self, tensor: Tensor) -> Tensor:
        if self._weights is None or not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self.dtype)
        if tensor not in self._weights:
            self._weights[tensor] = tensor.to(self.dtype)
        return self._weights[tensor]


# The functions that autocast changes on a GPU, and that OpenCLIP, timm and transformers call.
LOWERED = {
    F: ("linear", "conv1d", "conv2d"),
    torch: ("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"),
}
IN_FLOAT32 = ("layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy")


@contextmanager
def as_on(device: str, precision: Precision, world_size: int) -> Iterator[None]:
    """A context in which torch treats tensors on "meta" like those of a device, "cuda" or "cpu",
    of one of `world_size` ranks: autocast, fused attention, collectives, chunks of the class
    loss."""
    functions = {name: precision.lowered(getattr(F, name)) for name in LOWERED[F]}
    functions["scaled_dot_product_attention"] = precision.lowered(_fused_attention())
    if device != "cpu":
        functions |= {
            name: precision.casting(getattr(F, name), Tensor.float) for name in IN_FLOAT32
        }
    products = {name: precision.lowered(getattr(torch, name)) for name in LOWERED[torch]}
    chunks = class_loss.CHUNKS | {META: class_loss.CHUNKS[device]}
    with (
        replaced(F, **functions),
        replaced(torch, **products, **precision.state()),
        replaced(Tensor, __matmul__=precision.lowered(Tensor.matmul)),
        replaced(class_loss, CHUNKS=chunks),
        _collectives(world_size),
    ):
        yield


def _fused_attention():
    """Returns torch's attention without the matrix of weights that it would allocate on "meta"."""
    attention = F.scaled_dot_product_attention

    def fused(query, key, value, attn_mask=None, dropout_p=0.0, *is_causal, **options):
        if query.ndim != 4 or options.pop("enable_gqa", False):
            return attention(query, key, value, attn_mask, dropout_p, *is_causal, **options)
        output, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, *is_causal, attn_mask=attn_mask, **options
        )
        return output

    return fused


@contextmanager
def _collectives(world_size: int) -> Iterator[None]:
    """A context in which OpenCLIP's losses receive the features of the other ranks."""

    def gathered(tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for _ in range(world_size))

    def exchanged(_, __, tensor: Tensor, **___) -> Tensor:
        return tensor.clone()

    def both_exchanged(_, __, *tensors: Tensor, **___) -> list[Tensor]:
        return [tensor.clone() for tensor in tensors]

    functions = {
        "neighbour_exchange_with_grad": exchanged,
        "neighbour_exchange_bidir_with_grad": both_exchanged,
    }
    if hasattr(open_clip.loss, "_all_gather_with_grad"):  # OpenCLIP 4
        functions["_all_gather_with_grad"] = lambda tensor: torch.cat(gathered(tensor))
    with (
        replaced(torch.distributed, all_gather=lambda *_, **__: None),
        replaced(torch.distributed.nn, all_gather=gathered, all_reduce=Tensor.clone),
        replaced(open_clip.loss, **functions),
    ):
        yield
