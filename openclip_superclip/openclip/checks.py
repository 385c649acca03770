"""Checks of OpenCLIP's command line, before anything is loaded or written."""

import argparse
import math
import multiprocessing
import os
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from ..checkpoints.model_files import openclip_name, register_model
from ..checkpoints.resume import NAME, beginning, check_beginning, check_kind, resumed_checkpoint
from ..data.inspection import NUM_DECODED, NUM_LOOKED_FOR, inspect, total_samples
from ..data.slices import Split, more_than_a_slice
from ..data.steps import batches_of_shards, batches_of_table
from ..data.tables import MAX_DECODED, check_table, kind
from ..data.tar_shards import expand
from ..environment import check_horovod, require
from ..errors import InputError, Rule, at_least, check
from ..flags import Config, is_idf_file
from . import current
from .options import Training, launched

# Rules on OpenCLIP's options, with our `config` and `slices`. OpenCLIP 3 has no options for audio,
# JSON or NaFlex.
WITH_HEAD = [
    Rule(
        "{found} cannot save a model with the class head: leave it out; --torchcompile works",
        lambda o: next(
            (f"--{name}" for name in ("torchscript", "trace") if getattr(o, name, False)), None
        ),
    ),
    Rule(
        "--lock-image leaves only the class head to train by the class loss: leave out "
        "--superclip, or unlock groups with --lock-image-unlocked-groups",
        lambda o: o.lock_image and o.lock_image_unlocked_groups == 0,
    ),
    Rule(
        "--superclip-placebo shuffled-captions exchanges captions in a batch: --batch-size is "
        "1; expected 2 or more",
        lambda o: o.config.placebo == "shuffled-captions" and o.batch_size == 1,
    ),
    Rule(
        "--superclip-captions {config.captions} needs captions, and --dataset-type synthetic "
        "has none",
        lambda o: o.config.captions != "short" and o.dataset_type == "synthetic",
    ),
    Rule(
        "--superclip-captions dual does not work with --distill-model: the teacher would "
        "receive both captions",
        lambda o: o.config.captions == "dual" and o.distill_model is not None,
    ),
    Rule(
        "--json-text-key-probs and --superclip-captions {config.captions} both sample "
        "captions: use only one of them",
        lambda o: o.config.captions.startswith("mixed") and getattr(o, "json_text_key_probs", None),
    ),
    Rule(
        "--fsdp-checkpoint sharded does not work with --superclip: its commands read single "
        "files; leave it out",
        lambda o: getattr(o, "fsdp_checkpoint", None) == "sharded",
    ),
]
OURS = [
    Rule(
        "--dataset-type {dataset_type} has no images: leave out the flags of SuperCLIP",
        lambda o: o.dataset_type.endswith("-audio"),
    ),
    Rule(
        "--superclip-slices does not work with --use-naflex, which repeats its shards: leave "
        "out one of the two",
        lambda o: o.slices is not None and getattr(o, "use_naflex", False),
    ),
    Rule(
        "--distill-model: OpenCLIP cannot distil with --accum-freq, here {accum_freq}: use "
        "more GPUs",
        lambda o: o.distill_model is not None and o.accum_freq > 1,
    ),
    Rule(
        "--lr-scheduler const-cooldown needs --epochs-cooldown, a number of epochs or slices",
        lambda o: o.lr_scheduler == "const-cooldown" and o.epochs_cooldown is None,
    ),
    Rule(
        "--lr-scheduler is {lr_scheduler}; expected cosine, const or const-cooldown",
        lambda o: o.lr_scheduler not in ("cosine", "const", "const-cooldown"),
    ),
    Rule(
        "--force-patch-dropout is {force_patch_dropout}; expected < 1",
        lambda o: (o.force_patch_dropout or 0) >= 1,
    ),
    Rule(  # OpenCLIP looks for the names anywhere in the text, and ignores the rest
        "--report-to is {report_to}; expected wandb, tensorboard or wandb,tensorboard",
        lambda o: re.sub("|".join([*LOGGERS, "all", "none", r"\W"]), "", o.report_to),
    ),
]
HOROVOD = [
    Rule("--horovod does not work with --siglip: start the run with torchrun", lambda o: o.siglip),
    Rule(
        "--horovod does not work with --accum-freq {accum_freq}, because Horovod's optimizer "
        "takes one backward pass per step: use more ranks, or a larger --batch-size with "
        "--grad-checkpointing",
        lambda o: o.accum_freq > 1,
    ),
    Rule(
        "--horovod does not support the bfloat16 weights of --precision {precision}: use "
        "amp_bf16 or amp",
        lambda o: o.precision in ("bf16", "pure_bf16"),
    ),
    Rule(
        "--horovod with --grad-clip-norm and --precision {precision} clips each rank's "
        "gradient before averaging, so that the ranks' weights drift apart: leave out "
        "--grad-clip-norm, or use --precision amp",
        lambda o: o.grad_clip_norm is not None and o.precision != "amp",
    ),
    Rule("--horovod ignores --use-bn-sync: leave it out", lambda o: o.use_bn_sync),
]
LOGGERS = ("wandb", "tensorboard", "trackio")  # the last in OpenCLIP 4
SOURCES = ("train_data", "val_data", "imagenet_val", "imagenet_v2", "audio_zeroshot_dataset")
DATA = [
    Rule(
        "--train-data is missing: expected a table or a pattern of shards to train on",
        lambda o: (
            not (
                o.dataset_type.startswith("synthetic") or any(vars(o).get(name) for name in SOURCES)
            )
        ),
    ),
    Rule(
        "--imagenet-val: there is no folder {imagenet_val}",
        lambda o: not os.path.isdir(o.imagenet_val or "."),
    ),
    Rule(
        "--imagenet-v2 needs imagenetv2_pytorch, which is not on PyPI: leave it out, and use "
        "superclip evaluate",
        lambda o: o.imagenet_v2 and find_spec("imagenetv2_pytorch") is None,
    ),
]
TRAINING_DATA = [  # with the data's `kind`
    Rule(
        "--val-fraction splits validation data off a table, and --val-data is {val_data}: "
        "leave one of them out",
        lambda o: o.val_fraction is not None and o.val_data,
    ),
    Rule(
        "--val-fraction splits a table of images and captions, and --train-data is "
        "{train_data}: expected a .csv or .tsv, or --val-data; superclip shards splits the "
        "pairs of shards",
        lambda o: o.val_fraction is not None and o.kind != "table",
    ),
    Rule(
        "--train-num-samples is not given; expected the number of images of --dataset-type "
        "synthetic",
        lambda o: o.train_num_samples is None and o.kind == "synthetic",
    ),
    Rule(
        "--superclip-slices cuts the shards of a WebDataset, and --dataset-type is "
        "{dataset_type}: expected webdataset and a pattern of .tar files, or leave "
        "--superclip-slices out",
        lambda o: o.slices is not None and o.kind != "shards",
    ),
    Rule(
        "--superclip-slices reads every shard once in each pass, and --dataset-resampled draws "
        "shards with replacement: leave one of them out",
        lambda o: o.slices is not None and o.dataset_resampled,
    ),
]


