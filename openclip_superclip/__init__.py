"""SuperCLIP for OpenCLIP: a class loss on the vision tower's patch tokens, as a plugin."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .classification import class_loss, plain_class_loss
    from .errors import InputError
    from .factory import create_model_and_transforms
    from .loss import SuperCLIPLoss
    from .model import SuperCLIP, SuperCoCa, SuperCustomTextCLIP
    from .statistics import TokenStatistics

__version__ = "0.1.0"

_HOME = {
    "InputError": "errors",
    "SuperCLIP": "model",
    "SuperCLIPLoss": "loss",
    "SuperCoCa": "model",
    "SuperCustomTextCLIP": "model",
    "TokenStatistics": "statistics",
    "class_loss": "classification",
    "create_model_and_transforms": "factory",
    "plain_class_loss": "classification",
}

__all__ = [
    "InputError",
    "SuperCLIP",
    "SuperCLIPLoss",
    "SuperCoCa",
    "SuperCustomTextCLIP",
    "TokenStatistics",
    "__version__",
    "class_loss",
    "create_model_and_transforms",
    "plain_class_loss",
]


def __getattr__(name):
    """Imports a public name when it is first used, so that the command line answers without loading torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted(__all__)
