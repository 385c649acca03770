"""The description of a run: recipe, machines and steps.

A plan creates it once, and every job and node reads it from RUN/run.json.
"""

import contextlib
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints.model_configurations import openclip_name
from ..checkpoints.trainer_files import RECORD
from ..data.data_check import NUM_LOOKED_FOR, DataCheck, check_data, check_samples
from ..data.slices import Split, equal_sizes
from ..data.tables import is_table, kind
from ..data.tar_shards import expand, is_remote, is_streamed
from ..errors import InputError, reason
from ..files import content_digest, json_or_empty, read_json
from ..removed import without_removed
from .recipe import SAME_FLAGS, VAL_DATA, Recipe

OLD_DESCRIPTION = "description.json"  # of earlier versions, in the run's folder
NUM_KEPT = 2  # newest checkpoints: the last one may not be on disk yet if a machine loses power
NUM_KEPT_LONG = 5  # checkpoints over a whole run, to return to if training diverges


def _setting(help: str, *, default, **argparse_options) -> dataclasses.Field:
    return field(default=default, metadata={"help": help, **argparse_options})


@dataclass(frozen=True)
class Settings:
    """Options of `superclip run` that do not affect the trained model.

    InputError for an invalid value."""

    unreadable_max: float = _setting(
        "fail if a larger fraction of a slice's shards or samples cannot be read (default: "
        "%(default)s)",
        default=0.01,
        type=float,
        metavar="FRACTION",
    )
    stall_minutes: float = _setting(
        "restart after this many minutes without a step; 0 for never (default: %(default)s)",
        default=30.0,
        type=float,
        metavar="M",
    )
    accept_changes: bool = _setting(
        "resume even if recipe, data or packages have changed, and record the changes in run.json",
        default=False,
        action="store_true",
    )
    engine: str = _setting(
        "average the gradients with torch.distributed or Horovod (default: %(default)s)",
        default="torchrun",
        choices=("torchrun", "horovod"),
    )

    def __post_init__(self):
        if not 0 <= self.unreadable_max <= 1:
            raise InputError(
                f"--unreadable-max is {self.unreadable_max:g}; expected a fraction from 0 to 1, "
                "such as 0.01"
            )
        if not 0 <= self.stall_minutes < math.inf:
            raise InputError(f"--stall-minutes is {self.stall_minutes:g}; expected 0 or more")


DEFAULTS = Settings()


