"""What is wrong with the options of a training: combinations that cannot work, each with a
suggestion."""

import math
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec

from ..checkpoints.model_configurations import is_file
from ..data.tar_shards import check_any_exists, expand, is_remote
from ..environment import check_horovod
from ..errors import at_least
from ..extras import require
from ..flags import Config, DataConfig
from . import current
from .parsed_options import Training

SIGLIP_EXCHANGES = ("bidir", "shift", "reduce", "gather")  # of OpenCLIP's SigLipLoss
LOGGERS = ("wandb", "tensorboard", "trackio")  # the last in OpenCLIP 4
SOURCES = ("train_data", "val_data", "imagenet_val", "imagenet_v2", "audio_zeroshot_dataset")


def option_problems(training: Training) -> Iterator[str]:
    """Yields what is wrong with the options of a training by their values alone, each with a
    suggestion.

    OpenCLIP 3 has no options for audio, JSON or NaFlex.
    """
    options = training.options
    has_horovod = getattr(options, "horovod", False)
    if training.is_ours:
        _check_numbers(options)
    if has_horovod and not training.only_options:
        check_horovod()
    if has_horovod and (training.is_ours or training.only_options):
        yield from _problems_with_horovod(options)
    if training.config is not None:
        yield from _problems_with_head(options, training.config)
    if training.is_ours:
        yield from _problems_with_our_flags(options, training.data_config)
        yield from _problems_with_numbers(options)
        yield from _problems_with_loss(options)
        yield from _problems_with_optimizer(options)
    if training.is_ours and not training.only_options:
        yield from data_problems(options)
        _check_packages(options)
        yield from _problems_with_model_files(options)
        yield from _problems_with_training_data(training)


def _check_numbers(options: Namespace) -> None:
    at_least(options, batch_size=1, accum_freq=1, epochs=1, workers=0, warmup=0)
    at_least(options, train_num_samples=1, lr=0, log_every_n_steps=1, force_patch_dropout=0)
    at_least(options, beta1=0, beta2=0, eps=0, wd=0, grad_clip_norm=0, seed=0)
    at_least(options, lock_image_unlocked_groups=0, lock_text_unlocked_layers=0)


def _check_packages(options: Namespace) -> None:
    loggers = options.report_to.replace("all", "wandb,tensorboard")
    require(f"--report-to {options.report_to}", "", *(name for name in LOGGERS if name in loggers))
    if options.use_bnb_linear:
        require(f"--use-bnb-linear {options.use_bnb_linear}", "", "bitsandbytes")


def _problems_with_horovod(options: Namespace) -> Iterator[str]:
    if options.siglip:
        yield "--horovod does not work with --siglip: start the run with torchrun"
    if options.accum_freq > 1:
        yield (
            f"--horovod does not work with --accum-freq {options.accum_freq}, because Horovod's "
            "optimizer takes one backward pass per step: use more ranks, or a larger --batch-size "
            "with --grad-checkpointing"
        )
    if options.precision in ("bf16", "pure_bf16"):
        yield (
            f"--horovod does not support the bfloat16 weights of --precision {options.precision}: "
            "use amp_bf16 or amp"
        )
    if options.grad_clip_norm is not None and options.precision != "amp":
        yield (
            f"--horovod with --grad-clip-norm and --precision {options.precision} clips each "
            "rank's gradient before averaging, so that the ranks' weights drift apart: leave out "
            "--grad-clip-norm, or use --precision amp"
        )
    if options.use_bn_sync:
        yield "--horovod ignores --use-bn-sync: leave it out"


def _problems_with_head(options: Namespace, config: Config) -> Iterator[str]:
    for name in ("torchscript", "trace"):
        if getattr(options, name, False):
            yield (
                f"--{name} cannot save a model with the class head: leave it out; --torchcompile "
                "works"
            )
    if config.head_lr is not None and not options.lr:
        yield "--superclip-head-lr needs --lr above 0, the learning rate of the towers"
    if config.captions != "short" and options.dataset_type == "synthetic":
        yield (
            f"--superclip-captions {config.captions} needs captions, and --dataset-type synthetic "
            "has none"
        )
    if config.captions == "dual" and options.distill_model is not None:
        yield (
            "--superclip-captions dual does not work with --distill-model: the teacher would "
            "receive both captions"
        )
    if config.captions.startswith("mixed") and getattr(options, "json_text_key_probs", None):
        yield (
            f"--json-text-key-probs and --superclip-captions {config.captions} both sample "
            "captions: use only one of them"
        )
    if getattr(options, "fsdp_checkpoint", None) == "sharded":
        yield (
            "--fsdp-checkpoint sharded does not work with --superclip: its commands read single "
            "files; leave it out"
        )


