"""OpenCLIP 4 (main branch): a task contains model and loss; batches are dicts; images are decoded last."""

import functools

from .. import hooks
from ..errors import InputError
from . import v3

TESTED = ("4.2.0.dev0",)
HAS_TASKS = True

REPLACED = {
    "open_clip_train.main.create_task": "the same, with the plugins' loss, if one has an answer",
    "open_clip_train.main.train_one_epoch": "the same, and the plugins are called at the end of the epoch",
    **{
        f"open_clip_train.data.{name}": "leaves the plugins' tokens alone, while training data is made"
        for name in ("JsonCaptionExtractor", "FilterNonEmptyText")
    },
}


def with_plugins_task(create):
    """Returns an OpenCLIP `create_task` whose task uses the plugins' loss, if any."""

    @functools.wraps(create)
    def create_task(args, *task_args, **kwargs):
        task = create(args, *task_args, **kwargs)
        loss = hooks.plugin_manager().hook.open_clip_create_loss(args=args)
        if loss is not None:
            del task.loss  # a plugin's loss need not be a module
            task.loss = loss
            _pass_every_output(task)
        return task

    return create_task


def _pass_every_output(task) -> None:
    """Makes CoCa's task pass all model outputs to its loss, instead of five by name."""
    if not hasattr(task, "_build_loss_inputs"):
        return
    build = task._build_loss_inputs

    def build_loss_inputs(model_out, batch):
        others = {name: value for name, value in model_out.items() if name != "logit_bias"}  # CoCaLoss takes none
        return others | build(model_out, batch)

    task._build_loss_inputs = build_loss_inputs


def _epoch_of(given: dict) -> dict:
    """Returns the hook's arguments from those of `train_one_epoch`."""
    state = given["state"]
    return {"args": given["args"], "model": state.task.trainable_module, "epoch": state.epoch}


with_epoch_end = functools.partial(v3.with_epoch_end, epoch_of=_epoch_of)
WRAPPERS = {
    "open_clip_train.main.create_task": with_plugins_task,
    "open_clip_train.main.train_one_epoch": with_epoch_end,
}

PASSED_ON = {
    "JsonCaptionExtractor": lambda *_, **__: lambda tokens: tokens,
    "FilterNonEmptyText": lambda *_, **__: lambda sample: True,
}


class WebDataset(v3.WebDataset):
    """The same for samples before decoding: `txt` is OpenCLIP's caption."""

    def __init__(self, args, order, caption_tokens):
        import open_clip_train.data as data

        super().__init__(args, order, caption_tokens)
        self.text_keys = data._split_wds_keys(args.text_key or "txt")
        self.read_json = None
        if args.json_text_key:
            self.read_json = data.JsonCaptionExtractor(args.json_text_key, sample_probs=args.json_text_key_probs)
        self.is_trained_on = data.FilterNonEmptyText("txt")

    def names(self, names: dict[str, str]) -> dict[str, str]:
        return {**names, "text": "txt"}

    def with_caption(self, sample: dict) -> dict | None:
        if self.read_json is not None:
            sample = {**sample, "txt": self.read_json(sample["json"])}
        else:
            sample = {**sample, "txt": next(sample[key] for key in self.text_keys if key in sample)}
        if not self.is_trained_on(sample):
            return None
        caption = sample["txt"]
        return {**sample, "txt": caption.decode("utf-8") if isinstance(caption, bytes) else caption}


def check_options(args, captions: str | None, slices: int | None) -> None:
    """Raises InputError, with a suggestion, for a flag of this generation that one of ours does not support.

    `captions` is --superclip-captions, None without --superclip, and `slices` is --superclip-slices.
    """
    if args.dataset_type.endswith("-audio"):
        raise InputError(f"--dataset-type {args.dataset_type} has no images: leave out the flags of SuperCLIP")
    if captions is not None and captions.startswith("mixed") and args.json_text_key_probs:
        raise InputError(
            f"--json-text-key-probs draws the short caption, and --superclip-captions {captions} draws between it and "
            "the long one: give one of the two"
        )
    if slices is not None and args.use_naflex:
        raise InputError(
            "--superclip-slices cannot go with --use-naflex, which reads its shards over and over: leave out one of "
            "the two"
        )
    if captions is not None and args.fsdp_checkpoint == "sharded":
        raise InputError(
            "--fsdp-checkpoint sharded cannot go with --superclip, whose commands read checkpoints that are one file: "
            "leave it out"
        )
    if captions is not None and "muon" in args.opt.lower():
        # Its fallback trains the head's weight, whose rows are words and must not be orthogonalised.
        given = args.opt_fallback_list or (args.opt_kwargs or {}).get("fallback_list") or []
        args.opt_fallback_list = [*given, "class_head.*"]


def row_with_tokens(row: dict, tokens) -> dict:
    """Returns a row of OpenCLIP's table with other tokens."""
    return {**row, "text": tokens}


def shuffle_sizes() -> tuple[int, int]:
    """Returns size and initial size of OpenCLIP's shuffle buffer of samples."""
    from open_clip_train.data import wds_shuffle_sizes

    return wds_shuffle_sizes()[2:]
