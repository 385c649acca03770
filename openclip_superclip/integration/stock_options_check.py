"""Values of OpenCLIP's own options that would end a run in a traceback, once the model is made or an epoch trained."""

import math
import os

from ..data.shard_pattern import expand, is_remote
from ..errors import InputError

LEAST = {"batch_size": 1, "accum_freq": 1, "epochs": 1, "workers": 0, "warmup": 0}
FOLDERS = ("imagenet_val", "imagenet_v2")


def check_stock_options(options: dict) -> None:
    """Raises InputError for a number that is too small, half a teacher, and validation data that is not there.

    Args:
        options: of OpenCLIP's parsed command line, under their names.
    """
    for name, least in LEAST.items():
        if options[name] < least:
            raise InputError(f"{_flag(name)} is {options[name]}; expected {least} or more")
    lr = options["lr"]
    if lr is not None and not (math.isfinite(lr) and lr >= 0):
        raise InputError(f"--lr is {lr}; expected a finite number, 0 or more")
    if (options["distill_model"] is None) != (options["distill_pretrained"] is None):
        given, missing = ("--distill-model", "--distill-pretrained")[:: 1 if options["distill_model"] else -1]
        raise InputError(f"{given} distils nothing without {missing}: give both, or leave {given} out")
    for name in FOLDERS:
        if options[name] and not os.path.isdir(options[name]):
            raise InputError(f"{_flag(name)}: there is no folder {options[name]}")
    if options["val_data"] and options["dataset_type"] != "synthetic":
        for source in options["val_data"].split("::"):
            if not is_remote(source) and not any(map(os.path.exists, expand(source, "--val-data"))):
                raise InputError(f"--val-data: there is no file {source}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
