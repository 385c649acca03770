"""SuperCLIP's implementation of OpenCLIP's hooks."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoints.resume_record import write_record
from .data.shard_order import DataOrder
from .environment import replaced
from .errors import InputError, one_line
from .flags import Config, add_options
from .hooks import hookimpl
from .trainer import current
from .trainer.checks import check_model, check_options
from .trainer.parsed_options import Training, read
from .trainer.start import begin, log_start, register_models

if TYPE_CHECKING:  # it imports torch
    from .data.captions import CaptionTokens


class Plugin:
    """The hooks of a process, which trains by the command line that it has checked last.

    Without one they change nothing: other programs call OpenCLIP's functions, too.
    """

    def __init__(self):
        self.training: Training | None = None
        self.caption_tokens: CaptionTokens | None = None

    @property
    def config(self) -> Config | None:
        """The options of the class loss; None without --superclip."""
        return None if self.training is None else self.training.config

    @hookimpl
    def open_clip_add_options(self, parser):
        add_options(parser)

    @hookimpl
    def open_clip_check_options(self, args):
        try:
            # with a handler that this adds, OpenCLIP would log each line twice
            with replaced(logging.root, handlers=logging.root.handlers[:]):
                self.training = read(args)
                self.caption_tokens = None
                check_options(self.training)
                if not self.training.only_options:
                    register_models(self.training)
                check_model(self.training)
                if not self.training.only_options:
                    begin(self.training)
        except InputError as error:
            raise SystemExit(f"error: {one_line(error)}") from None

    @hookimpl
    def open_clip_model_kwargs(self, args):
        if self.config is None:
            return None
        from .trainer.factory import model_options

        training = self.training
        if args.rank == 0:
            log_start(training)
        return model_options(
            args.model,
            args.pretrained,
            training.config,
            training.tokenizer,
            separate_words=training.separates_words,
            cache_dir=args.cache_dir,
            frequencies=training.frequencies,
            accum_freq=args.accum_freq,
        )

    @hookimpl
    def open_clip_select_model_class(self, model_class, model_cfg):
        from .method.head import without_class_head
        from .method.model import with_class_head

        if "superclip" in model_cfg:
            return with_class_head(model_class)
        if self.training is not None and self.training.leaves_head_out:
            return without_class_head(model_class)
        return None

    @hookimpl
    def open_clip_optimizer_created(self, args, model, optimizer):
        if self.config is None or self.config.head_lr is None:
            return
        from .method.parameter_groups import with_head_groups

        head_lr = self.config.head_lr
        # the list that wrappers such as timm's Lookahead share
        optimizer.param_groups[:] = with_head_groups(
            optimizer.param_groups, model, head_lr / args.lr
        )
        if args.rank == 0:
            logging.info(
                f"SuperCLIP: peak learning rate {args.lr:g}, of the class head {head_lr:g}"
            )

    @hookimpl(wrapper=True)
    def open_clip_create_loss(self, args, model):
        loss = yield
        if self.config is None:
            return loss
        from open_clip import create_loss

        from .method.loss import SuperCLIPLoss
        from .method.model import trains_only_head

        if args.rank == 0 and trains_only_head(model):
            logging.warning(
                "SuperCLIP: the image tower is frozen, so the class loss trains only its head: "
                "the towers will be the same as without --superclip"
            )
        # SigLIP exchanges features with gradients; a local loss keeps the scale of its rows.
        is_whole = args.siglip or args.local_loss or args.gather_with_grad
        gradient_scale = 1.0 if is_whole else 1 / args.world_size
        return SuperCLIPLoss(loss or create_loss(args), self.config.weight, gradient_scale)

    @hookimpl
    def open_clip_epoch_end(self, args, model, epoch):
        if self.caption_tokens is not None:
            self.caption_tokens.counts.report()
        if self.config is None:
            return
        from .method.model import report_words

        if args.rank == 0:
            logging.info(f"SuperCLIP: epoch {epoch}: {report_words(model)}")
        if self.training.in_run is not None:
            return
        from .method.finite_weights import is_finite_on_all_ranks

        if not is_finite_on_all_ranks(model, self.training.options.device):
            raise InputError(
                f"the weights are not finite after epoch {epoch + 1}, which is not saved: resume "
                "from an earlier checkpoint with a lower --lr, a longer --warmup, --grad-clip-norm "
                "1 or --precision amp_bf16"
            )

    @hookimpl
    def open_clip_caption_tokens(self, args, tokenizer, shared_epoch):
        if self.config is None or not args.train_data or args.dataset_type == "synthetic":
            return None
        training = self.training
        if training.config.captions == "short" and not training.separates_words:
            return None
        from .data.captions import CaptionTokens

        table = training.kind == "table"
        self.caption_tokens = CaptionTokens(
            training.config,
            tokenizer,
            caption_key=args.csv_caption_key if table else "txt",
            sample_key=args.csv_img_key if table else "__key__",
            seed=args.seed,
            rank=None if table else args.rank,
            epoch=shared_epoch,
            batch_size=args.batch_size,
            separate_words=training.separates_words,
        )
        return self.caption_tokens

    @hookimpl
    def open_clip_data_order(self, args, shared_epoch):
        training = self.training
        if training is None or training.data_config.slices is None:
            return None
        slices = training.data_config.slices
        # OpenCLIP has named the run, and made its folder
        if args.rank == 0 and args.name is not None and training.in_run is None:
            run_folder = Path(args.logs, args.name)
            for line in write_record(run_folder, training.resume_record, args.resume):
                logging.warning(f"the run has changed since its start: {line}")
        order = DataOrder(
            slices, args.seed, args.rank, args.batch_size, shared_epoch, current().shuffle_sizes()
        )
        return order.shards, order.samples


plugin = Plugin()  # the entry point
