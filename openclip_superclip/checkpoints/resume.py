"""Which checkpoint a run resumes from, and whether it is of the same kind of run."""

import itertools
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError, to_stderr
from .model_configurations import model_for_pretrained
from .trainer_files import (
    LATEST,
    is_complete,
    is_damaged,
    latest_checkpoints,
    own_checkpoints,
    read_options,
)

if TYPE_CHECKING:  # it imports torch
    from .weights import Checkpoint


class Resumed(NamedTuple):
    """The checkpoint to resume from, or None, and newer ones that are damaged."""

    file: str | None
    damaged: tuple[str, ...] = ()

    @property
    def run_folder(self) -> Path:
        """The folder of the run that saved the checkpoint."""
        return Path(self.file).parent.parent

    @property
    def options(self) -> dict:
        """The options of that run; {} if they are unknown."""
        return read_options(self.run_folder)

    def set_damaged_aside(self) -> None:
        """Renames the damaged checkpoints, so that OpenCLIP's `--resume latest` selects the
        right one."""
        resumes = (
            f"resumes from {os.path.normpath(self.file)}"
            if self.file
            else "starts from the beginning"
        )
        for path in self.damaged:
            os.rename(path, f"{path}.damaged")
            to_stderr(
                f"superclip: {os.path.basename(path)} is incomplete and was renamed to "
                f"{os.path.normpath(path)}.damaged; --resume latest {resumes}"
            )
            if Path(path).name == LATEST and self.file:
                shutil.copy(self.file, f"{path}.part")  # a suffix that --resume latest ignores
                os.replace(f"{path}.part", path)


def resumed_checkpoint(
    resume: str | None, run_folder: str, *, save_most_recent: bool, is_ours: bool = True
) -> Resumed:
    """Returns the checkpoint to resume from. Remote and sharded checkpoints are left to OpenCLIP.

    Raises InputError for a file that does not exist or cannot be read. `run_folder` is LOGS/NAME.
    If `is_ours`, `latest` must be one of the run's checkpoints; OpenCLIP also takes other files
    from folders of similar names.
    """
    if not resume or "://" in resume or os.path.isfile(os.path.join(resume, ".metadata")):
        return Resumed(None)
    if resume == "latest":
        return _latest(run_folder, save_most_recent=save_most_recent, is_ours=is_ours)
    if not os.path.isfile(resume):
        raise InputError(
            f"--resume: there is no file {resume}; expected a checkpoint, such as "
            "checkpoints/epoch_1.pt, or latest"
        )
    return Resumed(resume)


def _latest(run_folder: str, *, save_most_recent: bool, is_ours: bool) -> Resumed:
    folder = Path(run_folder, "checkpoints")
    own = own_checkpoints(folder)
    files = latest_checkpoints(folder)
    if save_most_recent:
        files = list(map(str, own)) if own[0].exists() else []
    elif is_ours and set("*?[") & set(run_folder):
        raise InputError(
            f"--resume latest: {run_folder} is a pattern for OpenCLIP; use a name without *, ? "
            "and ["
        )
    damaged = tuple(itertools.takewhile(is_damaged, files))
    newest = next(iter(files[len(damaged) :]), None)
    if is_ours:
        # OpenCLIP renames tmp.pt to epoch_latest.pt when it is complete.
        own.append(folder / "tmp.pt")
        for file in files[: len(damaged) + 1]:
            if Path(file) not in own:
                raise InputError(
                    f"--resume latest would use {file}, which the run has not saved: move it "
                    "elsewhere"
                )
    if newest and not is_complete(newest):
        raise InputError(
            f"--resume: {newest} cannot be read: make it readable, or rename or remove it"
        )
    return Resumed(newest, damaged)


def read_resumed(file: str, *, has_head: bool, reads_values: bool) -> "Checkpoint | None":
    """Reads the checkpoint that a run resumes from, without the values of its weights, whose file
    may be deleted meanwhile. Without --superclip, returns None for an unreadable file, which is
    left to OpenCLIP.

    Args:
        has_head: whether the run has --superclip.
        reads_values: whether to check with --superclip that all weights are finite.
    """
    from .weights import check_values, read_checkpoint

    try:
        checkpoint = read_checkpoint(file, checksums=False)
        if has_head and reads_values:
            check_values(checkpoint.weights, file)
    except InputError as error:
        if has_head:
            raise InputError(f"--resume: {error}") from error
        return None
    weights = {name: tensor.to("meta") for name, tensor in checkpoint.weights.items()}
    return replace(checkpoint, weights=weights)


def check_kind(
    checkpoint: "Checkpoint",
    model: str,
    *,
    with_head: bool,
    head_lr_scale: float | None = None,
    with_ddp: bool | None,
    has_tasks: bool | None,
) -> None:
    """Raises InputError if a run of this kind cannot resume from `checkpoint`.

    Args:
        head_lr_scale: --superclip-head-lr divided by --lr, if it is given.
        with_ddp: whether the run uses torch.distributed; None for a single process, which can
            resume from both kinds.
        has_tasks: whether OpenCLIP 4 is installed; None to skip this check.
    """
    has_head = checkpoint.has_head
    if with_head and not has_head:
        kind = "without --superclip"
    elif has_head and not with_head:
        kind = "with --superclip: add --superclip"
    elif has_tasks is not None and checkpoint.of_tasks != has_tasks:
        other = 4 if checkpoint.of_tasks else 3
        kind = (
            f"on OpenCLIP {other}, with other parameter groups of the optimizer: resume it "
            f"with OpenCLIP {other}"
        )
    elif with_ddp is not None and checkpoint.of_ddp != with_ddp:
        ranks = "torchrun's ranks" if checkpoint.of_ddp else "one process or Horovod's ranks"
        kind = f"of {ranks}, with other names of the weights: resume it with those"
    elif with_head and not checkpoint.can_resume:
        kind = "whose epoch or optimizer is missing or damaged"
    elif checkpoint.epoch is not None and head_lr_scale != checkpoint.head_lr_scale:
        if checkpoint.head_lr_scale is None:
            kind = "without --superclip-head-lr: leave it out"
        else:
            scale = checkpoint.head_lr_scale
            kind = f"whose --superclip-head-lr is {scale:g} times --lr: keep this ratio"
    else:
        return
    # Without --superclip, OpenCLIP ignores --pretrained if the model's folder contains weights.
    instead = None if with_head else model_for_pretrained(model)
    file = checkpoint.path
    start = f"--pretrained {file}{f' --model {instead}' if instead else ''} and a new --name"
    raise InputError(
        f"--resume: {file} is of a run {kind}; to start from its weights, give {start}"
    )
