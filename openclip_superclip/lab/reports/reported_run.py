"""Reads runs for a report: the folder of `superclip run`, or OpenCLIP's own."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from ...checkpoints.run_outputs import read_options
from ...errors import InputError, listed
from ...files import read_json
from ...openclip.hook_calls import parse_args
from ...option_effects import EFFECTS
from ...runs.folder import current_state
from ...runs.progress import read_log
from ...runs.recipe import CONFIG_FIELDS, FIELDS, Recipe, changes_scores, read_recipe
from .run_scores import of_training, read_scores

MISSING, CUT, FINISHED = "missing", "cut short", "finished"
# Options that a report shows as the method, its variant, the model, the samples or the schedule.
SHOWN = {"siglip", "superclip", "model", "epochs", "train_num_samples", "lr_scheduler"}
SHOWN_BY_PREFIX = ("force_", "lock_", "pretrained", "superclip_")
# Names of captions are too long for the name of a variant.
LONG_CAPTION = "superclip_long_caption"


@dataclass
class ReportedRun:
    """A run; unknown fields are None or empty."""

    path: Path
    state: str  # of state.json, or by the log: finished, cut short, missing
    note: str = ""
    name: str = ""  # distinguishes it from the other runs
    method: str = ""
    model: str = ""  # runs are comparable if these three are equal
    data: str = ""
    samples: int = 0  # as planned
    batch_size: int = 0
    seed: int | None = None
    # fields of the method and the starting point that are not the default
    variant: dict = field(default_factory=dict)
    # optimizer settings, --data and the like, without the seed
    training: dict = field(default_factory=dict)
    recipe: Recipe | None = None
    record: dict = field(default_factory=dict)  # run.json
    points: list[dict] = field(default_factory=list)  # of the log
    scores: dict[str, float] = field(default_factory=dict)  # of the last evaluated epoch
    epoch: int | None = None  # of the scores
    epochs: int | None = None

    @property
    def samples_per_second(self) -> float | None:
        """The median of the log's, without the first step, which includes start-up."""
        speeds = [
            point["samples_per_second"] for point in self.points[1:] if point["samples_per_second"]
        ]
        return statistics.median(speeds) if speeds else None


def method_variant(method: str, superclip: dict, flags: dict) -> dict:
    """Returns the fields under `superclip`, and OpenCLIP's flags, that change the weights and
    are not the default."""
    names = ["captions", "missing_long"]
    if method.startswith("super"):
        names = [
            name
            for name in CONFIG_FIELDS
            if changes_scores(f"superclip.{name}") and name != "long_caption"
        ]
    defaults = {name: CONFIG_FIELDS[name].default for name in names}
    fields = {
        name: superclip[name]
        for name, default in defaults.items()
        if superclip.get(name, default) != default
    }
    # it is that method in the recipes
    own = ("force-patch-dropout", 0.5) if method.endswith("flip") else ()
    return fields | {
        name: tuple(value) if isinstance(value, list) else value  # hashable, as in Series
        for name, value in flags.items()
        if value and (name, value) != own and name.startswith(("force-", "lock-", "pretrained"))
    }


def read_run(path: Path, name: str = "") -> ReportedRun:
    """Returns the run in a folder; a folder without a run is missing."""
    run = ReportedRun(path, MISSING, name=name)
    options, log = read_options(path), path / "out.log"
    run.record = read_json(path / "run.json", default={})
    run.points = read_log(log) if log.is_file() else []
    try:
        if (path / "recipe.yaml").is_file():
            recipe = read_recipe(str(path / "recipe.yaml"))
            run.recipe, run.method, run.model, run.data = (
                recipe,
                recipe.method,
                recipe.model,
                recipe.data,
            )
            run.samples, run.batch_size, run.seed = (
                recipe.samples,
                recipe.global_batch_size,
                recipe.seed,
            )
            run.variant = method_variant(recipe.method, recipe.superclip or {}, recipe.flags)
            flags = {name.replace("-", "_"): value for name, value in recipe.flags.items()}
            data = run.record.get("plan", {}).get("data", recipe.shards)
            flags[LONG_CAPTION] = (recipe.superclip or {}).get("long_caption")
            run.training = _training({**vars(recipe), **flags}, recipe.schedule)
            run.training["data"] = "the recipe's" if data == recipe.shards else data
        else:
            _read_options(run, options)
    except InputError as error:
        run.note = str(error)
        return run
    run.epochs = (run.record.get("plan") or options).get("epochs")
    run.scores, run.epoch = read_scores(path)
    _set_state(run, current_state(path))
    demo = read_json(path / "demo-test.json", default={}).get("measures") or {}
    scores = (
        run.scores
        | {f"{name} (training's own)": score for name, score in of_training(path).items()}
        | {f"demo {name.replace('_', ' ')}": demo[name] for name in demo}
    )
    run.scores = {key: score for key, score in scores.items() if math.isfinite(score)}
    return run


