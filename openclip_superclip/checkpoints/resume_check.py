"""What a run starts from, looked at before anything is loaded: the checkpoint of --resume, the file of --pretrained."""

import logging
import os

from ..errors import InputError


def check_resume(file: str, with_head: bool, with_ddp: bool | None = None) -> None:
    """Raises InputError where `file`, to be resumed, is of a run of the other kind: plain, or with --superclip.

    A file that cannot be read is left to stock OpenCLIP in a run without the head.

    Args:
        file: the checkpoint.
        with_head: whether --superclip trains.
        with_ddp: whether the ranks are torch.distributed's; None for a process alone, which reads either's names.
    """
    from .checkpoint import read_checkpoint

    try:
        checkpoint = read_checkpoint(file)
        has_head = bool(checkpoint.head())
    except InputError as error:
        if with_head:
            raise InputError(f"--resume: {error}") from error
        return
    if with_head and not has_head:
        raise InputError(
            f"--resume: {file} is of a run without --superclip; to start from its weights with a fresh class head, "
            f"give --pretrained {file} instead"
        )
    if has_head and not with_head:
        raise InputError(
            f"--resume: {file} is of a run with --superclip: add --superclip, or export it to plain OpenCLIP with "
            f"superclip export {file}"
        )
    if with_ddp is not None and checkpoint.of_ddp != with_ddp:
        kind = "torchrun's ranks" if checkpoint.of_ddp else "one process or Horovod's ranks"
        raise InputError(
            f"--resume: {file} is of a run of {kind}, whose names OpenCLIP does not resume here: go on as it began, or "
            f"start from its weights with --pretrained {file}"
        )


def how_to_load(pretrained: str) -> dict:
    """Returns what OpenCLIP's factory must be told about a file of weights."""
    if not os.path.isfile(pretrained):
        return {}
    from ..method.model import FRESH_HEAD
    from .checkpoint import is_torchscript

    if pretrained.endswith(".npz"):
        logging.info(FRESH_HEAD)  # OpenCLIP copies these weights in one by one: the model does not see them come
    # torch refuses these archives as weights, and loads them as code of its own, without Python's pickles.
    return {"weights_only": False} if is_torchscript(pretrained) else {}
