"""The start of a training run: creates what a checked run needs, and logs what begins."""

import logging
import multiprocessing
from pathlib import Path

from ..checkpoints.model_configurations import is_file, register_small_models
from ..data.images import decode_no_code
from ..errors import print_in_one_line, to_stderr
from .output_folder import make_folder, remove_unstarted_run
from .parsed_options import Training


def register_models(training: Training) -> None:
    """Registers the models that a command may name with OpenCLIP: the small ones, and a JSON
    file."""
    register_small_models()
    if is_file(training.options.model):
        training.model  # noqa: B018 - reading registers it


def begin(training: Training) -> None:
    """Prints warnings, names the columns of a table, and creates what a checked run needs: its
    split, its folder, its start method for processes; InputError if a file cannot be written."""
    options = training.options
    columns = training.columns
    options.csv_separator, options.csv_img_key, options.csv_caption_key = columns
    if columns != training.given_columns and training.rank == 0:
        to_stderr(f"superclip: {options.train_data or options.val_data}: {columns.description}")
    if training.rank == 0 and training.is_ours:
        training.resumed.set_damaged_aside()
        for warning in _warnings(training):
            to_stderr(f"superclip: {warning}")
    if training.table_split is not None:
        training.table_split.write("--logs")
        options.train_data = training.table_split.train
        options.val_data = training.table_split.val
    _fix_ranks(training)
    if training.is_ours:
        decode_no_code()
        if training.kind == "shards" and options.workers > 0:  # a WebDataset cannot be pickled
            multiprocessing.set_start_method("fork", force=True)
        make_folder(options)
        print_in_one_line(_end_unstarted_run)


def _end_unstarted_run() -> None:
    remove_unstarted_run()
    logging.disable(logging.CRITICAL)  # torch would log compilation statistics at exit


def _warnings(training: Training) -> list[str]:
    """Returns warnings about the data and the length of the run."""
    options = training.options
    warnings = training.data.warnings + training.val_data.warnings
    warnings += long_warmup(options.warmup, training.num_steps, "--warmup")
    batch_size = options.batch_size * options.accum_freq * training.world_size
    num_samples = training.num_steps * batch_size
    head_warmup = training.config.head_warmup if training.config else 0
    if 0 < num_samples <= head_warmup:
        warnings.append(
            f"--superclip-head-warmup {head_warmup} covers all {num_samples} samples of the run, "
            "so the class loss trains only its head"
        )
    return warnings


def long_warmup(warmup: int, steps: int, flag: str) -> list[str]:
    """Returns a warning if the warm-up takes all steps of the run; none if their number is
    unknown, 0."""
    if not 0 < steps <= warmup:
        return []
    return [f"warm-up takes {warmup:,} steps, but the run has {steps:,}: shorten it with {flag}"]


def _fix_ranks(training: Training) -> None:
    """Fixes DDP's buckets if the run trains in slices, so that resuming is exact, and makes
    Horovod's ranks train like torchrun's."""
    from ..method.distributed import fix_buckets

    trains_in_slices = training.data_config.slices is not None and training.options.train_data
    fix_buckets(fixed=bool(trains_in_slices))
    if training.is_ours and getattr(training.options, "horovod", False):
        from .horovod import fix_horovod

        fix_horovod()


def log_start(training: Training) -> None:
    """Logs model, starting weights, data, steps and the place of the logs; the head logs its own
    line."""
    options = training.options
    start = options.resume or training.start_of_towers
    batch = options.batch_size * options.world_size * options.accum_freq
    steps = f"{training.num_steps:,} steps" if training.num_steps else "steps not counted"
    lines = [
        f"model {options.model} in {options.precision} on {options.world_size} rank(s)",
        f"the towers start from {start}",
        f"data {options.train_data or options.dataset_type}, {options.epochs} epoch(s) in batches "
        f"of {batch:,} samples: {steps}",
    ]
    if (options.logs or "none").lower() != "none":
        lines.append(f"log and checkpoints in {Path(options.logs, options.name)}")
    for line in lines:
        logging.info(f"SuperCLIP: {line}")
