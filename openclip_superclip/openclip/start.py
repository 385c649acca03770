"""The start of a training run: completes its options before they are checked, creates what a
checked run needs, and logs what begins."""

import argparse
import logging
import multiprocessing
from pathlib import Path

from ..checkpoints.model_configurations import openclip_name
from ..checkpoints.trainer_files import read_options
from ..data.held_out import SPLIT, TableSplit, split_table
from ..data.tables import Columns, detect_columns, has_columns, kind
from ..data.tar_shards import is_remote
from ..errors import InputError, print_in_one_line, to_stderr
from ..flags import options_of
from .checks import check_training_table, long_warmup
from .output_folder import make_folder, remove_unstarted_run
from .parsed_options import Training, launched


def prepare(training: Training) -> None:
    """Completes the options; InputError if a file that this needs cannot be read."""
    options = training.options
    config = training.config
    if training.is_ours:
        options.model = openclip_name(options.model)  # get_tokenizer does not accept ViT-B/16
    if config is not None and "muon" in options.opt.lower():
        _leave_head_to_fallback(options)
    reads_table = training.is_table and not training.only_options
    # without our flags, only if OpenCLIP would end with a KeyError
    if reads_table and (training.is_ours or not has_columns(options.train_data, training.columns)):
        _find_columns(training)


def _leave_head_to_fallback(options: argparse.Namespace) -> None:
    """Makes Muon train the head's weight with its fallback optimizer: its rows are words, and must
    not be orthogonalised."""
    if hasattr(options, "opt_fallback_list"):  # of OpenCLIP 4
        names = options.opt_fallback_list or (options.opt_kwargs or {}).get("fallback_list") or []
        options.opt_fallback_list = [*names, "class_head.*"]


def _find_columns(training: Training) -> None:
    """Sets OpenCLIP's options for the columns of a table that still have its defaults."""
    options = training.options
    if is_remote(options.train_data):
        return
    chosen = [
        None if value == default else value
        for value, default in zip(training.columns, Columns(), strict=True)
    ]
    columns = detect_columns(options.train_data, *chosen, "--train-data")
    if columns != training.columns and launched()[0] == 0:
        to_stderr(f"superclip: {options.train_data}: {columns.description}")
    options.csv_separator, options.csv_img_key, options.csv_caption_key = columns


def begin(training: Training, warnings: list[str], num_steps: int) -> None:
    """Prints warnings and creates what a checked run needs: its folder, its split, its start method
    for processes; InputError if a file cannot be written."""
    options = training.options
    training.num_steps = num_steps
    _hold_out(training)
    if launched()[0] == 0:
        if training.is_ours:
            training.resumed.set_damaged_aside()
        warm_up = long_warmup(options.warmup, training.num_steps, "--warmup")
        for warning in warnings + warm_up + _long_head_warmup(training):
            to_stderr(f"superclip: {warning}")
    _fix_ranks(training)
    if training.is_ours:
        reads_shards = kind(options.train_data or "", options.dataset_type) == "shards"
        if reads_shards and options.workers > 0:  # a WebDataset cannot be pickled
            multiprocessing.set_start_method("fork", force=True)
        make_folder(options)
        print_in_one_line(remove_unstarted_run)
    if training.config is not None:
        vars(options).update(options_of(training.config))  # OpenCLIP records them in params.txt


def _long_head_warmup(training: Training) -> list[str]:
    """Returns a warning if the class loss trains only the head in all steps of the run."""
    options = training.options
    batch_size = options.batch_size * options.accum_freq * launched()[1]
    num_samples = training.num_steps * batch_size
    head_warmup = training.config.head_warmup if training.config else 0
    if not 0 < num_samples <= head_warmup:
        return []
    return [
        f"--superclip-head-warmup {head_warmup} covers all {num_samples} samples of the run, so "
        "the class loss trains only its head"
    ]


def _hold_out(training: Training) -> None:
    """Splits the table of --train-data by --val-fraction, and sets OpenCLIP's options for both
    parts, and the number of steps."""
    options = training.options
    fraction = training.data_config.val_fraction
    if fraction is None:
        return
    split = split_table(
        options.train_data, training.columns, fraction, Path(options.logs), "--train-data", "--logs"
    )
    try:
        _check_same_split(training, split)
        _, training.num_steps = check_training_table(training, split.train, max_decoded=0)
    except InputError:
        split.remove()
        raise
    options.train_data = split.train
    options.val_data = split.val


def _check_same_split(training: Training, split: TableSplit) -> None:
    """Raises InputError if the checkpoint of --resume was trained on another split."""
    file = training.resumed.file
    if file is None:
        return
    earlier = Path(str(read_options(Path(file).parent.parent).get("train_data")))
    if earlier.parent.name.startswith(SPLIT) and earlier.parent.name != split.folder.name:
        raise InputError(
            f"--resume: the table or --val-fraction has changed since {file} was trained, so "
            f"it may have seen the new pairs for validation; expected --train-data {earlier} "
            f"--val-data {earlier.with_name('val.csv')} instead of --val-fraction"
        )


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
    lines = [
        f"model {options.model} in {options.precision} on {options.world_size} rank(s)",
        f"the towers start from {start}",
        f"data {options.train_data or options.dataset_type}, {_steps(training)}",
    ]
    if training.has_logs:
        lines.append(f"log and checkpoints in {Path(options.logs, options.name)}")
    for line in lines:
        logging.info(f"SuperCLIP: {line}")


def _steps(training: Training) -> str:
    options = training.options
    batch = options.batch_size * options.world_size * options.accum_freq
    steps = f"{training.num_steps:,} steps" if training.num_steps else "steps not counted"
    return f"{options.epochs} epoch(s) in batches of {batch:,} samples: {steps}"
