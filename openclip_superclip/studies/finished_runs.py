"""Reads runs for a report: the folder of `superclip run`, or OpenCLIP's own."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints.run_outputs import read_log, read_run_record
from ..config import RECORDED_ALONE
from ..errors import InputError
from ..files import read_json
from ..pages import run_names
from ..runs.folder import current_state
from ..runs.recipe import CONFIG_FIELDS, Recipe, read_recipe
from .scores import read_scores

MISSING, CUT, FINISHED = "missing", "cut short", "finished"
TRAINING = ("lr", "warmup", "schedule", "beta1", "beta2", "eps", "wd", "precision")
OPENCLIP_NAMES = {"schedule": "lr_scheduler"}  # where they differ
FLAGS = {  # OpenCLIP's options with their defaults that are equal in runs that differ only by the seed
    **dict.fromkeys((
        "momentum", "grad_clip_norm", "local_loss", "gather_with_grad", "use_bn_sync", "skip_scheduler",
        "epochs_cooldown", "image_mean", "image_std", "image_interpolation", "image_resize_mode", "aug_cfg",
        "train_data_upsampling_factors", "distill_model", "distill_pretrained", "use_bnb_linear",
    )),
    "opt": "adamw", "lr_cooldown_end": 0.0, "lr_cooldown_power": 1.0, "coca_caption_loss_weight": 2.0,
    "coca_contrastive_loss_weight": 1.0,
}  # fmt: skip


@dataclass
class ReportedRun:
    """A run; unknown fields are None or empty.

    Attributes:
        state: from state.json, or from the log: finished, cut short, missing.
        model, data, samples: runs are comparable if these are equal; `samples` as planned.
        variant: of the method: fields of the class loss, captions and starting point that are not the default.
        training: optimizer settings and the like, without the seed.
        points: of the log.
        split: number of ranks, device and accumulation.
        weights: identifies the evaluated weights.
        name: distinguishes it from the other runs; the folder's name by default.
        copy_of: the name of a run with the same losses or weights, which is counted instead.
        scores: in percent, by the paper's keys or by data set, of the last evaluated epoch.
        course: the scores of every evaluated epoch.
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
    def is_whole(self) -> bool:
        """Whether it is finished and its scores are of its last epoch."""
        return self.state == FINISHED and (self.epoch is None or self.epochs is None or self.epoch >= self.epochs)

    @property
    def samples_per_second(self) -> float | None:
        """The median of the log's, without the first step, which includes start-up."""
        speeds = [point["samples_per_second"] for point in self.points[1:] if point["samples_per_second"]]
        return statistics.median(speeds) if speeds else None


def method_variant(recipe: Recipe) -> dict:
    """Returns the fields of a recipe's method and model that are not the default."""
    return _superclip_variant(recipe.superclip or {}, recipe.method) | _flags_variant(recipe.flags, recipe.method)


def _superclip_variant(superclip: dict, method: str) -> dict:
    """Returns the fields under `superclip` that change the weights of that method and are not the default."""
    names = ["captions", "missing_long"]
    if method.startswith("super"):
        names = [name for name in CONFIG_FIELDS if name not in (*RECORDED_ALONE, "long_caption")]
    defaults = {name: CONFIG_FIELDS[name].default for name in names}
    return {name: superclip[name] for name, default in defaults.items() if superclip.get(name, default) != default}


def _flags_variant(flags: dict, method: str) -> dict:
    """Returns OpenCLIP's flags, without dashes, that say what is trained and from which weights."""
    own = "force-patch-dropout" if method.endswith("flip") else ""  # it is that method
    return {
        name: value
        for name, value in flags.items()
        if value and name != own and name.startswith(("force-", "lock-", "pretrained"))
    }


def read_runs(paths: Sequence[Path]) -> list[ReportedRun]:
    """Returns the runs in folders, with distinct names; a folder without a run is missing."""
    runs = [read_run(path) for path in paths]
    for run, name in zip(runs, run_names(paths), strict=True):
        run.name = name
    return runs


def read_run(path: Path) -> ReportedRun:
    """Returns the run in a folder, named after the folder."""
    if not path.is_dir():
        return ReportedRun(path, MISSING, "there is no such folder")
    options = read_run_record(path / "checkpoints" / "epoch_0.pt", None).options
    recorded, state = read_json(path / "run.json", default={}), current_state(path)
    run = ReportedRun(path, "", set=recorded.get("set") or {}, versions=recorded.get("versions") or {})
    run.command = " ".join(map(str, recorded.get("command") or []))
    log = path / "out.log"
    run.points = read_log(log) if log.is_file() else []
    if (path / "recipe.yaml").is_file():
        try:
            _read_recipe(run, read_recipe(str(path / "recipe.yaml")))
        except InputError as error:
            run.note = str(error)
    if run.recipe is None and not _read_options(run, options):
        return ReportedRun(path, MISSING, run.note or "the folder holds neither recipe.yaml nor params.txt")
    plan = recorded.get("plan") or options
    run.epochs, run.hosts = plan.get("epochs") or options.get("epochs"), tuple(recorded.get("hosts") or ())
    if "world_size" in plan:
        accumulated = f", {plan['accum_freq']} × accumulated" if plan.get("accum_freq", 1) != 1 else ""
        run.split = f"{plan['world_size']} × {plan.get('device')}{accumulated}"
    run.scores, run.epoch, run.measured_with, run.weights, notes, run.course = read_scores(path, run.epochs)
    _set_state(run, state, log.is_file(), notes)
    return run


