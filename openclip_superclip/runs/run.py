"""What `superclip run` is told beside recipe, data and machines: it changes nothing of what is trained."""

import math
from dataclasses import dataclass
from pathlib import Path

from ..data.tables import is_table
from ..errors import InputError
from .recipe import CONFIG_FIELDS

STARTS_WITHOUT_A_SLICE = 3  # in a row


@dataclass(frozen=True)
class RunSettings:
    """The options of the same names, with what holds where they are not given."""

    unreadable_max: float = 0.01  # of a slice's shards, and of its samples: where more cannot be read the run fails
    stall_minutes: float = 30.0  # without a step, after which the run starts again; 0 for never
    accept_changes: bool = False  # whether to resume with other things than the run began with
    stage: str | None = None  # a folder on each node's own disk, to copy a slice's shards to ahead of the ranks

    def __post_init__(self):
        """Raises InputError for a value that none of them can have."""
        if not 0 <= self.unreadable_max <= 1:
            raise InputError(f"--unreadable-max is {self.unreadable_max:g}; expected a share from 0 to 1, such as 0.01")
        if not 0 <= self.stall_minutes < math.inf:
            raise InputError(f"--stall-minutes is {self.stall_minutes:g}; expected 0 or more")

    def folders(self) -> list[Path]:
        """Returns the folders that a container must see, as far as they are known before a job runs."""
        return [Path(self.stage)] if self.stage and "$" not in self.stage else []

    def arguments(self) -> list[str]:
        """Returns the options of `superclip run` that say the same."""
        arguments = []
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value != getattr(USUAL, name):
                flag = f"--{name.replace('_', '-')}"
                arguments += [flag] if value is True else [flag, value if name == "stage" else f"{value:g}"]
        return arguments


USUAL = RunSettings()


def train_arguments(plan) -> list[str]:
    """Returns OpenCLIP's command line of a Plan, without --logs, --name and --resume."""
    recipe = plan.recipe
    of_shards = {"train-num-samples": plan.slice_samples, "superclip-slices": plan.slices_per_pass}
    tables = plan.is_table or is_table(recipe.flags.get("val-data"))
    values = {
        "model": recipe.model,
        "train-data": plan.data,
        "dataset-type": "auto" if tables else "webdataset",
        **({} if plan.is_table else of_shards),
        "epochs": plan.num_slices,
        "batch-size": plan.batch_size,
        "accum-freq": plan.accum_freq,
        "workers": plan.workers,
        "lr": recipe.lr,
        "warmup": recipe.warmup,
        "lr-scheduler": recipe.schedule,
        "beta1": recipe.beta1,
        "beta2": recipe.beta2,
        "eps": recipe.eps,
        "wd": recipe.wd,
        "precision": recipe.precision,
        "seed": recipe.seed,
        "device": plan.device,
        **recipe.flags,
    }
    arguments = [argument for flag, value in values.items() for argument in _arguments(f"--{flag}", value)]
    if recipe.superclip is not None:
        arguments.append("--superclip")
        for field, value in recipe.superclip.items():
            arguments += _arguments(CONFIG_FIELDS[field].metadata["flag"], value)
    return arguments


def _arguments(flag: str, value) -> list[str]:
    """Returns what the command line holds of a flag: nothing for False, its name alone for True."""
    if isinstance(value, bool):
        return [flag] if value else []
    return [flag, *map(str, value if isinstance(value, list) else [value])]