def check_command_line(training: Training) -> None:
    """Raises InputError, with a suggestion, for a command that cannot train, and prints warnings on
    one rank.

    Without a flag of ours, only --resume is checked: it is refused if OpenCLIP would fail, or for a
    run in slices.
    """
    options, is_ours = training.options, training.is_ours
    facts = argparse.Namespace(
        **vars(options), config=training.config, slices=training.data_config.slices
    )
    if getattr(options, "horovod", False):
        if not training.only_options:
            check_horovod()
        if is_ours or training.only_options:  # the options of a recipe
            check(HOROVOD, options)
    if training.config is not None:
        check(WITH_HEAD, facts)
    if is_ours:
        # OpenCLIP's get_tokenizer does not accept ViT-B/16
        options.model = openclip_name(options.model)
        check(OURS, facts)
        at_least(
            options, batch_size=1, accum_freq=1, epochs=1, workers=0, warmup=0, train_num_samples=1
        )
        at_least(options, lr=0, log_every_n_steps=1, force_patch_dropout=0)
    _check_models(training)
    _check_resume(training)
    if training.only_options:
        return
    warnings = []
    if is_ours:
        check(DATA, options)
        if options.imagenet_val and not any(
            entry.is_dir() for entry in os.scandir(options.imagenet_val)
        ):
            raise InputError(
                f"--imagenet-val: {options.imagenet_val} contains no folders; expected one for "
                "each class"
            )
        loggers = options.report_to.replace("all", "wandb,tensorboard")
        require(
            f"--report-to {options.report_to}", "", *(name for name in LOGGERS if name in loggers)
        )
        require(
            f"--use-bnb-linear {options.use_bnb_linear}",
            "",
            *["bitsandbytes"] * bool(options.use_bnb_linear),
        )
        warnings = data_warnings(training)
    if (
        training.config is not None
        and options.distill_model is not None
        and training.has_empty_captions
    ):
        raise InputError(
            f"--train-data: {options.train_data} has rows without a caption, which do not work "
            "with --superclip and --distill-model: remove these rows, as superclip shards does"
        )
    if launched()[0] == 0:
        training.resumed.set_damaged_aside()
        for line in warnings:
            print(f"superclip: {line}", file=sys.stderr, flush=True)