def _read_options(run: ReportedRun, options: dict) -> None:
    """Fills in what OpenCLIP's params.txt holds; InputError if it is missing or truncated."""
    if not options:
        raise InputError("the folder contains neither recipe.yaml nor params.txt")
    needed = ("model", "epochs", "batch_size", "world_size", "accum_freq")
    if missing := [name for name in needed if options.get(name) in (None, "")]:
        raise InputError(f"params.txt is incomplete: it lacks {listed(missing)}")
    superclip = {
        name.removeprefix("superclip_"): value
        for name, value in options.items()
        if name.startswith("superclip_")
    }
    base = (
        "siglip"
        if options.get("siglip")
        else "flip"
        if options.get("force_patch_dropout")
        else "clip"
    )
    run.method = (
        f"super{base}"
        if options.get("superclip") is True and superclip.get("weight") != 0
        else base
    )
    run.model, run.data, run.seed = (
        str(options["model"]),
        str(options.get("train_data")),
        options.get("seed"),
    )
    # of a table: its length is not an option
    logged = run.points[0]["epoch_samples"] if run.points else 0
    run.samples = (options.get("train_num_samples") or logged) * options["epochs"]
    run.batch_size = options["batch_size"] * options["world_size"] * options["accum_freq"]
    flags = {name.replace("_", "-"): value for name, value in options.items()}
    run.variant = method_variant(run.method, superclip if options.get("superclip") else {}, flags)
    run.training = _training(options, options.get("lr_scheduler"))


def _training(options: dict, schedule: str | None) -> dict:
    """Returns the options that change the scores of a method: those of every recipe, and others
    that are not OpenCLIP's default."""
    defaults = vars(parse_args([], only_options=True))
    training = {"schedule": schedule}
    for name, effect in EFFECTS.items():
        is_shown = name in SHOWN or name.startswith(SHOWN_BY_PREFIX)
        if not effect.changes_scores or (is_shown and name != LONG_CAPTION):
            continue
        value = options.get(name)
        if name in FIELDS or value not in (None, "", {}, defaults.get(name)):
            training[name] = value
    return training


def _set_state(run: ReportedRun, state: dict) -> None:
    """Sets the run's state, from state.json or its log, and its note; drops early scores of a
    finished run."""
    last = run.points[-1] if run.points else None
    total = last["epoch_samples"] * run.epochs if last and run.epochs else None
    # an incomplete batch is left out
    at_end = total is not None and total - last["samples"] < run.batch_size
    run.state = state.get("state") or (FINISHED if at_end else CUT)
    found = [state.get("error")]
    if last is None:
        found.append("out.log is missing or contains no step")
    elif not at_end:
        found.append(
            f"the log ends at {last['samples']:,} samples" + (f" of {total:,}" if total else "")
        )
    if run.scores and run.epochs and run.epoch is not None and run.epoch < run.epochs:
        if run.state == FINISHED:
            found.append(f"its evaluation at epoch {run.epoch} of {run.epochs} is left out")
            run.scores = {}
        else:
            found.append(f"evaluated at epoch {run.epoch} of {run.epochs}")
    if not all(
        value is None or math.isfinite(value) for point in run.points for value in point.values()
    ):
        found.append("the loss became non-finite")
    run.note = "; ".join(filter(None, found))
