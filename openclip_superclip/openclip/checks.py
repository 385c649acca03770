"""Checks of OpenCLIP's command line, before anything is loaded or written."""

import argparse
import math
import os
import sys
from pathlib import Path

from ..checkpoints.resume import check_kind, resumed_checkpoint
from ..config import Config, is_idf_file
from ..data.shards import expand, is_remote
from ..environment import check_horovod
from ..errors import InputError
from ..rules import Rule, at_least, check
from . import current, with_model_defaults
from .options import CommandLine

WITH_HEAD = [  # rules on OpenCLIP's options and `config`
    Rule(
        "{found} cannot carry the class head: leave it out, --torchcompile works",
        lambda o: next((f"--{name}" for name in ("torchscript", "trace") if getattr(o, name, False)), None),
    ),
    Rule(
        "--lock-image leaves the class loss nothing to train but its own head: leave out --superclip, or unlock groups "
        "with --lock-image-unlocked-groups",
        lambda o: o.lock_image and o.lock_image_unlocked_groups == 0,
    ),
    Rule(
        "--superclip-placebo shuffled-captions gives each image another one's caption, of its rank's batch, and "
        "--batch-size is 1; expected 2 or more",
        lambda o: o.config.placebo == "shuffled-captions" and o.batch_size == 1,
    ),
    Rule(
        "--superclip-captions {config.captions} needs captions, and --dataset-type synthetic has none",
        lambda o: o.config.captions != "short" and o.dataset_type == "synthetic",
    ),
    Rule(
        "--superclip-captions dual cannot go with --distill-model: the teacher would be given both captions",
        lambda o: o.config.captions == "dual" and o.distill_model is not None,
    ),
]
OPTIONS = [  # rules on OpenCLIP's options, if a flag of ours is given
    Rule("--lr is {lr}; expected a finite number, 0 or more", lambda o: o.lr is not None and not 0 <= o.lr < math.inf),
    Rule(
        "--distill-model: OpenCLIP cannot distil with --accum-freq, here {accum_freq}: use more GPUs",
        lambda o: o.distill_model is not None and o.accum_freq > 1,
    ),
    Rule(
        "{found[0]} distils nothing without {found[1]}: give both, or leave {found[0]} out",
        lambda o: (
            (o.distill_model is None) != (o.distill_pretrained is None)
            and ("--distill-model", "--distill-pretrained")[:: 1 if o.distill_model else -1]
        ),
    ),
    Rule(
        "--lr-scheduler is '{lr_scheduler}'; expected cosine, const or const-cooldown",
        lambda o: o.lr_scheduler not in ("cosine", "const", "const-cooldown") and not o.skip_scheduler,
    ),
    Rule(
        "--lr-scheduler const-cooldown needs --epochs-cooldown, a number of epochs or slices",
        lambda o: o.lr_scheduler == "const-cooldown" and o.epochs_cooldown is None,
    ),
    Rule(
        "--train-data-upsampling-factors only works with --dataset-resampled",
        lambda o: o.train_data_upsampling_factors is not None and not o.dataset_resampled,
    ),
    Rule(
        "--train-data-upsampling-factors is {train_data_upsampling_factors}; expected {found} numbers, one for each "
        "part of --train-data, with :: between them",
        lambda o: _wrong_factors(o.train_data, o.train_data_upsampling_factors),
    ),
]
HAS_DATA = Rule(
    "--train-data is missing: expected a table or a pattern of shards to train on",
    lambda o: not any((o.train_data, o.dataset_type == "synthetic", o.val_data, o.imagenet_val, o.imagenet_v2)),
)
FILES = [  # rules on local files, if a flag of ours is given
    HAS_DATA,
    Rule("--imagenet-val: there is no folder {imagenet_val}", lambda o: _is_no_folder(o.imagenet_val)),
    Rule("--imagenet-v2: there is no folder {imagenet_v2}", lambda o: _is_no_folder(o.imagenet_v2)),
    Rule("--val-data: there is no file {found}", lambda o: _missing_validation(o.val_data, o.dataset_type)),
    Rule(
        "--lock-text needs --lock-text-freeze-layer-norm: OpenCLIP cannot train the layer norms of a locked text tower",
        lambda o: o.lock_text and not o.lock_text_freeze_layer_norm and _has_openclips_text_tower(o.model),
    ),
]


def _check_horovod(given: CommandLine) -> None:
    """Raises InputError for options that --horovod does not support, and fixes Horovod if a flag of ours is given."""
    if not getattr(given.args, "horovod", False):
        return
    check_horovod()
    if given.is_ours:
        from .horovod import fix_horovod, refuse_broken

        refuse_broken(vars(given.args))
        fix_horovod()


