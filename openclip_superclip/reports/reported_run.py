"""Reads runs for a report: the folder of `superclip run`, or OpenCLIP's own."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints.trainer_files import RECORD, checkpoints, newest, read_options
from ..errors import InputError, listed
from ..files import content_digest, json_or_empty
from ..openclip.hook_calls import parse_args
from ..option_table import EFFECTS
from ..plans.recipe import CAPTION_FIELDS, CONFIG_FIELDS, FIELDS, Recipe
from ..plans.run import Run
from ..runs.folder import FINISHED, current_state
from ..runs.progress import read_log
from .run_scores import of_training, read_scores

MISSING = "missing"
CUT = "cut short"
# Options that a report shows as the method, its variant, the model or the samples.
SHOWN = {"siglip", "superclip", "model", "epochs", "train_num_samples"}
SHOWN_BY_PREFIX = ("force_", "lock_", "pretrained", "superclip_")
# Names of captions are too long for the name of a variant.
LONG_CAPTION = "superclip_long_caption"

Variant = tuple[tuple[str, object], ...]


@dataclass
class ReportedRun:
    """A run; unknown fields are None or empty."""

    path: Path
    state: str = MISSING  # of state.json, or by the log: finished, cut short, missing
    note: str = ""
    name: str = ""  # distinguishes it from the other runs
    method: str = ""
    model: str = ""  # runs are comparable if these three are equal
    data: str = ""
    samples: int | None = None  # as planned
    batch_size: int | None = None
    seed: int | None = None
    # fields of the method and the starting point that are not the default
    variant: Variant = ()
    # optimizer settings, --data and the like, without the seed
    training: dict = field(default_factory=dict)
    planned: Run | None = None  # of `superclip run`
    versions: dict[str, str] = field(default_factory=dict)  # of run.json
    points: list[dict] = field(default_factory=list)  # of the log
    scores: dict[str, float] = field(default_factory=dict)  # of the last evaluated epoch
    # settings, data and versions, by data set and task
    evaluated: dict[str, list] = field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        return self.state == FINISHED

    @property
    def samples_per_second(self) -> float | None:
        """The median of the log's, without the first step, which includes start-up."""
        speeds = [
            point["samples_per_second"] for point in self.points[1:] if point["samples_per_second"]
        ]
        return statistics.median(speeds) if speeds else None


def recipe_options(recipe: Recipe) -> dict:
    """Returns the options of a recipe, by the names that they have in params.txt."""
    options = vars(recipe) | {"lr_scheduler": recipe.schedule}
    for name, value in (recipe.superclip or {}).items():
        options[f"superclip_{name}"] = value
    for flag, value in recipe.flags.items():
        options[flag.replace("-", "_")] = value
    return options


def method_variant(method: str, options: dict) -> Variant:
    """Returns the fields of `superclip`, and OpenCLIP's options, that change the weights and are
    not the default, by name."""
    variant = {}
    for name in CONFIG_FIELDS if method.startswith("super") else CAPTION_FIELDS:
        option = f"superclip_{name}"
        default = CONFIG_FIELDS[name].default
        value = options.get(option, default)
        is_shown = option != LONG_CAPTION and EFFECTS[option].changes_scores
        if is_shown and value != default:
            variant[name] = value
    for name, value in options.items():
        # FLIP's recipes drop half of the patches
        is_method = method.endswith("flip") and (name, value) == ("force_patch_dropout", 0.5)
        if value and not is_method and name.startswith(("force_", "lock_", "pretrained")):
            variant[name] = str(value)  # a list cannot be hashed
    return tuple(sorted(variant.items()))


