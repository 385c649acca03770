"""Reads runs: the folder of `superclip run`, or OpenCLIP's own as far as it tells."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints.run_outputs import read_log, read_run_record
from ..config import RECORDED_ALONE
from ..errors import InputError
from ..pages import run_names
from ..runs.folder import told_state
from ..runs.recipe import CONFIG_FIELDS, Recipe, read_recipe
from .scores import read_scores

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


TRAINING = ("lr", "warmup", "schedule", "beta1", "beta2", "eps", "wd", "precision")


_OPENCLIP = {"schedule": "lr_scheduler"}  # its names, where they are others


FLAGS = {  # of OpenCLIP, with their defaults: what else two runs that differ by the seed alone have alike
    **dict.fromkeys((
        "momentum", "grad_clip_norm", "local_loss", "gather_with_grad", "use_bn_sync", "skip_scheduler",
        "epochs_cooldown", "image_mean", "image_std", "image_interpolation", "image_resize_mode", "aug_cfg",
        "train_data_upsampling_factors", "distill_model", "distill_pretrained", "use_bnb_linear",
    )),
    "opt": "adamw", "lr_cooldown_end": 0.0, "lr_cooldown_power": 1.0, "coca_caption_loss_weight": 2.0,
    "coca_contrastive_loss_weight": 1.0,
}  # fmt: skip


def read_runs(paths: Sequence[Path]) -> list[ReportedRun]:
    """Returns the runs in folders, by names that tell them apart; one not there, or that tells nothing, is missing."""
    runs = list(map(read_run, paths))
    for run, name in zip(runs, run_names(paths), strict=True):
        run.name = name
    return runs


def read_run(path: Path) -> ReportedRun:
    """Returns the run in a folder, by the folder's name."""
    if not path.is_dir():
        return ReportedRun(path, MISSING, "there is no such folder")
    options = read_run_record(path / "checkpoints" / "epoch_0.pt", None).options
    recorded, state = _json(path / "run.json"), told_state(path)
    run = ReportedRun(path, "", set=recorded.get("set") or {}, versions=recorded.get("versions") or {})
    run.command = " ".join(map(str, recorded.get("command") or []))
    log = path / "out.log"
    run.points = read_log(log) if log.is_file() else []
    _read_recipe(run)
    if run.recipe is None and not _read_options(run, options):
        return ReportedRun(path, MISSING, run.note or "the folder holds neither recipe.yaml nor params.txt")
    run.epochs = (recorded.get("plan") or {}).get("epochs") or options.get("epochs")
    run.split, run.hosts = _split(recorded.get("plan") or options), tuple(recorded.get("hosts") or ())
    run.scores, run.epoch, run.measured_with, run.weights, notes, run.course = read_scores(path, run.epochs)
    _tell_state(run, state, log.is_file(), notes)
    return run


def _read_recipe(run: ReportedRun) -> None:
    file = run.path / "recipe.yaml"
    if not file.is_file():
        return
    try:
        recipe = read_recipe(str(file))
    except InputError as error:
        run.note = str(error)
        return
    run.recipe, run.method, run.model, run.data = recipe, recipe.method, recipe.model, recipe.data
    run.samples, run.batch_size, run.seed = recipe.samples, recipe.global_batch_size, recipe.seed
    run.variant = method_variant(recipe)
    run.training = {name: getattr(recipe, name) for name in TRAINING}
    run.training |= _flags({name.replace("-", "_"): value for name, value in recipe.flags.items()})


def _read_options(run: ReportedRun, options: dict) -> bool:
    """Fills in what OpenCLIP's params.txt says; returns whether it says what was trained."""
    sizes = [options.get(name) for name in ("batch_size", "world_size", "accum_freq", "epochs")]
    if not all(isinstance(size, int) for size in sizes) or not options.get("model"):
        return False
    batch_size, world_size, accum_freq, epochs = sizes
    num_samples = _num_samples(options, run.points)
    superclip = {
        name.removeprefix("superclip_"): value for name, value in options.items() if name.startswith("superclip_")
    }
    with_head = options.get("superclip") is True and superclip.get("weight") != 0
    base = "siglip" if options.get("siglip") else "flip" if options.get("force_patch_dropout") else "clip"
    run.method = f"super{base}" if with_head else base
    run.model, run.data = str(options["model"]), str(options.get("train_data"))
    run.samples, run.batch_size = num_samples * epochs, batch_size * world_size * accum_freq
    run.seed = options.get("seed")
    run.variant = not_default(superclip, run.method) if options.get("superclip") else {}
    run.variant |= flags_of_variant({name.replace("_", "-"): value for name, value in options.items()}, run.method)
    run.training = {name: options.get(_OPENCLIP.get(name, name)) for name in TRAINING} | _flags(options)
    return True


