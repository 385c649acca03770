"""A simulated accelerator: tensors without values, on a device of their
own, which torch's CPU build accepts."""

import contextlib
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

from . import ROOT
from .operators import SeesOperators

DEVICE = "npy"
IN_LOWER_PRECISION = """
    linear matmul mm addmm bmm baddbmm conv2d scaled_dot_product_attention
""".split()
IN_FLOAT32 = ("layer_norm", "softmax.int", "log_softmax.int", "cross_entropy_loss")


class _Backend(_DummyBackendModule):
    """What torch asks a device's module for: autocast, and the state of
    random numbers for checkpointing."""

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]

    def is_autocast_enabled(self):
        return torch.is_autocast_enabled(DEVICE)

    def device(self, index):
        return contextlib.nullcontext()

    def get_rng_state(self, *_):
        return torch.empty(16, dtype=torch.uint8)

    def set_rng_state(self, *_):
        pass


_libraries = []  # torch forgets what a library has registered when it is deleted


def add_device():
    """Makes torch accept tensors on DEVICE in this process, which cannot be
    undone."""
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=_Backend())
    passed_on = torch.library.Library("_", "IMPL")
    passed_on.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    for names, in_float32 in ((IN_LOWER_PRECISION, False), (IN_FLOAT32, True)):
        for name in names:
            aten.impl(name, _in_precision(name, in_float32), "AutocastPrivateUse1")
    _libraries.extend([passed_on, aten])


def _in_precision(name, in_float32):
    packet, _, overload = name.partition(".")
    function = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def call(*args, **kwargs):
        dtype = torch.float32 if in_float32 else torch.get_autocast_dtype(DEVICE)

        def cast(value):
            is_floating = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.to(dtype) if is_floating and value.device.type == DEVICE else value

        guard = torch._C._ExcludeDispatchKeyGuard(
            torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        )
        with guard:
            return function(*map(cast, args), **{key: cast(value) for key, value in kwargs.items()})

    return call


class Watch(SeesOperators):
    """Refuses results on the CPU that are computed from the device's
    tensors, or by a function of this project."""

    def observe(self, function, args, results):
        if all(result.device.type == DEVICE for result in results):
            return
        given = torch.utils._pytree.tree_leaves(args)
        assert not any(
            isinstance(one, torch.Tensor) and one.device.type == DEVICE for one in given
        ), f"{function} copies a tensor to the host"
        assert not _is_called_by_us(), f"{function} makes a tensor on the host"


def _is_called_by_us():
    """Whether the innermost function outside torch, of those that run, is
    one of this project."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        is_support = file in (__file__, sys.modules[SeesOperators.__module__].__file__)
        if not is_support and "/torch/" not in file and not file.startswith("<"):
            return file.startswith(str(ROOT)) and "site-packages" not in file
        frame = frame.f_back
    return False


@contextlib.contextmanager
def simulation():
    """A context in which tensors have no values; reading one on DEVICE
    raises.

    Returns torch's mode."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Watch():
        yield mode


def move(module):
    """Replaces parameters and buffers by those of the device, in the same
    layout.

    Call it within `simulation`."""
    for part in module.modules():
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is None:
                continue
            moved = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE
            )
            if name in part._parameters:
                part._parameters[name] = torch.nn.Parameter(
                    moved, requires_grad=tensor.requires_grad
                )
            else:
                part._buffers[name] = moved
