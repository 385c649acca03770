"""Checks of OpenCLIP's command line, before anything is loaded or written."""

import functools
import math
import re
import shlex
from argparse import Namespace
from pathlib import Path

from ..checkpoints.model_configurations import is_file, register_small_models
from ..checkpoints.resume import Resumed, check_kind
from ..checkpoints.resume_record import NAME, changes, read_record, record_of
from ..data.inspection import NUM_DECODED, NUM_LOOKED_FOR, inspect, total_samples
from ..data.slices import Split, batches_of_shards, batches_of_table, more_than_a_slice
from ..data.tables import MAX_DECODED, check_table, kind
from ..data.tar_shards import expand
from ..environment import check_horovod
from ..errors import InputError, at_least, refuse
from ..extras import require
from ..flags import Config, is_idf_file
from . import current
from .option_problems import LOGGERS, data_problems, problems, training_data_problems
from .parsed_options import Training, launched


def check_command_line(training: Training) -> tuple[list[str], int]:
    """Returns warnings and the number of steps of the run, 0 if it is unknown; InputError, with a
    suggestion, for a command that cannot train.

    Changes nothing. Without a flag of ours, only --resume is checked: it is refused if OpenCLIP
    would fail, or for a run in slices.
    """
    options = training.options
    if getattr(options, "horovod", False) and not training.only_options:
        check_horovod()
    refuse(problems(training))
    if training.is_ours:
        at_least(options, batch_size=1, accum_freq=1, epochs=1, workers=0, warmup=0)
        at_least(options, train_num_samples=1, lr=0, log_every_n_steps=1, force_patch_dropout=0)
        at_least(options, beta1=0, beta2=0, eps=0, wd=0, grad_clip_norm=0, seed=0)
        at_least(options, lock_image_unlocked_groups=0, lock_text_unlocked_layers=0)
    is_trained = training.is_ours and not training.only_options
    if is_trained:
        refuse(data_problems(options))
        _check_packages(options)
    resumed = training.resumed
    _check_models(training)  # from here on, OpenCLIP's models are imported
    if resumed.file is not None:
        _check_resume(training, resumed)
    if not is_trained:
        return [], 0
    findings = check_data(training)
    is_distilled = training.config is not None and options.distill_model is not None
    if is_distilled and training.has_empty_captions:
        raise InputError(
            f"--train-data: {options.train_data} has rows without a caption, which do not work "
            "with --superclip and --distill-model: remove these rows"
        )
    return findings


def _check_packages(options: Namespace) -> None:
    loggers = options.report_to.replace("all", "wandb,tensorboard")
    require(f"--report-to {options.report_to}", "", *(name for name in LOGGERS if name in loggers))
    if options.use_bnb_linear:
        require(f"--use-bnb-linear {options.use_bnb_linear}", "", "bitsandbytes")


def _check_models(training: Training) -> None:
    """Registers the model; InputError for one, or weights or word frequencies, that --superclip
    cannot train with."""
    options = training.options
    config = training.config
    # The tokens of a file of word frequencies are those of the model's tokenizer.
    has_idf_file = config is not None and is_idf_file(config.idf)
    if training.only_options and not has_idf_file:
        return
    register_small_models()
    if is_file(options.model):
        training.model  # noqa: B018 - reading registers it
    if training.is_ours and not training.only_options:
        from ..checkpoints.starting_weights import check_start, is_unchecked
        from .factory import check_models

        if config is not None:
            check_models(training)
        check_start(options, None if is_unchecked(options) else training.model)
    if has_idf_file:
        _check_idf_file(training)


def check_start_of_run(options: Namespace) -> None:
    """Raises InputError for a model or weights with which a run cannot start; the runs of a study
    are checked once."""
    names = (
        "model",
        "pretrained",
        "siglip",
        "force_custom_text",
        "force_image_size",
        "force_context_length",
        "use_naflex",  # of OpenCLIP 4
    )
    values = {name: getattr(options, name, None) for name in names}
    size = values["force_image_size"]
    values["force_image_size"] = tuple(size) if isinstance(size, list) else size
    _check_start(**values)


