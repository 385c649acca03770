"""SuperCLIP's answers to OpenCLIP's hooks; the one place where OpenCLIP's parsed command line is read."""

import logging
import os

from .captions import check_captions
from .config import add_options, config_from, options_of
from .errors import InputError
from .hooks import hookimpl


@hookimpl
def open_clip_add_options(parser):
    add_options(parser)


@hookimpl
def open_clip_check_options(args):
    try:
        config = config_from(vars(args))
        _check_resume(args, config is not None)
        if config is None:
            return
        _refuse_impossible(args)
        if args.train_data and args.dataset_type != "synthetic":
            check_captions(args.train_data, args.dataset_type, args.csv_separator, args.csv_caption_key)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    vars(args).update(options_of(config))  # for OpenCLIP's params.txt: the run's record holds every value


@hookimpl
def open_clip_model_kwargs(args):
    config = config_from(vars(args))
    if config is None:
        return None
    from .factory import head_options

    return _how_to_load(args.pretrained) | {
        "superclip": head_options(
            args.model,
            idf=config.idf,
            special_tokens=config.special_tokens,
            accum_freq=args.accum_freq,
            head_warmup=config.head_warmup,
            cache_dir=args.cache_dir,
        )
    }


@hookimpl
def open_clip_select_model_class(model_class, model_cfg):
    if "superclip" not in model_cfg:
        return None
    from .model import with_class_head

    return with_class_head(model_class)


@hookimpl
def open_clip_create_loss(args):
    config = config_from(vars(args))
    if config is None:
        return None
    from open_clip import create_loss

    from .loss import SuperCLIPLoss

    # SigLIP exchanges features with gradients; a local loss keeps the scale of its own rows.
    shrinks = not (args.siglip or args.local_loss or args.gather_with_grad)
    return SuperCLIPLoss(create_loss(args), config.weight, 1 / args.world_size if shrinks else 1.0)


def _check_resume(args, with_head: bool) -> None:
    """Raises InputError for a --resume from a run of the other kind: a plain one, or one with --superclip."""
    file = _resumed_file(args)
    if file is None:
        return
    from .checkpoint import read_checkpoint

    try:
        has_head = bool(read_checkpoint(file).head())
    except InputError as error:
        if with_head:
            raise InputError(f"--resume: {error}") from error
        return  # stock OpenCLIP's to report
    if with_head and not has_head:
        raise InputError(
            f"--resume: {file} is of a run without --superclip; to start from its weights with a fresh class head, "
            f"give --pretrained {file} instead"
        )
    if has_head and not with_head:
        raise InputError(
            f"--resume: {file} is of a run with --superclip: add --superclip, or export it to plain OpenCLIP with "
            f"superclip export {file}"
        )


def _resumed_file(args) -> str | None:
    """Returns the local checkpoint that OpenCLIP will resume from, where that can be told before it starts."""
    file = args.resume
    if file == "latest":
        if args.name is None or args.remote_sync is not None:
            return None
        from open_clip_train.main import LATEST_CHECKPOINT_NAME, get_latest_checkpoint

        folder = os.path.join(args.logs, args.name, "checkpoints")
        latest = os.path.join(folder, LATEST_CHECKPOINT_NAME)
        file = latest if args.save_most_recent else get_latest_checkpoint(folder, remote=False)
    return file if file and os.path.isfile(file) else None


def _how_to_load(pretrained: str) -> dict:
    """Returns what OpenCLIP's factory must be told about the file of --pretrained."""
    if not os.path.isfile(pretrained):
        return {}
    from .checkpoint import is_torchscript
    from .model import FRESH_HEAD

    if pretrained.endswith(".npz"):
        logging.info(FRESH_HEAD)  # OpenCLIP copies these weights in one by one: the model does not see them come
    # torch refuses these archives as weights, and loads them as code of its own, without Python's pickles.
    return {"weights_only": False} if is_torchscript(pretrained) else {}


def _refuse_impossible(args):
    """Raises InputError, with what to do instead, for an OpenCLIP option that cannot go with --superclip."""
    if args.torchscript:
        raise InputError("--torchscript cannot carry the class head: leave it out, --torchcompile works")
    if args.trace:
        raise InputError("--trace cannot carry the class head: leave it out, --torchcompile works")
    if args.lock_image and args.lock_image_unlocked_groups == 0:
        raise InputError(
            "--lock-image leaves the class loss nothing to train but its own head: "
            "leave out --superclip, or unlock groups with --lock-image-unlocked-groups"
        )
    if args.horovod:
        raise InputError("--horovod cannot sum the words' counts over ranks: start the run with torchrun instead")
    if args.use_bnb_linear is not None:
        raise InputError("--use-bnb-linear cannot train the class head in int8: leave it out")
