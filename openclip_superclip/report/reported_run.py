"""One run as a report knows it."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path

from ..config import RECORDED_ALONE
from ..planning.recipe import Recipe
from ..planning.recipe_rules import CONFIG_FIELDS

MISSING, CUT, FINISHED = "missing", "cut short", "finished"


@dataclass
class ReportedRun:
    """A run. What nothing tells is None or empty.

    Attributes:
        state: of state.json, or what the log tells: finished, cut short, missing.
        model, data, samples: what makes runs comparable; `samples` as planned.
        variant: of the method: what of the class loss, the captions and the starting point is not the default.
        training: optimizer settings and the like, without the seed.
        points: of the log.
        split: number of ranks, device and accumulation: what shares a batch.
        hosts: of the run; empty where the folder does not tell.
        weights: what tells the evaluated weights from others.
        name: by which it is told from the other runs; its folder's where none is given.
        copy_of: the name of a run with the same losses or weights, which is counted in its place.
        course: the same by epoch, of all that were evaluated.
        scores: in percent, by the paper's keys or by data set, of the last epoch that was evaluated.
    """

    path: Path
    state: str
    note: str = ""
    method: str = ""
    model: str = ""
    data: str = ""
    samples: int = 0
    batch_size: int = 0
    seed: int | None = None
    variant: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    recipe: Recipe | None = None
    set: dict = field(default_factory=dict)
    command: str = ""
    versions: dict = field(default_factory=dict)
    measured_with: dict = field(default_factory=dict)  # versions, of the evaluation
    split: str = ""
    hosts: tuple[str, ...] = ()
    points: list[dict] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    course: dict[int, dict[str, float]] = field(default_factory=dict)
    epoch: int | None = None  # of the scores
    epochs: int | None = None
    weights: str | None = None
    copy_of: str | None = None
    name: str = ""

    def __post_init__(self):
        self.name = self.name or self.path.resolve().name

    @property
    def has_trained(self) -> bool:
        """Whether the folder tells what was trained."""
        return bool(self.method)

    @property
    def is_whole(self) -> bool:
        """Whether its scores stand for the run: it is finished and they are of its end."""
        return self.state == FINISHED and (self.epoch is None or self.epochs is None or self.epoch >= self.epochs)

    @property
    def samples_per_second(self) -> float | None:
        """The median of the log's, without the first step, which also warms up."""
        speeds = [point["samples_per_second"] for point in self.points[1:] if point["samples_per_second"]]
        return statistics.median(speeds) if speeds else None


def method_variant(recipe: Recipe) -> dict:
    """Returns what of a recipe's method and model is not the default."""
    return not_default(recipe.superclip or {}, recipe.method) | flags_of_variant(recipe.flags, recipe.method)


def flags_of_variant(flags: dict, method: str) -> dict:
    """Returns of OpenCLIP's flags, without their dashes, those that say what is trained and from which weights."""
    told = {
        name: value for name, value in flags.items() if value and name.startswith(("force-", "lock-", "pretrained"))
    }
    if method.endswith("flip"):
        told.pop("force-patch-dropout", None)  # that is the method
    return told


def not_default(superclip: dict, method: str) -> dict:
    """Returns what of the fields under `superclip` changes the weights of that method and is not the default."""
    told = [name for name in CONFIG_FIELDS if name not in (*RECORDED_ALONE, "long_caption")]
    if not method.startswith("super"):
        told = ["captions", "missing_long"]
    defaults = {name: CONFIG_FIELDS[name].default for name in told}
    return {name: superclip[name] for name, default in defaults.items() if superclip.get(name, default) != default}
