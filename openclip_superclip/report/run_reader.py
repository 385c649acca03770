"""Reads runs: the folder of `superclip run`, or OpenCLIP's own as far as it tells."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.run_options import read_run_record
from ..checkpoints.training_log import read_log
from ..errors import InputError
from ..planning.recipe_file import read_recipe
from ..run_names import run_names
from ..running.run_state import told_state
from .reported_run import CUT, FINISHED, MISSING, ReportedRun, flags_of_variant, method_variant, not_default
from .run_scores import read_scores

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
    from ..data.shard_pattern import expand
    from ..data.shard_scan import listed_samples  # imports torch

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
