"""SuperCLIP's answers to OpenCLIP's hooks; the one place where OpenCLIP's parsed command line is read."""

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

    return {
        "superclip": head_options(
            args.model,
            idf=config.idf,
            special_tokens=config.special_tokens,
            accum_freq=args.accum_freq,
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