def _problems_with_our_flags(options: Namespace, data: DataConfig) -> Iterator[str]:
    if options.dataset_type.endswith("-audio"):
        yield (
            f"--dataset-type {options.dataset_type} has no images: leave out the flags of SuperCLIP"
        )
    if data.slices is not None and getattr(options, "use_naflex", False):
        yield (
            "--superclip-slices does not work with --use-naflex, which repeats its shards: leave "
            "out one of the two"
        )
    if options.resume == "latest" and options.name is None:
        yield "--resume latest needs --name, the name of the run"
    schedule = options.lr_scheduler
    if schedule == "const-cooldown" and options.epochs_cooldown is None:
        yield "--lr-scheduler const-cooldown needs --epochs-cooldown, a number of epochs or slices"
    if schedule not in ("cosine", "const", "const-cooldown"):
        yield f"--lr-scheduler is {schedule}; expected cosine, const or const-cooldown"
    # OpenCLIP looks for the names anywhere in the text, and ignores the rest
    loggers = options.report_to
    if re.sub("|".join([*LOGGERS, "all", "none", r"\W"]), "", loggers):
        yield f"--report-to is {loggers}; expected wandb, tensorboard or wandb,tensorboard"


def _problems_with_numbers(options: Namespace) -> Iterator[str]:
    """Yields numbers that are too large, and lists of another length than OpenCLIP expects."""
    for flag, bound in {"beta1": 1, "beta2": 1, "force-patch-dropout": 1, "seed": 2**32}.items():
        number = getattr(options, flag.replace("-", "_"))
        if number is not None and number >= bound:
            yield f"--{flag} is {number}; expected < {bound}"
    if options.grad_clip_norm == 0:
        yield "--grad-clip-norm is 0, so nothing would be trained: leave it out"
    for flag, most in {"image-mean": 3, "image-std": 3, "force-image-size": 2}.items():
        numbers = getattr(options, flag.replace("-", "_")) or [0]
        if len(numbers) not in (1, most):
            yield f"--{flag} has {len(numbers)} numbers; expected 1 or {most}"
    factors = options.train_data_upsampling_factors
    if factors is None:
        return
    num_patterns = len((options.train_data or "").split("::"))
    if not options.dataset_resampled:
        yield "--train-data-upsampling-factors needs --dataset-resampled"
    try:
        weights = [float(factor) for factor in factors.split("::")]
    except ValueError:
        weights = []
    is_possible = len(weights) == num_patterns and min(weights) >= 0
    if not (is_possible and 0 < sum(weights) < math.inf):
        yield (
            f"--train-data-upsampling-factors is {factors}; expected a number for each pattern of "
            f"--train-data ({num_patterns}), not all 0, with `::` between them"
        )


def _problems_with_loss(options: Namespace) -> Iterator[str]:
    has_teacher = options.distill_model is not None
    is_coca = "coca" in options.model.lower()
    if has_teacher != (options.distill_pretrained is not None):
        yield (
            "--distill-model and --distill-pretrained: OpenCLIP does not distil without both of "
            "them: give both, or leave both out"
        )
    if is_coca and (options.lock_image or options.lock_text):
        yield "--lock-image, --lock-text: OpenCLIP cannot lock a tower of CoCa: leave them out"
    if has_teacher and options.accum_freq > 1:
        yield (
            "--distill-model: OpenCLIP cannot distil with --accum-freq, here "
            f"{options.accum_freq}: use more GPUs"
        )
    if options.loss_dist_impl not in (None, *SIGLIP_EXCHANGES):
        yield (
            f"--loss-dist-impl is {options.loss_dist_impl}; expected one of "
            f"{', '.join(SIGLIP_EXCHANGES)}"
        )
    if [has_teacher, options.siglip, is_coca].count(True) > 1:
        yield (
            "--distill-model, --siglip and a CoCa --model have losses that OpenCLIP cannot "
            "combine: use one of them"
        )


