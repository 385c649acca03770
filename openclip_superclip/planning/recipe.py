"""A recipe: one training run in one flat YAML file, without the machines that train it."""

import dataclasses


def _field(help: str):
    return dataclasses.field(metadata={"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, on what and how; which nodes and GPUs do it is a plan's to say."""

    method: str = _field("the objective, and whether the class loss is beside it")
    model: str = _field("OpenCLIP's --model: a name, local-dir:FOLDER, hf-hub:REPO or a JSON file")
    data: str = _field("what the data set is called")
    shards: str = _field("--train-data where a user gives none: a brace pattern of shards, or a table (.csv, .tsv)")
    data_samples: int = _field("pairs in the data set; the rows of a table are counted instead")
    samples: int = _field("seen in all: a number, or passes over the data set, as '20 passes'")
    global_batch_size: int = _field("samples of a step, over all GPUs and accumulated batches")
    lr: float = _field("the learning rate at its peak")
    warmup: int = _field("steps in which the learning rate rises")
    schedule: str = _field("how it falls afterwards")
    beta1: float = _field("of AdamW")
    beta2: float = _field("of AdamW")
    eps: float = _field("of AdamW")
    wd: float = _field("weight decay")
    precision: str = _field("OpenCLIP's --precision")
    seed: int = _field("of the weights and of the order of the data")
    slices: int = _field("that a pass over shards is cut into, a checkpoint after each; 1 for a table")
    workers: int = _field("data-loading processes of each GPU's process")
    flags: dict = dataclasses.field(metadata={"help": "OpenCLIP's other flags, without the dashes"})
    superclip: dict | None = dataclasses.field(
        metadata={"help": "the flags of --superclip, by the names below; a method with the class loss needs it"},
        default=None,
    )
    paper: dict | None = dataclasses.field(
        metadata={"help": "source, read_off (off a figure?) and values; absent where the paper has no such run"},
        default=None,
    )
    chosen: dict = dataclasses.field(
        metadata={"help": "why, for every value that neither the paper nor the released configuration gives"}
    )
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
