"""A recipe: one training run in one flat YAML file, without the machines that train it."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, on what and how; which nodes and GPUs do it is a plan's to say."""

    method: str
    model: str  # OpenCLIP's --model
    data: str
    shards: str  # --train-data where a user gives none
    data_samples: int  # pairs in the data set
    samples: int  # seen in all
    global_batch_size: int
    lr: float
    warmup: int  # steps
    schedule: str
    beta1: float
    beta2: float
    eps: float
    wd: float
    precision: str
    seed: int
    slices: int  # that a pass over the data is cut into; a checkpoint after each
    workers: int  # of the data loader, on each rank
    flags: dict  # OpenCLIP's other flags, without the dashes
    superclip: dict | None = None  # the fields of config.Config
    paper: dict | None = None  # source, read_off, values in percent
    chosen: dict  # why, for every value that neither the paper nor the released configuration gives
    name: str = ""  # of the file
    text: str = dataclasses.field(default="", repr=False)  # the file's, with what was set

    def as_dict(self) -> dict:
        """Returns what a recipe's file holds."""
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}

    @property
    def long_caption(self) -> str:
        """Where a sample's long caption is; "" where the recipe reads none."""
        options = self.superclip or {}
        return options.get("long_caption", "") if options.get("captions", "short") != "short" else ""


FIELDS = {field.name: field for field in dataclasses.fields(Recipe) if field.name not in ("name", "text")}
STILL_THE_PAPERS = ("seed", "data_samples")  # runs with others are compared with its values, as with what is chosen
REQUIRED = [name for name, field in FIELDS.items() if field.default is dataclasses.MISSING]
KINDS = {int: "a whole number", float: "a number", str: "text", dict: "a mapping"}


def is_mapping(field: str) -> bool:
    """Returns whether a field holds fields of its own."""
    return FIELDS[field].type not in (int, float, str)