def _problems_with_optimizer(options: Namespace) -> Iterator[str]:
    name = options.opt.lower()
    known = current().OPTIMIZERS
    if name.startswith("timm/"):
        from timm.optim import list_optimizers

        name = name.removeprefix("timm/").removeprefix("lookahead_")
        known = list_optimizers()
        if (options.beta1 is None) != (options.beta2 is None):
            yield f"--opt {options.opt} needs both of --beta1 and --beta2, or neither"
        if options.lr is None and not options.skip_scheduler:
            yield f"--opt {options.opt} needs --lr: OpenCLIP has a default only for adamw"
    if name not in known:
        yield (
            f"--opt is {options.opt}; expected {' or '.join(current().OPTIMIZERS)}, or timm/NAME "
            "with one of timm.optim.list_optimizers()"
        )


def data_problems(options: Namespace) -> Iterator[str]:
    """Yields why there is no data to train or evaluate on, without opening it."""
    is_synthetic = options.dataset_type.startswith("synthetic")
    if not is_synthetic and not any(vars(options).get(name) for name in SOURCES):
        yield "--train-data is missing: expected a table or a pattern of shards to train on"
    classes = options.imagenet_val
    if classes and not os.path.isdir(classes):
        yield f"--imagenet-val: there is no folder {classes}"
    if options.imagenet_v2 and find_spec("imagenetv2_pytorch") is None:
        yield (
            "--imagenet-v2 needs imagenetv2_pytorch, which is not on PyPI: leave it out, and use "
            "superclip evaluate"
        )
    if classes and not any(entry.is_dir() for entry in os.scandir(classes)):
        yield f"--imagenet-val: {classes} contains no folders; expected one for each class"


def _problems_with_model_files(options: Namespace) -> Iterator[str]:
    """Yields an error if the file or folder of --model or --distill-model is missing."""
    models = {"--model": options.model, "--distill-model": options.distill_model or ""}
    for flag, model in models.items():
        folder = model.removeprefix("local-dir:")
        file = os.path.join(folder, "open_clip_config.json") if folder != model else model
        if (folder != model or is_file(model)) and not os.path.exists(file):
            yield f"{flag}: {file} cannot be read: there is no such file"


def _problems_with_kind(flag: str, path: str, data_kind: str, dataset_type: str) -> Iterator[str]:
    if not path or dataset_type == "synthetic":
        return
    if dataset_type == "webdataset" and path.endswith((".csv", ".tsv")):
        yield (
            f"{flag}: {path} is a table, and --dataset-type is webdataset: give --dataset-type auto"
        )
    if not data_kind:
        yield f"{flag}: {path} does not end in .tar, .csv or .tsv: set its type with --dataset-type"
    if data_kind == "table" and not is_remote(path) and not os.path.exists(path):
        yield f"{flag}: there is no file {path}"
    if data_kind == "shards":
        check_any_exists(expand(path, flag), flag)


def _problems_with_training_data(training: Training) -> Iterator[str]:
    """Yields why training or validation cannot read data of their kind, without opening them."""
    options = training.options
    data = training.data_config
    is_table = training.kind == "table"
    for flag, path, data_kind in (
        ("--train-data", options.train_data, training.kind),
        ("--val-data", options.val_data, training.val_kind),
    ):
        yield from _problems_with_kind(flag, path or "", data_kind, options.dataset_type)
    if not options.train_data and training.kind != "synthetic":
        return
    if data.val_fraction is not None and options.val_data:
        yield (
            "--val-fraction splits validation data off a table, and --val-data is "
            f"{options.val_data}: leave one of them out"
        )
    if data.val_fraction is not None and not is_table:
        yield (
            "--val-fraction splits a table of images and captions, and --train-data is "
            f"{options.train_data}: expected a .csv or .tsv, or --val-data"
        )
    if options.train_num_samples is None and training.kind == "synthetic":
        yield (
            "--train-num-samples is not given; expected the number of images of --dataset-type "
            "synthetic"
        )
    if data.slices is not None and training.kind != "shards":
        yield (
            "--superclip-slices cuts the shards of a WebDataset, and --dataset-type is "
            f"{options.dataset_type}: expected webdataset and a pattern of .tar files, or leave "
            "--superclip-slices out"
        )
    if data.slices is not None and options.dataset_resampled:
        yield (
            "--superclip-slices reads every shard once in each pass, and --dataset-resampled draws "
            "shards with replacement: leave one of them out"
        )