def _flags(options: dict) -> dict:
    """Returns OpenCLIP's other options that change the weights, where they are not the default."""
    given = {name: options[name] for name in FLAGS if options.get(name) not in (None, False, {})}
    return {name: value for name, value in given.items() if value != FLAGS[name]}


def _num_samples(options: dict, points: list[dict]) -> int:
    """Returns the samples of an epoch, equal for runs of equal data: the log rounds up to whole batches."""
    data, kind = str(options.get("train_data")), options.get("dataset_type")
    logged = points[0]["epoch_samples"] if points else 0
    if kind == "csv" or (kind == "auto" and data.endswith((".csv", ".tsv"))):  # whose rows alone count
        return logged or options.get("train_num_samples") or 0
    return options.get("train_num_samples") or _listed(data) or logged


def _listed(data: str) -> int | None:
    """Returns the samples of all shards by the sizes.json beside them, None where that does not list them."""
    from ..data.inspection import listed_samples  # imports torch
    from ..data.shards import expand

    try:
        shards = expand(data)
        listed = listed_samples(shards)
    except (InputError, OSError):
        return None
    return sum(listed.values()) if len(listed) == len(shards) else None


def _tell_state(run: ReportedRun, state: dict, has_log: bool, notes: list[str]) -> None:
    """Sets the run's state, what state.json says, and its note: whether the log agrees, and what else is wrong."""
    last = run.points[-1] if run.points else None
    total = last["epoch_samples"] * run.epochs if last and run.epochs else None
    at_end = total is not None and total - last["samples"] < run.batch_size  # a batch that is not full is left out
    if last is None:
        seen = "out.log holds no step" if has_log else "there is no out.log"
    else:
        seen = f"the log ends at {last['samples']:,} of {total:,} samples" if total else f"{last['samples']:,} samples"
    run.state = state.get("state") or (FINISHED if at_end else CUT)
    told = [run.note, state.get("error") or "", "" if at_end else seen]
    if run.scores and run.epochs and run.epoch is not None and run.epoch < run.epochs:
        told.append(f"evaluated at epoch {run.epoch} of {run.epochs}")
    unreadable = state.get("unreadable") or {}
    told += [f"{number:,} {what} could not be read" for what, number in unreadable.items() if number]
    told += notes
    if not all(map(_is_number, (value for point in run.points for value in point.values()))):
        told.append("the loss became infinite or no number")
    run.note = "; ".join(filter(None, told))


def _is_number(value: float | None) -> bool:
    return value is None or abs(value) < float("inf")


def _split(told: dict) -> str:
    accumulated = told.get("accum_freq", 1)
    more = f", {accumulated} × accumulated" if accumulated != 1 else ""
    return f"{told['world_size']} × {told.get('device')}{more}" if "world_size" in told else ""


def _json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def tell_copies(runs: list[ReportedRun]) -> None:
    """Notes in each run of which earlier one it is a copy: equal losses in the log, or equal weights."""
    first = {}
    for run in runs:
        for mark in _marks(run):
            if mark in first and run.copy_of is None:
                run.copy_of = first[mark].name
                told = f"the same run as {first[mark].path}, and counted once"
                run.note = f"{run.note}; {told}" if run.note else told
        for mark in _marks(run) if run.copy_of is None else ():
            first.setdefault(mark, run)


def _marks(run: ReportedRun) -> list[tuple]:
    """Returns what two trainings do not have in common, with what must be equal for runs to be counted together."""
    asked = run.method, run.model, run.data, run.samples, run.batch_size, str(run.variant), str(run.training)
    losses = tuple(
        (point["samples"], *(value for name, value in sorted(point.items()) if name.endswith("loss")))
        for point in run.points
    )
    weights = run.weights if run.is_whole else None
    return [(kind, mark, *asked) for kind, mark in (("losses", losses), ("weights", weights)) if mark]