def _read_recipe(run: ReportedRun, recipe: Recipe) -> None:
    run.recipe, run.method, run.model, run.data = recipe, recipe.method, recipe.model, recipe.data
    run.samples, run.batch_size, run.seed = recipe.samples, recipe.global_batch_size, recipe.seed
    run.variant = method_variant(recipe)
    run.training = {name: getattr(recipe, name) for name in TRAINING}
    run.training |= _changed_flags({name.replace("-", "_"): value for name, value in recipe.flags.items()})


def _read_options(run: ReportedRun, options: dict) -> bool:
    """Fills in what OpenCLIP's params.txt holds; returns whether that identifies the training."""
    sizes = [options.get(name) for name in ("batch_size", "world_size", "accum_freq", "epochs")]
    if not all(isinstance(size, int) for size in sizes) or not options.get("model"):
        return False
    *factors, epochs = sizes
    superclip = {
        name.removeprefix("superclip_"): value for name, value in options.items() if name.startswith("superclip_")
    }
    with_head = options.get("superclip") is True and superclip.get("weight") != 0
    base = "siglip" if options.get("siglip") else "flip" if options.get("force_patch_dropout") else "clip"
    run.method = f"super{base}" if with_head else base
    run.model, run.data, run.seed = str(options["model"]), str(options.get("train_data")), options.get("seed")
    run.samples, run.batch_size = _num_samples(options, run.points) * epochs, math.prod(factors)
    run.variant = _superclip_variant(superclip, run.method) if options.get("superclip") else {}
    run.variant |= _flags_variant({name.replace("_", "-"): value for name, value in options.items()}, run.method)
    run.training = {name: options.get(OPENCLIP_NAMES.get(name, name)) for name in TRAINING} | _changed_flags(options)
    return True


def _changed_flags(options: dict) -> dict:
    """Returns OpenCLIP's other options that change the weights, if they are not the default."""
    given = {name: options[name] for name in FLAGS if options.get(name) not in (None, False, {})}
    return {name: value for name, value in given.items() if value != FLAGS[name]}


def _num_samples(options: dict, points: list[dict]) -> int:
    """Returns the samples of an epoch, equal for runs on equal data: the log rounds up to whole batches."""
    data, kind = str(options.get("train_data")), options.get("dataset_type")
    logged = points[0]["epoch_samples"] if points else 0
    if kind == "csv" or (kind == "auto" and data.endswith((".csv", ".tsv"))):  # its length is the number of rows
        return logged or options.get("train_num_samples") or 0
    return options.get("train_num_samples") or _listed_samples(data) or logged


def _listed_samples(data: str) -> int | None:
    """Returns the samples of all shards by the sizes.json beside them; None if it does not list them all."""
    from ..data.inspection import listed_samples  # imports torch
    from ..data.shards import expand

    try:
        shards = expand(data)
        listed = listed_samples(shards)
    except (InputError, OSError):
        return None
    return sum(listed.values()) if len(listed) == len(shards) else None


def _set_state(run: ReportedRun, state: dict, has_log: bool, notes: list[str]) -> None:
    """Sets the run's state, from state.json or its log, and its note on everything that is wrong."""
    last = run.points[-1] if run.points else None
    total = last["epoch_samples"] * run.epochs if last and run.epochs else None
    at_end = total is not None and total - last["samples"] < run.batch_size  # an incomplete batch is left out
    if last is None:
        seen = "out.log holds no step" if has_log else "there is no out.log"
    else:
        seen = f"the log ends at {last['samples']:,} of {total:,} samples" if total else f"{last['samples']:,} samples"
    run.state = state.get("state") or (FINISHED if at_end else CUT)
    found = [run.note, state.get("error"), "" if at_end else seen]
    if run.scores and run.epochs and run.epoch is not None and run.epoch < run.epochs:
        found.append(f"evaluated at epoch {run.epoch} of {run.epochs}")
    found += [
        f"{number:,} {what} could not be read" for what, number in (state.get("unreadable") or {}).items() if number
    ]
    found += notes
    if not all(value is None or math.isfinite(value) for point in run.points for value in point.values()):
        found.append("the loss became non-finite")
    run.note = "; ".join(filter(None, found))


def mark_copies(runs: list[ReportedRun]) -> None:
    """Notes in each run of which earlier one it is a copy: equal losses in the log, or equal weights."""
    first = {}
    for run in runs:
        marks = _marks(run)
        original = next((first[mark] for mark in marks if mark in first), None)
        if original is None:
            first |= dict.fromkeys(marks, run)
        elif run.copy_of is None:
            run.copy_of = original.name
            run.note = "; ".join(filter(None, [run.note, f"the same run as {original.path}, and counted once"]))


def _marks(run: ReportedRun) -> list[tuple]:
    """Returns what two different trainings never share, with the settings that must be equal too."""
    settings = run.method, run.model, run.data, run.samples, run.batch_size, str(run.variant), str(run.training)
    losses = tuple(
        (point["samples"], *(value for name, value in sorted(point.items()) if name.endswith("loss")))
        for point in run.points
    )
    weights = run.weights if run.is_whole else None
    return [(kind, mark, *settings) for kind, mark in (("losses", losses), ("weights", weights)) if mark]
