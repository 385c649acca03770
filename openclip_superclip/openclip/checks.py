"""Checks of OpenCLIP's command line, before anything is loaded or written."""

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from ..checkpoints.model_files import openclip_name, register_model
from ..checkpoints.resume import NAME, beginning, check_beginning, check_kind, resumed_checkpoint
from ..environment import check_horovod
from ..errors import InputError, Rule, at_least, check
from ..flags import is_idf_file
from . import current
from .options import Training

# Rules on OpenCLIP's options, with our `config` and `slices`. OpenCLIP 3 has no options for audio, JSON or NaFlex.
WITH_HEAD = [
    Rule(
        "{found} cannot save a model with the class head: leave it out; --torchcompile works",
        lambda o: next((f"--{name}" for name in ("torchscript", "trace") if getattr(o, name, False)), None),
    ),
    Rule(
        "--lock-image leaves only the class head to train by the class loss: leave out --superclip, or unlock groups "
        "with --lock-image-unlocked-groups",
        lambda o: o.lock_image and o.lock_image_unlocked_groups == 0,
    ),
    Rule(
        "--superclip-placebo shuffled-captions exchanges captions in a batch: --batch-size is 1; expected 2 or more",
        lambda o: o.config.placebo == "shuffled-captions" and o.batch_size == 1,
    ),
    Rule(
        "--superclip-captions {config.captions} needs captions, and --dataset-type synthetic has none",
        lambda o: o.config.captions != "short" and o.dataset_type == "synthetic",
    ),
    Rule(
        "--superclip-captions dual does not work with --distill-model: the teacher would receive both captions",
        lambda o: o.config.captions == "dual" and o.distill_model is not None,
    ),
    Rule(
        "--json-text-key-probs and --superclip-captions {config.captions} both sample captions: use only one of them",
        lambda o: o.config.captions.startswith("mixed") and getattr(o, "json_text_key_probs", None),
    ),
    Rule(
        "--fsdp-checkpoint sharded does not work with --superclip: its commands read single files; leave it out",
        lambda o: getattr(o, "fsdp_checkpoint", None) == "sharded",
    ),
]
OURS = [
    Rule(
        "--dataset-type {dataset_type} has no images: leave out the flags of SuperCLIP",
        lambda o: o.dataset_type.endswith("-audio"),
    ),
    Rule(
        "--superclip-slices does not work with --use-naflex, which repeats its shards: leave out one of the two",
        lambda o: o.slices is not None and getattr(o, "use_naflex", False),
    ),
    Rule(
        "--distill-model: OpenCLIP cannot distil with --accum-freq, here {accum_freq}: use more GPUs",
        lambda o: o.distill_model is not None and o.accum_freq > 1,
    ),
    Rule(
        "--lr-scheduler const-cooldown needs --epochs-cooldown, a number of epochs or slices",
        lambda o: o.lr_scheduler == "const-cooldown" and o.epochs_cooldown is None,
    ),
]
HOROVOD = [
    Rule("--horovod does not work with --siglip: start the run with torchrun", lambda o: o.siglip),
    Rule(
        "--horovod does not work with --accum-freq {accum_freq}, because Horovod's optimizer takes one backward pass "
        "per step: use more ranks, or a larger --batch-size with --grad-checkpointing",
        lambda o: o.accum_freq > 1,
    ),
    Rule(
        "--horovod does not support the bfloat16 weights of --precision {precision}: use amp_bf16 or amp",
        lambda o: o.precision in ("bf16", "pure_bf16"),
    ),
    Rule(
        "--horovod with --grad-clip-norm and --precision {precision} clips each rank's gradient before averaging, so "
        "that the ranks' weights drift apart: leave out --grad-clip-norm, or use --precision amp",
        lambda o: o.grad_clip_norm is not None and o.precision != "amp",
    ),
    Rule("--horovod ignores --use-bn-sync: leave it out", lambda o: o.use_bn_sync),
]
SOURCES = ("train_data", "val_data", "imagenet_val", "imagenet_v2", "audio_zeroshot_dataset")
DATA = [
    Rule(
        "--train-data is missing: expected a table or a pattern of shards to train on",
        lambda o: not (o.dataset_type.startswith("synthetic") or any(vars(o).get(name) for name in SOURCES)),
    ),
    Rule("--imagenet-val: there is no folder {imagenet_val}", lambda o: not os.path.isdir(o.imagenet_val or ".")),
    Rule(
        "--imagenet-v2 needs imagenetv2_pytorch, which is not on PyPI: leave it out, and use superclip evaluate",
        lambda o: o.imagenet_v2 and find_spec("imagenetv2_pytorch") is None,
    ),
]