@dataclass(frozen=True)
class Run:
    """A recipe on given machines, with the steps that OpenCLIP runs."""

    recipe: Recipe
    nodes: int
    gpus_per_node: int  # ranks per node, on CPUs too
    device: str  # "cuda" or "cpu"
    data: str  # --train-data
    workers: int
    batch_size: int  # per GPU
    accum_freq: int
    slice_samples: int  # --train-num-samples: an epoch of OpenCLIP's is a slice
    num_slices: int  # that are trained
    slice_steps: int  # that OpenCLIP runs in a slice
    warnings: list[str] = field(default_factory=list)
    # the largest batch size per GPU, to split the batch on other machines
    gpu_batch_max: int | None = None
    settings: Settings = DEFAULTS

    def __post_init__(self):
        for field_ in dataclasses.fields(self):
            value = getattr(self, field_.name)
            if field_.type in (int, str) and not isinstance(value, field_.type):
                raise TypeError(f"{field_.name} is {value!r}")

    @staticmethod
    def open(folder: Path) -> "Run":
        """Returns the run of a folder; InputError if its description cannot be read or has other
        fields."""
        file = folder / RECORD
        old = folder / OLD_DESCRIPTION
        if "run" not in json_or_empty(file) and old.exists():
            file = old
        advice = "give superclip run the recipe and --out again"
        content = read_json(file, advice=advice)
        try:
            return Run.of_json(content.get("run", content), str(file))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file} is damaged, or of another version ({reason(error)}): {advice}"
            ) from error

    @staticmethod
    def find(folder: Path) -> "Run | None":
        """Returns the run of a folder, None without a description."""
        with contextlib.suppress(InputError):
            return Run.open(folder)
        return None

    @staticmethod
    def of_json(values: dict, file: str) -> "Run":
        """Returns the run from the result of `as_json`; `file` is for messages."""
        recipe = Recipe.of(values["recipe"]["values"], file, values["recipe"]["name"])
        settings, removed = without_removed(values["settings"])
        warnings = [*values.get("warnings", []), *recipe.removed, *removed]
        values = values | {
            "recipe": recipe,
            "settings": Settings(**settings),
            "warnings": list(dict.fromkeys(warnings)),
        }
        values.pop("set", None)  # of 0.2
        return Run(**values)

    def as_json(self) -> dict:
        """Returns the whole description."""
        recipe = {"name": self.recipe.name, "values": self.recipe.values}
        return {**vars(self), "recipe": recipe, "settings": vars(self.settings)}

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Returns whether a folder contains the description of a run."""
        return (folder / OLD_DESCRIPTION).is_file() or (folder / RECORD).is_file()

    @property
    def global_batch_size(self) -> int:
        return self.recipe.global_batch_size

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.slice_steps * self.num_slices

    @property
    def samples(self) -> int:
        """Samples that the run trains on."""
        return self.steps * self.global_batch_size

    @property
    def is_table(self) -> bool:
        """Whether the data is a table, so that an epoch of OpenCLIP's is a pass, and not shards."""
        return is_table(self.data)

    @property
    def kept_every(self) -> int:
        """The number of slices between kept checkpoints, in addition to the newest and those at
        the ends of passes."""
        slices = self.num_slices if self.is_table else self.recipe.slices
        return min(slices, math.ceil(self.num_slices / NUM_KEPT_LONG))

    @property
    def max_checkpoints(self) -> int:
        """The maximum number of checkpoints at a time, including the one being written."""
        num_kept = NUM_KEPT + sum(map(self.keeps, range(1, self.num_slices + 1 - NUM_KEPT)))
        return min(self.num_slices, num_kept + 1 + bool(self.recipe.val_data))

    def keeps(self, epoch: int) -> bool:
        """Returns whether the checkpoint after this number of slices is kept permanently."""
        # every epoch of a table is a pass
        ends_pass = not self.is_table and epoch % self.recipe.slices == 0
        return epoch % self.kept_every == 0 or ends_pass

    def openclip_arguments(self) -> list[str]:
        """Returns OpenCLIP's command line, without --logs, --name and --resume."""
        recipe = self.recipe
        tables = self.is_table or is_table(recipe.val_data)
        values = {
            "model": openclip_name(recipe.model),
            "train-data": self.data,
            "dataset-type": "auto" if tables else "webdataset",
            "train-num-samples": None if self.is_table else self.slice_samples,
            "superclip-slices": None if self.is_table else recipe.slices,
            "epochs": self.num_slices,
            "batch-size": self.batch_size,
            "accum-freq": self.accum_freq,
            "workers": self.workers,
            "lr-scheduler": recipe.schedule,
            **{name: getattr(recipe, name) for name in SAME_FLAGS},
            "device": self.device,
            "horovod": self.settings.engine == "horovod",
            **recipe.flags,
            "superclip": recipe.superclip is not None,
            **{
                f"superclip-{name.replace('_', '-')}": value
                for name, value in (recipe.superclip or {}).items()
            },
        }
        return [argument for flag in values for argument in _argument(f"--{flag}", values[flag])]

    def streams(self) -> list[str]:
        """Returns the options with which the user gives the run's URLs and commands, in addition to
        its folder."""
        options = []
        if is_streamed(self.data):
            options += ["--data", self.data]
        if is_streamed(self.recipe.val_data):
            options += ["--set", f"flags.{VAL_DATA}={self.recipe.val_data}"]
        return options

    def check_shards(self) -> list[str]:
        """Returns warnings about the pattern of shards, reading none; InputError for too few
        shards or samples."""
        if self.is_table:
            return []
        split = self._split()
        split.check()
        return split.check_sizes(equal_sizes(self.recipe.data_samples, split.num_shards))

    def check_data(self) -> DataCheck:
        """Returns what a check finds in the data; InputError if training could not start.

        The caller decides how many of the bad files it refuses. The check reads a few shards or, of
        a table, up to 200 images.
        """
        recipe = self.recipe
        data_kind = kind(self.data) or "shards"
        if not self.is_table:
            self._split().check()
        check = check_data(self.data, "--data", data_kind, recipe.columns, recipe.config)
        if self.is_table:
            check.check_rows(self.batch_size, self.world_size)
        else:
            check_samples(check, self._split(), recipe.data_samples)
        check.warnings += self.check_validation()
        check.tables = {
            path: content_digest(Path(path))
            for path in (self.data, self.recipe.flags.get("val-data"))
            if is_table(path) and not is_remote(path)
        }
        return check

    def _split(self) -> Split:
        machines = len(expand(self.data)), self.world_size, self.workers
        return Split(*machines, self.recipe.slices, self.slice_samples, self.batch_size)

    def check_validation(self) -> list[str]:
        """Returns warnings about the validation data; InputError if OpenCLIP could not evaluate
        on it."""
        val_data = self.recipe.val_data
        if not val_data:
            return []
        data_kind = kind(val_data) or "shards"
        check = check_data(
            val_data, "--val-data", data_kind, self.recipe.columns, most=NUM_LOOKED_FOR
        )
        check.check_images()
        return check.warnings


def _argument(flag: str, value) -> list[str]:
    """Returns the command-line arguments of a flag: none for None and False, only its name for
    True."""
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    return [flag, *map(str, value if isinstance(value, list) else [value])]
