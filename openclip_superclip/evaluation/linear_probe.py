"""CLIP_benchmark's linear probe on a machine without a GPU."""

import importlib.util
from collections.abc import Callable
from types import ModuleType

from ..errors import InputError

MODULE = "clip_benchmark.metrics.linear_probe"
ON_CPU = {"'cuda'": "'cpu'", ".cuda()": ".cpu()", "torch.cuda.device_count()": "0"}


def linear_probe_on_cpu() -> Callable:
    """Returns CLIP_benchmark's `linear_probe.evaluate` made of its own source, with the device's name exchanged.

    It asserts that it runs on a GPU, "else too slow". A data set of some thousand pictures is not.
    """
    spec = importlib.util.find_spec(MODULE)
    source = spec.loader.get_source(MODULE)
    for cuda, cpu in ON_CPU.items():
        if cuda not in source:
            raise InputError(f"--device cpu: this clip-benchmark's linear probe has no {cuda}; it needs a GPU")
        source = source.replace(cuda, cpu)
    module = ModuleType(MODULE)
    module.__package__ = spec.parent
    exec(compile(source, spec.origin, "exec"), module.__dict__)
    return module.evaluate
