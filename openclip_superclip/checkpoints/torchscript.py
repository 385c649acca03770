"""Reads the weights in TorchScript archives, such as OpenAI's released models, without torch's
loader, which runs code of the archive."""

import io
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

# tensors in OpenAI's archives that are not weights
NUMBERS = ("input_resolution", "context_length", "vocab_size")
MAX_PARTS = 100_000  # a hostile file could name one module exponentially often
# types by the name of a storage's class; quantized tensors are not read
STORAGES = {
    name: dtype
    for name, dtype in torch.storage._storage_type_to_dtype_map().items()
    if not name.startswith("Q")
}


def is_torchscript(path: str | Path) -> bool:
    """Returns whether a file is a TorchScript archive."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":  # torch.load unpickles what is before an archive
                return False
        # the same test as in torch.load
        return "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    except (OSError, RuntimeError):  # of which the caller's loader gives the reason
        return False


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of the module in an archive by name.

    No code of the archive runs. Damaged and hostile files raise any exception.
    """
    module = _ModuleUnpickler(torch._C.PyTorchFileReader(str(path))).load()
    parts = dict(itertools.islice(_parts(module), MAX_PARTS + 1))
    if len(parts) > MAX_PARTS:
        raise ValueError(f"it contains more than {MAX_PARTS:,} modules and tensors")
    return {
        name: part
        for name, part in parts.items()
        if isinstance(part, Tensor) and name not in NUMBERS
    }


class _Module:
    """Attributes of a module; its methods are not read."""


def _parts(module: _Module, prefix: str = "") -> Iterator[tuple[str, Tensor | _Module]]:
    """Yields the tensors and modules below a module by name."""
    for name, value in vars(module).items():
        if isinstance(value, (Tensor, _Module)):
            yield f"{prefix}{name}", value
        if isinstance(value, _Module):
            yield from _parts(value, f"{prefix}{name}.")


class _ModuleUnpickler(pickle.Unpickler):
    """Builds tensors and _Module objects, and nothing else.

    Nothing that `find_class` returns is shared with other code, since a pickle can change its
    attributes.
    """

    def __init__(self, reader):
        super().__init__(io.BytesIO(reader.get_record("data.pkl")))
        self.reader = reader

    def find_class(self, module, name):
        if module.partition(".")[0] == "__torch__":
            return type("Module", (_Module,), {})
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # with metadata, such as a conjugated view's, there is one argument more
            return lambda storage, offset, size, stride, requires_grad, hooks: storage.as_strided(
                size, stride, offset
            )
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch", "device"):
            return lambda *_: None
        if module == "torch.jit._pickle":  # lists of numbers, and values with their types
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")

    def persistent_load(self, pid):
        _, dtype, key, _, length = pid
        if not length:
            return torch.empty(0, dtype=dtype)
        content = bytearray(self.reader.get_record(f"data/{key}"))
        return torch.frombuffer(content, dtype=dtype, count=length)
