"""What is wrong with a training: of its options, its data, its models and the checkpoint that it
resumes from; each check raises InputError with a suggestion."""

import math
import re
from argparse import Namespace
from pathlib import Path

from ..checkpoints.resume import check_kind
from ..data.held_out import SPLIT
from ..data.tar_shards import check_any_exists, expand
from ..environment import check_horovod
from ..errors import InputError, at_least
from ..flags import Config, DataConfig
from . import current
from .parsed_options import Training

SOURCES = ("train_data", "val_data", "imagenet_val", "imagenet_v2", "audio_zeroshot_dataset")


def check_options(training: Training) -> None:
    """Raises InputError if the options and the data cannot be trained with, first for what values
    alone show; OpenCLIP's models are not imported.

    What OpenCLIP reports within seconds is left to it. Without a flag of ours, only the columns of
    a table and --resume are checked: it is refused if OpenCLIP would fail, or for a run in slices.
    OpenCLIP 3 has no options for audio, JSON or NaFlex.
    """
    options = training.options
    is_trained = training.is_ours and not training.only_options
    if training.is_ours:
        at_least(options, batch_size=1, accum_freq=1, epochs=1, warmup=0, train_num_samples=1, wd=0)
        at_least(options, lock_image_unlocked_groups=0, lock_text_unlocked_layers=0)
    if getattr(options, "horovod", False):
        if not training.only_options:
            check_horovod()
        if training.is_ours or training.only_options:
            _check_with_horovod(options)
    if training.config is not None:
        _check_with_head(options, training.config)
    if training.is_ours:
        _check_what_openclip_ignores(options, training.data_config)
    if is_trained:
        check_has_data(options)
        _check_kinds_of_data(training)
    training.resumed  # noqa: B018 - InputError if there is no such file
    training.columns  # noqa: B018 - InputError if a table has no such columns
    if is_trained and training.in_run is None:
        _check_data(training)


def check_model(training: Training) -> None:
    """Raises InputError if the models, the file of --superclip-idf or the checkpoint of --resume do
    not fit."""
    if training.is_ours and not training.only_options:
        from ..checkpoints.starting_weights import check_models

        check_models(training)
    _check_frequencies(training)
    _check_resume(training)


def check_has_data(options: Namespace) -> None:
    """Raises InputError if there is no data to train or evaluate on: OpenCLIP would say so after
    it has downloaded the weights."""
    is_synthetic = options.dataset_type.startswith("synthetic")
    if not is_synthetic and not any(vars(options).get(name) for name in SOURCES):
        raise InputError(
            "--train-data is missing: expected a table or a pattern of shards to train on"
        )


def _check_with_horovod(options: Namespace) -> None:
    if options.siglip:
        raise InputError("--horovod does not work with --siglip: start the run with torchrun")
    if options.accum_freq > 1:
        raise InputError(
            f"--horovod does not work with --accum-freq {options.accum_freq}, because Horovod's "
            "optimizer takes one backward pass per step: use more ranks, or a larger --batch-size "
            "with --grad-checkpointing"
        )
    if options.precision in ("bf16", "pure_bf16"):
        raise InputError(
            f"--horovod does not support the bfloat16 weights of --precision {options.precision}: "
            "use amp_bf16 or amp"
        )
    if options.grad_clip_norm is not None and options.precision != "amp":
        raise InputError(
            f"--horovod with --grad-clip-norm and --precision {options.precision} clips each "
            "rank's gradient before averaging, so that the ranks' weights drift apart: leave out "
            "--grad-clip-norm, or use --precision amp"
        )
    if options.use_bn_sync:
        raise InputError("--horovod ignores --use-bn-sync: leave it out")


def _check_with_head(options: Namespace, config: Config) -> None:
    for name in ("torchscript", "trace"):
        if getattr(options, name, False):
            raise InputError(
                f"--{name} cannot save a model with the class head: leave it out; --torchcompile "
                "works"
            )
    if config.head_lr is not None and not options.lr:
        raise InputError("--superclip-head-lr needs --lr above 0, the learning rate of the towers")
    if config.captions != "short" and options.dataset_type == "synthetic":
        raise InputError(
            f"--superclip-captions {config.captions} needs captions, and --dataset-type synthetic "
            "has none"
        )
    if config.captions == "dual" and options.distill_model is not None:
        raise InputError(
            "--superclip-captions dual does not work with --distill-model: the teacher would "
            "receive both captions"
        )
    if config.captions.startswith("mixed") and getattr(options, "json_text_key_probs", None):
        raise InputError(
            f"--json-text-key-probs and --superclip-captions {config.captions} both sample "
            "captions: use only one of them"
        )
    if getattr(options, "fsdp_checkpoint", None) == "sharded":
        raise InputError(
            "--fsdp-checkpoint sharded does not work with --superclip: its commands read single "
            "files; leave it out"
        )