def _check_models(training: Training) -> None:
    """Registers the model; InputError for one, or weights or word frequencies, that --superclip
    cannot train with."""
    options = training.options
    has_idf_file = training.config is not None and is_idf_file(training.config.idf)
    # the file's tokens are those of the model's tokenizer
    if not training.only_options or has_idf_file:
        register_model(options.model)
    # a file may exist only on nodes
    if training.only_options and re.fullmatch(r"[\w-]+", options.pretrained or ""):
        from . import factory

        if options.model in factory.open_clip.list_models():
            factory.check_model(options.model, options.pretrained, "--model", "--pretrained")
    if training.config is None:
        return
    if not training.only_options:
        from .factory import check_models

        check_models(options)
    if has_idf_file:
        _check_idf_file(training)


def _check_idf_file(training: Training) -> None:
    """Raises InputError if the file of --superclip-idf counts other tokens or captions than the
    class loss reads."""
    from ..data.frequencies import read_frequencies

    options, config = training.options, training.config
    what = f"--superclip-idf: {config.idf}"
    frequencies = read_frequencies(config.idf)
    frequencies.check(training.tokenizer, what)
    if options.train_data:
        context = config.long_context or training.tokenizer.context_length
        command = ["superclip", "frequencies", options.train_data, "--tokenizer-of", options.model]
        frequencies.check_captions(config, context, training.is_table, what, shlex.join(command))


def _check_resume(training: Training) -> None:
    """Finds the checkpoint of --resume, if it is known before OpenCLIP starts; InputError if it
    does not fit.

    A checkpoint does not fit with or without a class head, with other slices, or, for a run in
    slices, with other options than at its beginning.
    """
    options, data = training.options, training.data_config
    if not options.resume or (
        options.resume == "latest" and (options.name is None or options.remote_sync is not None)
    ):
        return
    from open_clip_train.distributed import is_using_distributed

    run_folder = os.path.join(options.logs, options.name or "")
    resumed = resumed_checkpoint(
        options.resume, run_folder, options.save_most_recent, training.is_ours
    )
    if training.is_ours:
        training.resumed = resumed
    file = resumed.file
    if file is None or (resumed.damaged and not training.is_ours):
        return
    has_tasks = current().HAS_TASKS
    with_ddp = None  # the names in a checkpoint depend on the ranks in OpenCLIP 3
    if not has_tasks:
        with_ddp = False if getattr(options, "horovod", False) else is_using_distributed() or None
    check_kind(
        file,
        training.config is not None,
        with_ddp,
        options.model,
        has_tasks if training.is_ours else None,
    )
    folder = Path(file).parent.parent
    if (
        options.train_data
        and (data.slices is not None or (folder / NAME).exists())
        and not data.accept_changes
    ):
        now = beginning(training.options_with_defaults(), launched()[1])
        # without which nothing is compared
        slices = "" if data.slices is not None else "--superclip-slices and "
        accept = f"{slices}--superclip-accept-changes"
        check_beginning(
            folder, now, "--accept-changes to superclip run" if training.is_table else accept
        )


def data_warnings(training: Training) -> list[str]:
    """Returns warnings about the data; InputError if OpenCLIP cannot train or evaluate on it."""
    options = training.options
    image, caption, json = (
        getattr(options, name, None) for name in ("image_key", "text_key", "json_text_key")
    )
    caption = caption or "txt"
    if image not in (None, "jpg;png;jpeg;webp") or json or ";" in caption:
        # OpenCLIP 4 reads other images, several captions or JSON, which are not checked
        caption = ""
    is_synthetic, warnings = options.dataset_type == "synthetic", []
    if options.train_data or is_synthetic:
        warnings = _check_training_data(training, caption)
    if not options.val_data or is_synthetic:
        return warnings
    if kind(options.val_data, options.dataset_type, "--val-data") == "table":
        columns, most = training.columns, _max_decoded(training)
        table = check_table(options.val_data, columns, Config(), 1, 1, "--val-data", most)
        return warnings + table.refuse_bad()
    if not caption:
        return warnings
    return warnings + _inspected(training, "--val-data", options.val_data, caption)


def _max_decoded(training: Training) -> int:
    return MAX_DECODED if training.decodes_images else 0


def _inspected(
    training: Training,
    flag: str,
    shards: str,
    caption: str,
    long_caption: str = "",
) -> list[str]:
    """Returns the warnings of an inspection of shards; one rank decodes more than an image."""
    inspection = inspect(
        shards,
        flag,
        long_caption,
        caption=caption,
        most=NUM_LOOKED_FOR,
        num_images=NUM_DECODED if training.decodes_images else 1,
    )
    return inspection.warnings


