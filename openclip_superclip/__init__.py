"""SuperCLIP for OpenCLIP: a class loss on the vision tower's patch tokens, as a plugin."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import InputError as InputError
    from .method.idf import TokenStatistics as TokenStatistics
    from .method.loss import SuperCLIPLoss as SuperCLIPLoss
    from .method.loss import class_loss as class_loss
    from .method.loss import plain_class_loss as plain_class_loss
    from .method.model import SuperCLIP as SuperCLIP
    from .method.model import SuperCoCa as SuperCoCa
    from .method.model import SuperCustomTextCLIP as SuperCustomTextCLIP
    from .method.parameter_groups import parameter_groups as parameter_groups
    from .trainer.factory import add_class_head as add_class_head
    from .trainer.factory import create_model_and_transforms as create_model_and_transforms

__version__ = "0.3.0.dev0"

_HOME = {
    "InputError": "errors",
    "SuperCLIP": "method.model",
    "SuperCLIPLoss": "method.loss",
    "SuperCoCa": "method.model",
    "SuperCustomTextCLIP": "method.model",
    "TokenStatistics": "method.idf",
    "add_class_head": "trainer.factory",
    "class_loss": "method.loss",
    "create_model_and_transforms": "trainer.factory",
    "parameter_groups": "method.parameter_groups",
    "plain_class_loss": "method.loss",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name):
    """Imports a public name when it is first used, so that the command line answers without
    loading torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted(__all__)