def _check_models(given: CommandLine) -> None:
    """Raises InputError for a missing or unsupported model or weights."""
    if given.only_options:
        return
    from ..checkpoints.pretrained import check_pretrained, check_teacher, check_weights_file, released_file
    from .factory import check_model, check_vocabulary

    args, with_head = given.args, given.config is not None
    check_model(args.model, args.pretrained)
    if args.pretrained and ":" not in args.model and not os.path.isfile(args.pretrained):
        released_file(f"{args.model}:{args.pretrained}", "--pretrained", args.cache_dir)
    if with_head:
        check_pretrained(args.model, args.pretrained)
        check_weights_file(args.pretrained)
        check_vocabulary(args.model, args.cache_dir, args.force_context_length)
    if args.distill_model is not None:
        check_model(args.distill_model, args.distill_pretrained, ("--distill-model", "--distill-pretrained"))
        if with_head and args.distill_pretrained is not None:
            check_teacher(args.distill_model, args.distill_pretrained)


def _has_openclips_text_tower(model_name: str) -> bool:
    """Returns whether a model's text tower is OpenCLIP's own; False for models on a hub, which are not read."""
    from open_clip import get_model_config
    from open_clip.factory import parse_model_name

    if parse_model_name(model_name)[0] == "hf-hub":
        return False
    return "hf_model_name" not in get_model_config(model_name)["text_cfg"]


def _check_resume(given: CommandLine) -> None:
    """Finds the checkpoint of --resume; InputError if it does not fit, if it is known before OpenCLIP starts.

    A checkpoint does not fit with or without a class head, with other slices, or, for a run in slices, with other
    options than at its beginning.
    """
    args, ours, slices = given.args, given.is_ours, given.data.slices
    if not args.resume or (args.resume == "latest" and (args.name is None or args.remote_sync is not None)):
        return
    from open_clip_train.distributed import is_using_distributed

    from ..checkpoints.resume import beginning, check_beginning
    from ..checkpoints.run_outputs import read_run_record
    from .horovod import launched_size

    resumed = resumed_checkpoint(args.resume, os.path.join(args.logs, args.name or ""), args.save_most_recent)
    if ours:
        given.resumed = resumed
    file = resumed.file
    if file is None or (resumed.damaged and not ours):
        return
    with_ddp = False if getattr(args, "horovod", False) else is_using_distributed() or None
    has_tasks = current().HAS_TASKS  # then the names in a checkpoint do not depend on the ranks
    check_kind(file, given.config is not None, None if has_tasks else with_ddp, args.model, has_tasks if ours else None)
    was_sliced = "superclip_slices" in read_run_record(Path(file), None).options
    if args.train_data and (slices is not None or was_sliced) and not given.data.accept_changes:
        now = beginning(with_model_defaults(vars(args)), launched_size())
        check_beginning(Path(file).parent.parent, now, "--superclip-accept-changes")


def _check_options(given: CommandLine) -> None:
    """Raises InputError for options that cannot be combined with each other or with a flag of ours."""
    args, config = given.args, given.config
    if config is not None:
        check(WITH_HEAD, argparse.Namespace(**vars(args), config=config))
        _check_idf_file(given)
    if given.is_ours:
        current().check_options(args, config.captions if config is not None else None, given.data.slices)
        at_least(args, batch_size=1, accum_freq=1, epochs=1, workers=0, warmup=0)
        check(OPTIONS, args)


def _check_idf_file(given: CommandLine) -> None:
    """Raises InputError for word frequencies of another tokenizer or of other captions than the run's."""
    config = given.config
    if not is_idf_file(config.idf):
        return
    from ..data.captions import check_counted_captions
    from ..data.frequencies import read_frequencies

    frequencies, what = read_frequencies(config.idf), f"--superclip-idf: {config.idf}"
    frequencies.check(given.tokenizer, what)
    context_length = given.tokenizer.context_length
    check_counted_captions(frequencies.captions, config, context_length, what, given.reads_table)


def _check_data(given: CommandLine) -> list[str]:
    """Returns warnings about the data; InputError if it cannot be used."""
    if given.only_options:
        return []
    if not given.is_ours:
        return _check_stock_tables(given)
    check(FILES, given.args)
    return [*_check_training_data(given), *_check_validation_data(given)]


def _wrong_factors(train_data: str | None, factors: str | None) -> int | None:
    """Returns the expected number of upsampling factors if theirs differs or one is not a number."""
    expected = len((train_data or "").split("::"))
    try:
        return expected if factors and len([*map(float, factors.split("::"))]) != expected else None
    except ValueError:
        return expected


def _is_no_folder(path: str | None) -> bool:
    return bool(path) and not os.path.isdir(path)


def _missing_validation(val_data: str | None, dataset_type: str) -> str | None:
    """Returns the first part of --val-data without any existing file."""
    if not val_data or dataset_type == "synthetic":
        return None
    local = [part for part in val_data.split("::") if not is_remote(part)]
    return next((part for part in local if not any(map(os.path.exists, expand(part, "--val-data")))), None)