@functools.cache
def _check_start(**values) -> None:
    from ..checkpoints.architecture import read_architecture
    from ..checkpoints.starting_weights import check_start, is_unchecked
    from . import factory

    options = Namespace(**values)
    # a file may exist only on nodes
    is_tag = re.fullmatch(r"[\w-]+", options.pretrained or "")
    if is_tag and options.model in factory.open_clip.list_models():
        factory.check_tag(options.model, options.pretrained, "--pretrained")
    check_start(options, None if is_unchecked(options) else read_architecture(options.model))


def _check_idf_file(training: Training) -> None:
    """Raises InputError if the file of --superclip-idf counts other tokens or captions than the
    class loss reads."""
    from ..data.frequencies import read_frequencies

    options = training.options
    config = training.config
    what = f"--superclip-idf: {config.idf}"
    frequencies = read_frequencies(config.idf)
    frequencies.check(training.tokenizer, what)
    if options.train_data:
        context = config.long_context or training.tokenizer.context_length
        command = ["superclip", "frequencies", options.train_data, "--tokenizer-of", options.model]
        frequencies.check_captions(
            config,
            context,
            what,
            shlex.join(command),
            is_table=training.is_table,
            member=getattr(options, "text_key", None) or "txt",  # of OpenCLIP 4
        )


def _check_resume(training: Training, resumed: Resumed) -> None:
    """Raises InputError if the checkpoint of --resume does not fit.

    A checkpoint does not fit with or without a class head, with other slices, or, for a run in
    slices, with other options than at its beginning.
    """
    options = training.options
    data = training.data_config
    file = resumed.file
    if resumed.damaged and not training.is_ours:
        return
    has_tasks = current().HAS_TASKS
    check_kind(
        file,
        options.model,
        with_head=training.config is not None,
        with_ddp=None if has_tasks else training.with_ddp,
        has_tasks=has_tasks if training.is_ours else None,
    )
    folder = Path(file).parent.parent
    is_recorded = data.slices is not None or (folder / NAME).exists()
    if not options.train_data or not is_recorded or data.accept_changes:
        return
    if training.is_table:
        accept = "--accept-changes to superclip run"
    elif data.slices is None:  # without which nothing is compared
        accept = "--superclip-slices and --superclip-accept-changes"
    else:
        accept = "--superclip-accept-changes"
    now = record_of(training.options_with_defaults(), launched()[1], training.model)
    changes(read_record(folder), now, file).check(folder, accept)


def check_data(training: Training) -> tuple[list[str], int]:
    """Returns warnings about the data and the number of steps; InputError if OpenCLIP cannot train
    or evaluate on it."""
    options = training.options
    is_synthetic = options.dataset_type == "synthetic"
    warnings = []
    num_steps = 0
    if options.train_data or is_synthetic:
        warnings, num_steps = _check_training_data(training)
    if not options.val_data or is_synthetic:
        return warnings, num_steps
    if kind(options.val_data, options.dataset_type, "--val-data") == "table":
        table = check_table(
            options.val_data, training.columns, "--val-data", max_decoded=_max_decoded(training)
        )
        warnings += table.refuse_bad()
    else:
        warnings += _inspected(training, "--val-data", options.val_data)
    return warnings, num_steps


def _max_decoded(training: Training) -> int:
    return MAX_DECODED if training.decodes_images else 0


def _inspected(training: Training, flag: str, shards: str, long_caption: str = "") -> list[str]:
    """Returns the warnings of an inspection of shards; one rank decodes more than an image.

    Samples with other images, several captions or JSON, which OpenCLIP 4 reads, are not inspected.
    """
    options = training.options
    image = getattr(options, "image_key", None) or "jpg;png;jpeg;webp"
    caption = getattr(options, "text_key", None) or "txt"
    has_json = getattr(options, "json_text_key", None)
    if image != "jpg;png;jpeg;webp" or has_json or ";" in caption:
        return []
    check = inspect(
        shards,
        flag,
        long_caption,
        caption=caption,
        most=NUM_LOOKED_FOR,
        num_images=NUM_DECODED if training.decodes_images else 1,
    )
    return check.warnings


