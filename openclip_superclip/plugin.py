"""SuperCLIP's answers to OpenCLIP's hooks; with command_line_check.py, all that reads OpenCLIP's parsed options."""

import functools
import logging
import os
from pathlib import Path

from .config import add_options, config_from, data_config_from, options_of
from .errors import InputError, print_in_one_line
from .hooks import hookimpl
from .openclip.checks import check_command_line, head_to_leave_out

_weights = {"hold a head": False}  # those that a model without one is to load


@hookimpl
def open_clip_add_options(parser):
    add_options(parser)


@hookimpl
def open_clip_check_options(args):
    handlers = logging.root.handlers[:]  # OpenCLIP logs as it is asked, and would then print each line twice
    only_options = getattr(args, "only_options", False)  # on a machine without the model and the data
    try:
        config, data = config_from(vars(args)), data_config_from(vars(args))
        check_command_line(args, config, data, only_options)
        if not only_options:
            _weights["hold a head"] = head_to_leave_out(args, config is not None)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    finally:
        logging.root.handlers[:] = handlers
    if only_options:
        return
    slices = data.slices
    if slices is not None and args.train_data:
        from .method.ranks import fix_buckets

        fix_buckets()
    if config is not None or slices is not None:
        from .openclip.train import note_begin, take_back

        if args.name is not None:  # else OpenCLIP names it after the time
            note_begin(os.path.join(args.logs, args.name))
        print_in_one_line(take_back)
    if config is not None:
        vars(args).update(options_of(config))  # for OpenCLIP's params.txt: the run's record holds every value


@hookimpl
def open_clip_model_kwargs(args):
    config = config_from(vars(args))
    if config is None:
        return None
    from .checkpoints.pretrained import how_to_load
    from .openclip.factory import head_options

    loading, load = how_to_load(args.model, args.pretrained)
    return loading | {
        "superclip": head_options(
            args.model,
            args.pretrained,
            idf=config.idf,
            special_tokens=config.special_tokens,
            accum_freq=args.accum_freq,
            head_warmup=config.head_warmup,
            placebo=config.placebo,
            head_input=config.head_input,
            word_course=_records_words(args, config),
            dual=config.captions == "dual",
            context_length=args.force_context_length,
            cache_dir=args.cache_dir,
            load=load,
        )
    }


@hookimpl
def open_clip_select_model_class(model_class, model_cfg):
    from .method.head import without_class_head
    from .method.model import with_class_head

    if "superclip" in model_cfg:
        return with_class_head(model_class)
    return without_class_head(model_class) if _weights["hold a head"] else None


@hookimpl(wrapper=True)
def open_clip_create_loss(args):
    loss = yield
    config = config_from(vars(args))
    if config is None:
        return loss
    from open_clip import create_loss

    from .method.loss import SuperCLIPLoss

    if args.dataset_type == "synthetic" and config.idf == "online" and args.rank == 0:
        logging.warning(
            "SuperCLIP: --dataset-type synthetic has one caption for all pictures, so that its words have no weight "
            "and the class loss is 0 throughout; --superclip-idf off weighs them equally"
        )
    # SigLIP exchanges features with gradients; a local loss keeps the scale of its own rows.
    shrinks = not (args.siglip or args.local_loss or args.gather_with_grad)
    return SuperCLIPLoss(loss or create_loss(args), config.weight, 1 / args.world_size if shrinks else 1.0)


@hookimpl(optionalhook=True)  # an earlier version's patch does not have it
def open_clip_epoch_end(args, model, epoch):
    config = config_from(vars(args))
    if config is None or not _records_words(args, config):
        return
    from .method.model import take_epoch_words

    words = take_epoch_words(model)
    if words is None or args.rank != 0:
        return
    from .words.learning import write_epoch_words

    tokenizer = _tokenizer(args.model, args.cache_dir, args.force_context_length)
    try:
        write_epoch_words(Path(args.logs, args.name), epoch + 1, words, tokenizer)
    except OSError as error:
        logging.warning(f"SuperCLIP: the words of epoch {epoch + 1} are not recorded ({error})")


@functools.cache
def _tokenizer(model, cache_dir, context_length):
    from open_clip import get_tokenizer

    return get_tokenizer(model, cache_dir=cache_dir, context_length=context_length)


def _records_words(args, config) -> bool:
    return config.word_course == "on" and bool(args.logs) and args.logs.lower() != "none"


@hookimpl
def open_clip_caption_tokens(args, tokenizer, shared_epoch):
    config = config_from(vars(args))
    if config is None or not args.train_data or args.dataset_type == "synthetic":
        return None
    from .data.captions import CaptionTokens
    from .data.tables import Columns, has_empty_captions, is_table

    table = is_table(args.train_data, args.dataset_type)
    columns = Columns(args.csv_separator, args.csv_img_key, args.csv_caption_key)
    if config.captions == "short" and not (table and has_empty_captions(args.train_data, columns)):
        return None
    return CaptionTokens(
        config,
        tokenizer,
        caption_key=args.csv_caption_key if table else "txt",
        sample_key=args.csv_img_key if table else "__key__",
        seed=args.seed,
        rank=None if table else args.rank,
        epoch=shared_epoch,
        batch_size=args.batch_size,
        found_long=table,
    )


@hookimpl
def open_clip_data_order(args, shared_epoch):
    slices = data_config_from(vars(args)).slices
    if slices is None:
        return None
    from .checkpoints.resume import beginning, write_beginning
    from .data.slices import DataOrder
    from .openclip import current, with_model_defaults

    if args.rank == 0 and args.name is not None:  # OpenCLIP has named the run, and made its folder
        now, resumes = beginning(with_model_defaults(vars(args)), args.world_size), args.resume is not None
        for line in write_beginning(Path(args.logs, args.name), now, resumes):
            logging.warning(f"the run began with other things: {line}")
    order = DataOrder(slices, args.seed, args.rank, args.batch_size, shared_epoch, current().shuffle_sizes())
    return order.shards, order.samples