def _check_what_openclip_ignores(options: Namespace, data: DataConfig) -> None:
    """Raises InputError for options that OpenCLIP would ignore, or whose run would train another
    model than they say."""
    if options.dataset_type.endswith("-audio"):
        raise InputError(
            f"--dataset-type {options.dataset_type} has no images: leave out the flags of SuperCLIP"
        )
    if data.slices is not None and getattr(options, "use_naflex", False):
        raise InputError(
            "--superclip-slices does not work with --use-naflex, which repeats its shards: leave "
            "out one of the two"
        )
    if options.resume == "latest" and options.name is None:
        raise InputError("--resume latest needs --name, the name of the run")
    # OpenCLIP looks for the names anywhere in the text, and ignores the rest
    if re.sub(r"wandb|tensorboard|trackio|all|none|\W", "", options.report_to):
        raise InputError(
            f"--report-to is {options.report_to}; expected wandb, tensorboard or wandb,tensorboard"
        )
    if options.train_data_upsampling_factors and not options.dataset_resampled:
        raise InputError("--train-data-upsampling-factors needs --dataset-resampled")
    if options.grad_clip_norm is not None and not options.grad_clip_norm > 0:
        raise InputError(
            f"--grad-clip-norm is {options.grad_clip_norm}, so nothing would be trained: leave it "
            "out"
        )
    has_teacher = options.distill_model is not None
    if has_teacher != (options.distill_pretrained is not None):
        raise InputError(
            "--distill-model and --distill-pretrained: OpenCLIP does not distil without both of "
            "them: give both, or leave both out"
        )
    if [has_teacher, options.siglip, "coca" in options.model.lower()].count(True) > 1:
        raise InputError(
            "--distill-model, --siglip and a CoCa --model have losses that OpenCLIP cannot "
            "combine: use one of them"
        )
    is_timms = options.opt.lower().startswith("timm/")
    if is_timms and (options.beta1 is None) != (options.beta2 is None):
        raise InputError(f"--opt {options.opt} needs both of --beta1 and --beta2, or neither")


def _check_kinds_of_data(training: Training) -> None:
    """Raises InputError if training or validation cannot read data of their kind, without opening
    them."""
    options = training.options
    for flag, path, kind in (
        ("--train-data", options.train_data, training.kind),
        ("--val-data", options.val_data, training.val_kind),
    ):
        if not path or options.dataset_type == "synthetic":
            continue
        if options.dataset_type == "webdataset" and path.endswith((".csv", ".tsv")):
            raise InputError(
                f"{flag}: {path} is a table, and --dataset-type is webdataset: give --dataset-type "
                "auto"
            )
        if not kind:
            raise InputError(
                f"{flag}: {path} does not end in .tar, .csv or .tsv: set its type with "
                "--dataset-type"
            )
        if kind == "shards":
            check_any_exists(expand(path, flag), flag)
    if options.train_data or training.kind == "synthetic":
        _check_our_data_options(training)


def _check_our_data_options(training: Training) -> None:
    options = training.options
    data = training.data_config
    if data.val_fraction is not None and options.val_data:
        raise InputError(
            "--val-fraction splits validation data off a table, and --val-data is "
            f"{options.val_data}: leave one of them out"
        )
    if data.val_fraction is not None and training.kind != "table":
        raise InputError(
            "--val-fraction splits a table of images and captions, and --train-data is "
            f"{options.train_data}: expected a .csv or .tsv, or --val-data"
        )
    if data.slices is not None and training.kind != "shards":
        raise InputError(
            "--superclip-slices cuts the shards of a WebDataset, and --dataset-type is "
            f"{options.dataset_type}: expected webdataset and a pattern of .tar files, or leave "
            "--superclip-slices out"
        )
    if data.slices is not None and options.dataset_resampled:
        raise InputError(
            "--superclip-slices reads every shard once in each pass, and --dataset-resampled draws "
            "shards with replacement: leave one of them out"
        )


def _check_data(training: Training) -> None:
    """Raises InputError if OpenCLIP cannot train or evaluate on the data."""
    options = training.options
    for data in (training.data, training.val_data):
        data.check_images()
    if training.kind == "table":
        training.trained_data.check_rows(
            options.batch_size, training.world_size, training.accum_freq
        )
    elif training.kind == "shards":
        _check_shards(training)
    is_distilled = training.config is not None and options.distill_model is not None
    if is_distilled and training.has_empty_captions:
        raise InputError(
            f"--train-data: {options.train_data} has rows without a caption, which do not work "
            "with --superclip and --distill-model: remove these rows"
        )
    resumed = training.resumed
    if training.table_split is None or resumed.file is None:
        return
    earlier = Path(str(resumed.options.get("train_data")))
    split = earlier.parent.name
    if split.startswith(SPLIT) and split != training.table_split.folder.name:
        raise InputError(
            f"--resume: the table or --val-fraction has changed since {resumed.file} was trained, "
            f"so it may have seen the new pairs for validation; expected --train-data {earlier} "
            f"--val-data {earlier.with_name('val.csv')} instead of --val-fraction"
        )


def _check_shards(training: Training) -> None:
    """Raises InputError if ranks and workers have too few shards, or an epoch too few samples."""
    options = training.options
    if not options.dataset_resampled:
        training.split.check()
    batches = training.num_batches
    if 0 < batches < training.accum_freq:
        raise InputError(
            f"--accum-freq is {training.accum_freq}, and a rank has {batches} batches in an epoch: "
            f"expected {batches} or less, or a larger --train-num-samples"
        )
    slices = training.data_config.slices
    num_samples = options.train_num_samples
    if slices is None or (num_samples is not None and not training.exceeds_slice):
        return
    given = "is not given" if num_samples is None else f"is {num_samples:,}"
    total = training.data.total_samples
    of_total = f", {math.ceil(total / slices):,} of {total:,}" if total else ""
    raise InputError(
        f"--train-num-samples {given}; expected the samples of one of the {slices} slices{of_total}"
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