def check_command_line(training: Training) -> None:
    """Raises InputError, with a suggestion, for a command that cannot train, and prints warnings on one rank.

    Without a flag of ours, only --resume is checked: it is refused if OpenCLIP would fail, or for a run in slices.
    """
    options, is_ours = training.options, training.is_ours
    facts = argparse.Namespace(**vars(options), config=training.config, slices=training.data_config.slices)
    if getattr(options, "horovod", False):
        if not training.only_options:
            check_horovod()
        if is_ours or training.only_options:  # the options of a recipe
            check(HOROVOD, options)
    if training.config is not None:
        check(WITH_HEAD, facts)
    if is_ours:
        options.model = openclip_name(options.model)  # OpenCLIP's get_tokenizer does not accept ViT-B/16
        check(OURS, facts)
        at_least(options, batch_size=1, accum_freq=1, epochs=1, workers=0, warmup=0, train_num_samples=1)
    _check_models(training)
    _check_resume(training)
    if training.only_options:
        return
    warnings = []
    if is_ours:
        check(DATA, options)
        warnings = training.data.check()
    if training.config is not None and options.distill_model is not None and training.data.has_empty_captions:
        raise InputError(
            f"--train-data: {options.train_data} has rows without a caption, which do not work with --superclip and "
            "--distill-model: remove these rows, as superclip shards does"
        )
    if training.data.rank == 0:
        training.resumed.set_damaged_aside()
        for line in warnings:
            print(f"superclip: {line}", file=sys.stderr, flush=True)


def _check_models(training: Training) -> None:
    """Registers the model; InputError for one, or weights or word frequencies, that --superclip cannot train with."""
    options = training.options
    has_idf_file = training.config is not None and is_idf_file(training.config.idf)
    if not training.only_options or has_idf_file:  # the file's tokens are those of the model's tokenizer
        register_model(options.model)
    if training.config is None:
        return
    if not training.only_options:
        from .factory import check_models

        teacher = options.distill_model, options.distill_pretrained
        check_models(options.model, options.pretrained, teacher, options.cache_dir, options.force_context_length)
    if has_idf_file:
        from ..data.frequencies import read_frequencies

        read_frequencies(training.config.idf).check(training.tokenizer, f"--superclip-idf: {training.config.idf}")


def _check_resume(training: Training) -> None:
    """Finds the checkpoint of --resume, if it is known before OpenCLIP starts; InputError if it does not fit.

    A checkpoint does not fit with or without a class head, with other slices, or, for a run in slices, with other
    options than at its beginning.
    """
    options, data = training.options, training.data_config
    if not options.resume or (options.resume == "latest" and (options.name is None or options.remote_sync is not None)):
        return
    from open_clip_train.distributed import is_using_distributed

    run_folder = os.path.join(options.logs, options.name or "")
    resumed = resumed_checkpoint(options.resume, run_folder, options.save_most_recent, training.is_ours)
    if training.is_ours:
        training.resumed = resumed
    file = resumed.file
    if file is None or (resumed.damaged and not training.is_ours):
        return
    has_tasks = current().HAS_TASKS
    with_ddp = None  # the names in a checkpoint depend on the ranks in OpenCLIP 3
    if not has_tasks:
        with_ddp = False if getattr(options, "horovod", False) else is_using_distributed() or None
    check_kind(file, training.config is not None, with_ddp, options.model, has_tasks if training.is_ours else None)
    folder = Path(file).parent.parent
    if options.train_data and (data.slices is not None or (folder / NAME).exists()) and not data.accept_changes:
        now = beginning(training.options_with_defaults(), training.data.world_size)
        slices = "" if data.slices is not None else "--superclip-slices and "  # without which nothing is compared
        accept = f"{slices}--superclip-accept-changes"
        check_beginning(folder, now, "--accept-changes to superclip run" if training.data.is_table else accept)
