"""SuperCLIP's implementation of OpenCLIP's hooks."""

import logging
from argparse import Namespace
from pathlib import Path

from .checkpoints.resume import beginning, write_beginning
from .data.slices import DataOrder
from .errors import InputError, one_line, print_in_one_line
from .flags import add_options, options_of
from .hooks import hookimpl
from .openclip import current
from .openclip.checks import check_command_line
from .openclip.first_lines import keep_dumps_off_the_terminal, log_first_lines
from .openclip.options import Training
from .openclip.train import note_begin, remove_unstarted_run


class Plugin:
    """The hooks, with the checked command line, and whether models without a class head load
    weights with one."""

    def __init__(self):
        self.training: Training | None = None
        self.leaves_head_out = False

    def _read(self, args: Namespace) -> Training:
        if self.training is None or self.training.options is not args:
            self.training = Training(args)
        return self.training

    @hookimpl
    def open_clip_add_options(self, parser):
        add_options(parser)

    @hookimpl
    def open_clip_check_options(self, args):
        handlers = logging.root.handlers[:]  # otherwise OpenCLIP would log each line twice
        try:
            self.training = training = Training(args)
            if (
                training.config is not None
                and hasattr(args, "opt_fallback_list")
                and "muon" in args.opt.lower()
            ):
                # Muon's fallback trains the head's weight: its rows are words and must not be
                # orthogonalised.
                given = args.opt_fallback_list or (args.opt_kwargs or {}).get("fallback_list") or []
                args.opt_fallback_list = [*given, "class_head.*"]
            training.find_columns()
            check_command_line(training)
            if training.only_options:
                return
            training.hold_out()
            self.leaves_head_out = training.leaves_head_out()
            if training.is_ours:
                note_begin(args)
                print_in_one_line(remove_unstarted_run)
        except InputError as error:
            raise SystemExit(f"error: {one_line(error)}") from None
        finally:
            logging.root.handlers[:] = handlers
        from .method.ranks import fix_buckets

        fix_buckets(training.data_config.slices is not None and bool(args.train_data))
        if getattr(args, "horovod", False) and training.is_ours:
            from .openclip.horovod import fix_horovod

            fix_horovod()
        if training.config is None:
            return
        vars(args).update(options_of(training.config))  # OpenCLIP records all values in params.txt

    @hookimpl
    def open_clip_model_kwargs(self, args):
        training = self._read(args)
        if training.config is None:
            return None
        from .checkpoints.pretrained import how_to_load, start_of_towers
        from .openclip.factory import head_options

        if args.rank == 0:
            start = args.resume or start_of_towers(
                args.model, args.pretrained, args.pretrained_image, args.cache_dir
            )
            keep_dumps_off_the_terminal()
            log_first_lines(training, start)
        loading, load = how_to_load(args.model, args.pretrained)
        return loading | {
            "superclip": head_options(
                args.model,
                args.pretrained,
                training.config,
                separate_words=training.separates_words,
                context_length=args.force_context_length,
                cache_dir=args.cache_dir,
                load=load,
                accum_freq=args.accum_freq,
                word_course=training.records_words,
            )
        }

    @hookimpl
    def open_clip_select_model_class(self, model_class, model_cfg):
        from .method.head import without_class_head
        from .method.model import with_class_head

        if "superclip" in model_cfg:
            return with_class_head(model_class)
        return without_class_head(model_class) if self.leaves_head_out else None

    @hookimpl(wrapper=True)
    def open_clip_create_loss(self, args):
        loss = yield
        config = self._read(args).config
        if config is None:
            return loss
        from open_clip import create_loss

        from .method.loss import SuperCLIPLoss

        # SigLIP exchanges features with gradients; a local loss keeps the scale of its rows.
        shrinks = not (args.siglip or args.local_loss or args.gather_with_grad)
        return SuperCLIPLoss(
            loss or create_loss(args), config.weight, 1 / args.world_size if shrinks else 1.0
        )

    @hookimpl
    def open_clip_epoch_end(self, args, model, epoch):
        training = self._read(args)
        if training.config is None:
            return
        from .method.finite_weights import is_finite_on_all_ranks

        if not is_finite_on_all_ranks(model):
            raise InputError(
                f"the weights are not finite after epoch {epoch + 1}, which is not saved: "
                "resume from an earlier "
                "checkpoint with a lower --lr, a longer --warmup, --grad-clip-norm 1 or "
                "--precision amp_bf16"
            )
        if not training.records_words:
            return
        from .method.model import take_epoch_words

        words = take_epoch_words(model)
        if words is None or args.rank != 0:
            return
        from .checkpoints.epoch_words import write_epoch_words

        try:
            write_epoch_words(Path(args.logs, args.name), epoch + 1, words, training.tokenizer)
        except OSError as error:
            logging.warning(f"SuperCLIP: the words of epoch {epoch + 1} are not recorded ({error})")

    @hookimpl
    def open_clip_caption_tokens(self, args, tokenizer, shared_epoch):
        training = self._read(args)
        if training.config is None or not args.train_data or args.dataset_type == "synthetic":
            return None
        if training.config.captions == "short" and not training.separates_words:
            return None
        from .data.captions import CaptionTokens

        table = training.is_table
        return CaptionTokens(
            training.config,
            tokenizer,
            caption_key=args.csv_caption_key if table else "txt",
            sample_key=args.csv_img_key if table else "__key__",
            seed=args.seed,
            rank=None if table else args.rank,
            epoch=shared_epoch,
            batch_size=args.batch_size,
            found_long=table,
            separate_words=training.separates_words,
        )

    @hookimpl
    def open_clip_data_order(self, args, shared_epoch):
        training = self._read(args)
        slices = training.data_config.slices
        if slices is None:
            return None
        # OpenCLIP has named the run, and made its folder
        if args.rank == 0 and args.name is not None:
            now = beginning(training.options_with_defaults(), args.world_size)
            for line in write_beginning(Path(args.logs, args.name), now, args.resume is not None):
                logging.warning(f"the run has changed since its start: {line}")
        order = DataOrder(
            slices, args.seed, args.rank, args.batch_size, shared_epoch, current().shuffle_sizes()
        )
        return order.shards, order.samples


# The entry point names this module: its functions are the plugin's methods.
plugin = Plugin()
globals().update(
    {name: getattr(plugin, name) for name in dir(plugin) if name.startswith("open_clip_")}
)
