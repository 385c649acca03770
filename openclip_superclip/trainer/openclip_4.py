"""OpenCLIP 4 (main branch): a task contains model and loss; batches are dicts; images are
decoded last."""

from . import openclip_3

HAS_TASKS = True
PASSED_ON = {
    "JsonCaptionExtractor": lambda *_, **__: lambda tokens: tokens,
    "FilterNonEmptyText": lambda *_, **__: lambda sample: True,
}


def with_plugins_task(create):
    """Returns an OpenCLIP `create_task` that uses the plugins' loss, if any."""

    def create_task(*args, **kwargs):
        call = openclip_3.arguments(create, args, kwargs)
        task = create(*args, **kwargs)
        own = getattr(task, "loss", None)  # GenLIP has none
        loss = openclip_3.plugins_loss(call["args"], call.get("model"), lambda: own)
        if loss is not own:
            del task.loss  # a plugin's loss need not be a module
            task.loss = loss
            if hasattr(task, "_build_loss_inputs"):
                task._build_loss_inputs = with_every_output(task._build_loss_inputs)
        return task

    return create_task


def with_every_output(build):
    """Returns a `_build_loss_inputs` of CoCa's task that passes all model outputs to its loss,
    not five by name."""

    def build_loss_inputs(model_out, batch):
        # CoCaLoss takes none
        others = {name: value for name, value in model_out.items() if name != "logit_bias"}
        return others | build(model_out, batch)

    return build_loss_inputs


def trained_epoch(call: dict) -> tuple[object, int]:
    """Returns the model and the epoch, given the arguments of `train_one_epoch`."""
    state = next(iter(call.values()))
    return state.task.trainable_module, state.epoch


WRAPPERS = {
    "open_clip_train.main.create_task": with_plugins_task,
    "open_clip_train.main.create_optimizer": openclip_3.with_plugins_groups,
}


class WebDataset(openclip_3.WebDataset):
    """The same for samples before decoding: `txt` is OpenCLIP's caption."""

    def __init__(self, args, order, caption_tokens):
        import open_clip_train.data as data

        super().__init__(args, order, caption_tokens)
        self.text_keys = data._split_wds_keys(args.text_key or "txt")
        self.read_json = None
        if args.json_text_key:
            self.read_json = data.JsonCaptionExtractor(
                args.json_text_key, sample_probs=args.json_text_key_probs
            )
        self.is_trained_on = data.FilterNonEmptyText("txt")

    def with_caption(self, sample: dict) -> dict | None:
        if self.read_json is not None:
            caption = self.read_json(sample["json"])
        else:
            caption = next(sample[key] for key in self.text_keys if key in sample)
        if not self.is_trained_on({"txt": caption}):
            return None
        return {**sample, "txt": caption.decode("utf-8") if isinstance(caption, bytes) else caption}


def shuffle_sizes() -> tuple[int, int]:
    """Returns size and initial size of OpenCLIP's shuffle buffer of samples."""
    from open_clip_train.data import wds_shuffle_sizes

    return wds_shuffle_sizes()[2:]