def read_run(path: Path, name: str = "") -> ReportedRun:
    """Returns the run in a folder; a folder without a run is missing."""
    run = ReportedRun(path, name=name)
    run.versions = json_or_empty(path / RECORD).get("versions", {})
    log = path / "out.log"
    run.points = read_log(log) if log.is_file() else []
    options = read_options(path)
    try:
        if Run.is_in(path):
            run.planned = Run.open(path)
            options = _planned_options(run.planned)
    except InputError as error:
        run.note = str(error)
    try:
        _set_options(run, options)
    except InputError as error:
        run.note = run.note or str(error)
        return run
    if run.note:
        run.note = (
            f"{RECORD} cannot be read: its options are those of params.txt, and it is compared by "
            "the path of its data"
        )
    state = current_state(path)
    epochs = options["epochs"]
    run.scores, epoch, run.evaluated = read_scores(path)
    _set_state(run, state, epochs, epoch)
    for measure, score in of_training(path).items():
        run.scores[f"{measure} (training's own)"] = score
        run.evaluated["training's own"] = [
            options.get(name) for name in ("val_data", "imagenet_val")
        ]
    demo = json_or_empty(path / "demo-test.json")
    weights = checkpoints(path / "checkpoints").get(newest(path / "checkpoints"))
    # else the checkpoint was trained again since
    if demo and (weights is None or content_digest(weights)[:16] == demo.get("checkpoint")):
        for measure, score in demo.get("measures", {}).items():
            run.scores[f"demo {measure.replace('_', ' ')}"] = score
    run.scores = {key: score for key, score in run.scores.items() if math.isfinite(score)}
    return run


def _planned_options(planned: Run) -> dict:
    """Returns the options of a run of `superclip run`, by the names that they have in
    params.txt."""
    return {
        **recipe_options(planned.recipe),
        "epochs": planned.num_slices,
        "batch_size": planned.batch_size,
        "accum_freq": planned.accum_freq,
        "world_size": planned.world_size,
    }


def _set_options(run: ReportedRun, options: dict) -> None:
    """Sets what the options determine; InputError if params.txt is missing or truncated."""
    if not options:
        raise InputError("the folder contains neither run.json nor params.txt")
    needed = ("model", "epochs", "batch_size", "world_size", "accum_freq")
    missing = [name for name in needed if options.get(name) in (None, "")]
    if missing:
        raise InputError(f"params.txt is incomplete: it lacks {listed(missing)}")
    run.method = "clip"
    if options.get("siglip"):
        run.method = "siglip"
    elif options.get("force_patch_dropout"):
        run.method = "flip"
    if options.get("superclip") and options.get("superclip_weight") != 0:
        run.method = f"super{run.method}"
    run.model = str(options["model"])
    run.data = str(options.get("train_data"))
    run.seed = options.get("seed")
    # of a table: its length is not an option
    logged = run.points[0]["epoch_samples"] if run.points else 0
    run.samples = (options.get("train_num_samples") or logged) * options["epochs"]
    run.batch_size = options["batch_size"] * options["world_size"] * options["accum_freq"]
    run.variant = method_variant(run.method, options)
    run.training = _training(options)
    if run.planned:
        recipe = run.planned.recipe
        run.data = recipe.data
        run.samples = recipe.samples
        is_of_recipe = run.planned.data == recipe.shards
        run.training["data"] = "the recipe's" if is_of_recipe else run.planned.data


def _training(options: dict) -> dict:
    """Returns the options that change the scores of a method: those of every recipe, and others
    that are not OpenCLIP's default."""
    defaults = vars(parse_args([], only_options=True))
    training = {}
    for name, effect in EFFECTS.items():
        is_shown = name in SHOWN or name.startswith(SHOWN_BY_PREFIX)
        if not effect.changes_scores or (is_shown and name != LONG_CAPTION):
            continue
        value = options.get(name)
        if name in FIELDS or value not in (None, "", {}, defaults.get(name)):
            training[name] = value
    return training


def _set_state(run: ReportedRun, state: dict, epochs: int, epoch: int | None) -> None:
    """Sets the run's state, from state.json or its log, and its note; drops the scores of a
    finished run if they are of an epoch before the last of `epochs`."""
    notes = [run.note, state.get("error")]
    is_at_end = False
    if run.points:
        samples = run.points[-1]["samples"]
        total = run.points[-1]["epoch_samples"] * epochs
        is_at_end = total - samples < run.batch_size  # an incomplete batch is left out
        if not is_at_end:
            notes.append(f"the log ends at {samples:,} samples of {total:,}")
    else:
        notes.append("out.log is missing or contains no step")
    run.state = state.get("state") or (FINISHED if is_at_end else CUT)
    if run.scores and epoch is not None and epoch < epochs:
        evaluated = f"at epoch {epoch} of {epochs}"
        if run.is_finished:
            notes.append(f"its evaluation {evaluated} is left out")
            run.scores = {}
        else:
            notes.append(f"evaluated {evaluated}")
    values = [value for point in run.points for value in point.values() if value is not None]
    if not all(map(math.isfinite, values)):
        notes.append("the loss became non-finite")
    run.note = "; ".join(filter(None, notes))