def _check_training_data(training: Training) -> tuple[list[str], int]:
    """Returns warnings and the number of steps."""
    options = training.options
    config = training.config or Config()
    data_kind = kind(options.train_data or "", options.dataset_type, "--train-data")
    refuse(training_data_problems(training, data_kind))
    if data_kind == "synthetic":
        return [], 0
    if data_kind == "table":
        return check_training_table(training, options.train_data, _max_decoded(training))
    shards = expand(options.train_data, "--train-data")
    batches = _check_split(training, len(shards), total_samples(shards))
    warnings = _inspected(training, "--train-data", options.train_data, config.long_caption_key)
    return warnings, _steps_of_run(training, batches)


def check_training_table(training: Training, table: str, max_decoded: int) -> tuple[list[str], int]:
    """Returns warnings about a table to train on, and the number of steps; InputError if OpenCLIP
    cannot train on it."""
    options = training.options
    world_size = launched()[1]
    report = check_table(
        table,
        training.columns,
        "--train-data",
        config=training.config or Config(),
        batch_size=options.batch_size,
        world_size=world_size,
        accum_freq=training.accum_freq,
        max_decoded=max_decoded,
    )
    if report.num_samples:  # not a URL
        training.has_empty_captions = report.num_empty > 0
    batches = batches_of_table(report.num_trained, options.batch_size, world_size)
    return report.refuse_bad(), _steps_of_run(training, batches)


def _steps_of_run(training: Training, batches: int) -> int:
    """Returns the steps of a run with so many batches of a rank in an epoch; 0 if they are unknown
    or have no schedule."""
    options = training.options
    if training.is_naflex or options.skip_scheduler:
        return 0
    return batches // training.accum_freq * options.epochs


def long_warmup(warmup: int, steps: int, flag: str) -> list[str]:
    """Returns a warning if the warm-up takes all steps of the run; none if their number is
    unknown, 0."""
    if not 0 < steps <= warmup:
        return []
    return [f"warm-up takes {warmup:,} steps, but the run has {steps:,}: shorten it with {flag}"]


def _check_split(training: Training, num_shards: int, total: int | None) -> int:
    """Returns the batches of a rank in an epoch, 0 if unknown; InputError for too few shards, or
    without an epoch's samples.

    `total` is the number of samples in a file beside the shards, if there is one.
    """
    options = training.options
    num_samples = options.train_num_samples
    world_size = launched()[1]
    slices = training.data_config.slices
    if not options.dataset_resampled:
        Split(
            num_shards,
            world_size,
            options.workers,
            slices or 1,
            num_samples,
            options.batch_size,
            flag="--train-data",
            slices_flag="--superclip-slices ",
        ).check()
    global_batch = options.batch_size * world_size
    batches = batches_of_shards(
        num_samples or total or 0, options.batch_size, world_size, options.workers
    )
    if 0 < batches < training.accum_freq:
        raise InputError(
            f"--accum-freq is {training.accum_freq}, and a rank has {batches} batches in an epoch: "
            f"expected {batches} or less, or a larger --train-num-samples"
        )
    if slices is None:
        # --naflex-num-train-image-tokens sets the size of an epoch, too
        tokens = getattr(options, "naflex_num_train_image_tokens", None)
        by_tokens = training.is_naflex and tokens is not None
        if num_samples is None and total is None and not by_tokens:
            raise InputError(
                "--train-num-samples is not given, and no sizes.json beside all of the shards "
                "lists them: expected the samples per epoch"
            )
    else:
        _check_slice(num_samples, total, slices, global_batch)
    return batches


def _check_slice(
    num_samples: int | None, total: int | None, slices: int, global_batch: int
) -> None:
    """Raises InputError unless --train-num-samples is the size of one slice of the `total`."""
    if num_samples is None:
        found = "is not given"
    elif total and more_than_a_slice(num_samples, total, slices, global_batch):
        found = f"is {num_samples:,}"
    else:
        return
    of_total = f", {math.ceil(total / slices):,} of {total:,}" if total else ""
    raise InputError(
        f"--train-num-samples {found}; expected the samples of one of the {slices} slices{of_total}"
    )
