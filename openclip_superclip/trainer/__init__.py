"""The adapter: the only code that touches OpenCLIP's trainer.

openclip_3.py and openclip_4.py are for one generation each."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

from ..errors import InputError

# of this process's training: OpenCLIP's arguments, and the model once it is created
trained = SimpleNamespace(args=None, model=None)


def package_folder() -> Path:
    """Returns the folder of the installed open_clip, without importing it; InputError if there is
    none."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise InputError(
            "OpenCLIP is not installed: pip install 'open_clip_torch[training]>=3.0,<5'"
        )
    return Path(package.origin).parent


@functools.cache
def current() -> ModuleType:
    """Returns the module for the installed OpenCLIP, without importing it: openclip_4 if it has
    tasks."""
    from . import openclip_3, openclip_4

    return openclip_4 if (package_folder() / "task").is_dir() else openclip_3


def autocast(precision: str, device_type: str):
    """Returns a function that makes the autocast context of an OpenCLIP --precision."""
    from open_clip_train.precision import get_autocast

    return get_autocast(precision, device_type=device_type)


def retrieval_metrics(image_features, text_features) -> dict[str, float]:
    """Returns OpenCLIP's retrieval metrics of image_features [N, E] and text_features [N, E]."""
    from open_clip_train.train import get_clip_metrics

    # the scale does not affect ranks
    return get_clip_metrics(image_features, text_features, logit_scale=1.0)
