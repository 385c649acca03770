"""The help of the training command: OpenCLIP's flags with their defaults."""

import argparse


class HelpWithDefaults(argparse.HelpFormatter):
    """Tells each flag's default, which OpenCLIP's own help leaves out; what follows from the model, for its kinds."""

    def add_argument(self, action: argparse.Action) -> None:
        if action.help is None:  # OpenCLIP explains not all of its flags
            action.help = ""
        if action.help is not argparse.SUPPRESS and "(default" not in action.help:
            shown = _default(action)
            action.help = f"{action.help} (default: {shown})".strip() if shown else action.help
        super().add_argument(action)


def _default(action: argparse.Action) -> str:
    default = action.default
    if default in (None, False, argparse.SUPPRESS, [], {}, ""):
        return _of_model(action.dest)
    text = repr(default) if isinstance(default, str) and not default.strip() else str(default)
    return text.replace("%", "%%")


def _of_model(name: str) -> str:
    """Returns the default that OpenCLIP takes from the model's name, "" where it takes none."""
    from open_clip_train.params import get_default_params

    vit, others = (get_default_params(model).get(name) for model in ("ViT-B-32", "RN50"))
    if vit is None:
        return ""
    return f"{vit:g}" if vit == others else f"{vit:g} where the model's name holds ViT, else {others:g}"
