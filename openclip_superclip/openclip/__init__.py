"""The adapter: the only code that touches OpenCLIP's trainer.

openclip_3.py and openclip_4.py are for one generation each."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

trained = SimpleNamespace(model=None)  # the model of this process's training, once it is created


@functools.cache
def current() -> ModuleType:
    """Returns the module for the installed OpenCLIP, without importing it: openclip_4 if it has
    tasks."""
    from . import openclip_3, openclip_4

    package = importlib.util.find_spec("open_clip")
    has_tasks = package is not None and (Path(package.origin).parent / "task").is_dir()
    return openclip_4 if has_tasks else openclip_3


def autocast(precision: str, device_type: str):
    """Returns a function that makes the autocast context of an OpenCLIP --precision."""
    from open_clip_train.precision import get_autocast

    return get_autocast(precision, device_type=device_type)


def retrieval_metrics(image_features, text_features) -> dict[str, float]:
    """Returns OpenCLIP's retrieval metrics of image_features [N, E] and text_features [N, E]."""
    from open_clip_train.train import get_clip_metrics

    # the scale does not affect ranks
    return get_clip_metrics(image_features, text_features, logit_scale=1.0)