def _check_training_data(given: CommandLine) -> list[str]:
    """Returns warnings about the training data; InputError if the ranks could not train on it."""
    args, config, slices = given.args, given.config, given.data.slices
    synthetic = args.dataset_type == "synthetic"
    if not args.train_data and not synthetic:
        return []
    from ..data.inspection import check_training_shards, total_samples
    from ..data.slices import SlicedTraining
    from ..data.tables import MAX_DECODED, check_table, kind
    from .horovod import launched_rank, launched_size
    from .unpatched import fork_workers

    if args.train_num_samples is not None and args.train_num_samples < 1:
        raise InputError(f"--train-num-samples is {args.train_num_samples}; expected 1 or more")
    data_kind = kind(args.train_data or "", args.dataset_type, "--train-data")
    shards = expand(args.train_data, "--train-data") if data_kind == "shards" else []
    sliced = SlicedTraining(
        len(shards), launched_size(), args.workers, slices or 1, args.train_num_samples, args.batch_size,
        flag="--train-data", slices_flag="--superclip-slices ", dataset_type=args.dataset_type, kind=data_kind,
        resampled=args.dataset_resampled, is_sliced=slices is not None, total=total_samples(shards) if shards else None,
    )  # fmt: skip
    if slices is not None:
        sliced.check()
    if synthetic:
        if args.train_num_samples is None:
            raise InputError("--train-num-samples is not given; expected the images of --dataset-type synthetic")
        return []
    if data_kind == "table":
        max_decoded = MAX_DECODED if launched_rank() == 0 else 0
        return check_table(
            args.train_data, given.columns, config or Config(), args.batch_size, launched_size(),
            max_decoded=max_decoded,
        )  # fmt: skip
    fork_workers(args.workers)
    long_caption = config.long_caption_key if config is not None else ""
    caption = _caption_member(given)
    return check_training_shards(args.train_data, sliced, long_caption, caption) if caption else []


def _check_validation_data(given: CommandLine) -> list[str]:
    """Returns warnings about the validation data; InputError if OpenCLIP could not evaluate on it."""
    from ..data.inspection import NUM_LOOKED_FOR, inspect
    from ..data.tables import check_table, kind

    args = given.args
    if not args.val_data or args.dataset_type == "synthetic":
        return []
    if kind(args.val_data, args.dataset_type, "--val-data") == "table":
        return check_table(args.val_data, given.columns, Config(), 1, 1, "--val-data")
    caption = _caption_member(given)
    if not caption:
        return []
    return inspect(args.val_data, "--val-data", caption=caption, most=NUM_LOOKED_FOR).warnings


def _caption_member(given: CommandLine) -> str:
    """Returns the extension of the captions; "" if OpenCLIP 4 reads other image keys, several captions or a JSON."""
    image, text, json = (getattr(given.args, name, None) for name in ("image_key", "text_key", "json_text_key"))
    if image not in (None, "jpg;png;jpeg;webp") or json or ";" in (text or ""):
        return ""
    return text or "txt"


def _check_stock_tables(given: CommandLine) -> list[str]:
    """Returns warnings about the tables of a run without a flag of ours.

    Raises InputError for a missing column or image, where OpenCLIP would end with a traceback.
    """
    from ..data.tables import MAX_DECODED, is_table, read_table
    from .horovod import launched_rank, launched_size

    args, warnings = given.args, []
    for flag, path in (("--train-data", args.train_data), ("--val-data", args.val_data)):
        if not is_table(path, args.dataset_type) or is_remote(path):
            continue
        table = read_table(path, given.columns, Config(), flag, MAX_DECODED if launched_rank() == 0 else 0)
        table.check_images(flag)
        warnings += table.warnings(flag)
        if flag == "--train-data" and table.num_rows < launched_size() * args.batch_size:
            warnings.append(f"{flag}: the {table.num_rows:,} rows of {path} fill no batch: not one step is trained")
    return warnings


def _check_ignored_weights(given: CommandLine) -> list[str]:
    """Returns a warning if stock OpenCLIP would not load the weights of --pretrained."""
    args = given.args
    if given.config is not None or given.only_options:
        return []
    from ..checkpoints.model_files import instead_of_passing_over

    instead = instead_of_passing_over(args.model) if args.pretrained else None
    if instead is None:
        return []
    return [f"--pretrained: OpenCLIP passes over {args.pretrained} beside --model {args.model}: give --model {instead}"]


CHECKS = (  # in this order; each raises InputError or returns warnings
    _check_horovod, _check_models, _check_resume, _check_options, _check_data, _check_ignored_weights,
)  # fmt: skip


def check_command_line(given: CommandLine) -> None:
    """Raises InputError, with a suggestion, for a command that cannot train, and prints warnings on one rank.

    Without a flag of ours, it only fails if OpenCLIP would fail as well.
    """
    warnings = [line for one in CHECKS for line in one(given) or []]
    if not given.only_options and os.environ.get("HOROVOD_RANK", os.environ.get("RANK", "0")) == "0":
        given.resumed.set_damaged_aside()
        for line in warnings:
            print(f"superclip: {line}", file=sys.stderr, flush=True)