def _check_training_data(training: Training, caption: str) -> list[str]:
    """Returns warnings; `caption` is the extension of the captions in shards, "" if the shards
    cannot be checked."""
    options, config = training.options, training.config or Config()
    facts = argparse.Namespace(
        **vars(options),
        kind=kind(options.train_data or "", options.dataset_type, "--train-data"),
        slices=training.data_config.slices,
        val_fraction=training.data_config.val_fraction,
    )
    check(TRAINING_DATA, facts)
    is_naflex = getattr(options, "use_naflex", False)  # with batches of various sizes
    accum_freq = 1 if is_naflex else options.accum_freq
    # whose steps are known, and warmed up
    epochs = 0 if is_naflex or options.skip_scheduler else options.epochs
    if facts.kind == "table":
        table = check_table(
            options.train_data,
            training.columns,
            config,
            options.batch_size,
            launched()[1],
            max_decoded=_max_decoded(training),
            accum_freq=accum_freq,
        )
        num_rows = table.num_trained(config)
        steps = batches_of_table(num_rows, options.batch_size, launched()[1]) // accum_freq
        training.num_steps = steps * epochs
        return [*table.refuse_bad(), *long_warmup(options.warmup, training.num_steps, "--warmup")]
    if facts.kind == "synthetic":
        return []
    _check_workers(options.workers)
    shards = expand(options.train_data, "--train-data")
    steps = _check_split(training, len(shards), total_samples(shards), accum_freq)
    training.num_steps = steps * epochs
    warnings = long_warmup(options.warmup, training.num_steps, "--warmup")
    if not caption:
        return warnings
    long_caption = config.long_caption_key
    pattern = options.train_data
    return warnings + _inspected(training, "--train-data", pattern, caption, long_caption)


def long_warmup(warmup: int, steps: int, flag: str) -> list[str]:
    """Returns a warning if the warm-up takes all steps of the run; none if their number is
    unknown, 0."""
    if not 0 < steps <= warmup:
        return []
    return [f"warm-up takes {warmup:,} steps, but the run has {steps:,}: shorten it with {flag}"]


def _check_split(training: Training, num_shards: int, total: int | None, accum_freq: int) -> int:
    """Returns the steps of an epoch, 0 if unknown; InputError for too few shards, or without an
    epoch's samples.

    `total` is the number of samples in a file beside the shards, if there is one.
    """
    options, num_samples, (_, world_size) = (
        training.options,
        training.options.train_num_samples,
        launched(),
    )
    given, slices = training.data_config.slices, training.data_config.slices or 1
    if not options.dataset_resampled:
        Split(
            num_shards,
            world_size,
            options.workers,
            slices,
            num_samples,
            options.batch_size,
            flag="--train-data",
            slices_flag="--superclip-slices ",
        ).check()
    batch = options.batch_size * world_size
    batches = batches_of_shards(
        num_samples or total or 0, options.batch_size, world_size, options.workers
    )
    if 0 < batches < accum_freq:
        raise InputError(
            f"--accum-freq is {accum_freq}, and a rank has {batches} batches in an epoch: "
            f"expected {batches} or less, or a larger --train-num-samples"
        )
    if given is None:
        # --naflex-num-train-image-tokens sets the size of an epoch, too
        by_tokens = (
            getattr(options, "use_naflex", False)
            and options.naflex_num_train_image_tokens is not None
        )
        if num_samples is None and total is None and not by_tokens:
            raise InputError(
                "--train-num-samples is not given, and no sizes.json beside all of the shards "
                "lists them: expected the samples per epoch"
            )
    elif num_samples is None or (total and more_than_a_slice(num_samples, total, slices, batch)):
        found = "is not given" if num_samples is None else f"is {num_samples:,}"
        of_total = f", {math.ceil(total / slices):,} of {total:,}" if total else ""
        raise InputError(
            f"--train-num-samples {found}; expected the samples of one of the {slices} "
            f"slices{of_total}"
        )
    return batches // accum_freq


def _check_workers(workers: int) -> None:
    """Makes data-loading workers start by fork, because OpenCLIP's WebDataset cannot be pickled."""
    method = multiprocessing.get_start_method(allow_none=True)
    if workers < 1 or method == "fork":
        return
    if method is None and "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork")
    else:
        raise InputError(
            f"--workers is {workers}, and Python starts processes by {method or 'spawn'}, "
            "which cannot send "
            "OpenCLIP's WebDataset to them: give --workers 0, or call "
            "multiprocessing.set_start_method('fork')"
        )
