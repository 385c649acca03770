"""Which model a checkpoint is of: what the user says, the folder's configuration, or the record of its run."""

from pathlib import Path

from open_clip.constants import HF_CONFIG_NAME

from ..errors import InputError
from .model_folder import Architecture, read_architecture


def which_model(checkpoint: Path, run_options: dict, model: str | None = None, flag: str = "--model") -> Architecture:
    """Returns the architecture of a checkpoint's weights, changed as the run's own options changed it.

    Args:
        checkpoint: a file of weights or a folder.
        run_options: of the training command, empty where nothing tells them.
        model, flag: what the user says it is, and where.
    """
    if model is None and (checkpoint / HF_CONFIG_NAME).is_file():
        model = f"local-dir:{checkpoint}"
    model = model or run_options.get("model")
    if model is None:
        raise InputError(f"{flag}: nothing beside {checkpoint} says what model it is; give its name")
    return read_architecture(model, str(run_options.get("pretrained", ""))).with_options(run_options)
