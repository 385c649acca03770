"""What is wrong with a training: of its options, its data, its models and the checkpoint that it
resumes from, each with a suggestion."""

import math
from collections.abc import Iterator
from pathlib import Path

from ..checkpoints.resume import check_kind
from ..data.held_out import SPLIT
from . import current
from .option_problems import option_problems
from .parsed_options import Training


def problems(training: Training) -> Iterator[str]:
    """Yields why the options and the data cannot be trained with, each with a suggestion, first
    what values alone show; OpenCLIP's models are not imported.

    Without a flag of ours, only the columns of a table and --resume are checked: it is refused if
    OpenCLIP would fail, or for a run in slices.
    """
    yield from option_problems(training)
    is_trained = training.is_ours and not training.only_options
    training.resumed  # noqa: B018 - InputError if there is no such file
    training.columns  # noqa: B018 - InputError if a table has no such columns
    if is_trained and training.in_run is None:
        yield from _problems_with_data(training)


def check_model(training: Training) -> None:
    """Raises InputError if the models, the file of --superclip-idf or the checkpoint of --resume do
    not fit."""
    if training.is_ours and not training.only_options:
        from ..checkpoints.starting_weights import check_models

        check_models(training)
    _check_frequencies(training)
    _check_resume(training)


def _problems_with_data(training: Training) -> Iterator[str]:
    """Yields why OpenCLIP cannot train or evaluate on the data."""
    options = training.options
    for data in (training.data, training.val_data):
        data.check_images()
    if training.kind == "table":
        training.trained_data.check_rows(
            options.batch_size, training.world_size, training.accum_freq
        )
    elif training.kind == "shards":
        yield from _problems_with_split(training)
    is_distilled = training.config is not None and options.distill_model is not None
    if is_distilled and training.has_empty_captions:
        yield (
            f"--train-data: {options.train_data} has rows without a caption, which do not work "
            "with --superclip and --distill-model: remove these rows"
        )
    yield from _problems_with_earlier_split(training)


def _problems_with_split(training: Training) -> Iterator[str]:
    """Yields why ranks and workers have too few shards, or an epoch no number of samples."""
    options = training.options
    if not options.dataset_resampled:
        training.split.check()
    batches = training.num_batches
    if 0 < batches < training.accum_freq:
        yield (
            f"--accum-freq is {training.accum_freq}, and a rank has {batches} batches in an epoch: "
            f"expected {batches} or less, or a larger --train-num-samples"
        )
    if training.data_config.slices is not None:
        yield from _problems_with_slice(training)
        return
    # --naflex-num-train-image-tokens sets the size of an epoch, too
    tokens = getattr(options, "naflex_num_train_image_tokens", None)
    by_tokens = training.is_naflex and tokens is not None
    is_known = options.train_num_samples or training.data.total_samples is not None
    if not is_known and not by_tokens:
        yield (
            "--train-num-samples is not given, and no sizes.json beside all of the shards "
            "lists them (a file __len__ is not read): expected the samples per epoch"
        )


def _problems_with_slice(training: Training) -> Iterator[str]:
    """Yields an error unless --train-num-samples is the size of one slice."""
    num_samples = training.options.train_num_samples
    if num_samples is not None and not training.exceeds_slice:
        return
    given = "is not given" if num_samples is None else f"is {num_samples:,}"
    slices = training.data_config.slices
    total = training.data.total_samples
    of_total = f", {math.ceil(total / slices):,} of {total:,}" if total else ""
    yield (
        f"--train-num-samples {given}; expected the samples of one of the {slices} slices{of_total}"
    )


def _problems_with_earlier_split(training: Training) -> Iterator[str]:
    """Yields an error if the checkpoint of --resume was trained on another split."""
    resumed = training.resumed
    if training.table_split is None or resumed.file is None:
        return
    earlier = Path(str(resumed.options.get("train_data")))
    split = earlier.parent.name
    if split.startswith(SPLIT) and split != training.table_split.folder.name:
        yield (
            f"--resume: the table or --val-fraction has changed since {resumed.file} was trained, "
            f"so it may have seen the new pairs for validation; expected --train-data {earlier} "
            f"--val-data {earlier.with_name('val.csv')} instead of --val-fraction"
        )


def _check_frequencies(training: Training) -> None:
    """Raises InputError if the file of --superclip-idf counts other tokens or captions than the
    class loss reads."""
    options = training.options
    config = training.config
    frequencies = training.frequencies
    if frequencies is None or training.in_run is not None:
        return
    what = f"--superclip-idf: {config.idf}"
    frequencies.check(training.tokenizer, what)
    if options.train_data:
        context = config.long_context or training.tokenizer.context_length
        command = ["superclip", "frequencies", options.train_data, "--tokenizer-of", options.model]
        frequencies.check_captions(
            config,
            context,
            what,
            command,
            is_table=training.kind == "table",
            member=training.caption_member,
        )


def _check_resume(training: Training) -> None:
    """Raises InputError if the checkpoint of --resume does not fit: with or without a class head,
    or of a run in slices with other options at its beginning."""
    data = training.data_config
    checkpoint = training.checkpoint
    if checkpoint is not None:
        config = training.config
        head_lr_scale = None
        if config is not None and config.head_lr is not None:
            head_lr_scale = config.head_lr / training.options.lr
        has_tasks = current().HAS_TASKS
        check_kind(
            checkpoint,
            training.options.model,
            with_head=config is not None,
            head_lr_scale=head_lr_scale,
            with_ddp=None if has_tasks else training.with_ddp,
            has_tasks=has_tasks if training.is_ours else None,
        )
    if data.accept_changes or training.changes is None:
        return
    if training.kind == "table":
        accept = "--accept-changes to superclip run"
    elif data.slices is None:  # without which nothing is compared
        accept = "--superclip-slices and --superclip-accept-changes"
    else:
        accept = "--superclip-accept-changes"
    training.changes.check(training.resumed.run_folder, accept)
