"""Which checkpoint --resume takes, and whether this run can resume it; checked before anything is loaded."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ..config import config_from, is_idf_file, options_of
from ..data.shards import expand, is_remote
from ..environment import versions
from ..errors import InputError
from ..files import content_digest, file_identity, read_json, write_json
from . import is_sharded
from .model_files import know_model
from .run_outputs import is_complete, latest_checkpoints, read_run_record

NAME = "began_with.json"
LATEST = "epoch_latest"  # the name of what --save-most-recent writes
NUM_MEASURED = 16  # shards, spread over the list
DEPENDS_ON = (
    "python", "openclip-superclip", "open_clip_torch", "torch", "torchvision", "timm", "webdataset", "numpy", "pillow",
)  # fmt: skip
# Options on which no weight depends, by their names or what these begin with; all others are compared. The batch and
# the shards are compared as they are, not as they were written.
HARMLESS = (
    "accum_freq", "batch_size", "train_data", "dataset_type", "cache_dir", "copy_codebase", "csv_", "ddp_static_graph",
    "debug", "delete_previous_checkpoint", "device", "dist_", "grad_checkpointing", "help", "imagenet_", "log_", "logs",
    "name", "no_set_device_rank", "remote_sync", "remote_sync_", "report_to", "resume", "save_", "val_", "workers",
    "wandb", "wandb_", "zeroshot_frequency", "audio_zeroshot_", "trace", "torchscript", "train_loss_ema_samples",
    "fsdp_checkpoint", "superclip_word_course", "superclip_accept_changes",
    # what OpenCLIP, or this package, adds to the parsed options while it starts
    "rank", "local_rank", "world_size", "distributed", "distill", "checkpoint_path", "tensorboard", "tensorboard_path",
    "trackio", "train_sz", "variable_text", "only_options",
)  # fmt: skip
DIGEST = "sha256:"


def beginning(options: dict, world_size: int) -> dict:
    """Returns the record of a run on `world_size` ranks, given OpenCLIP's parsed options with the model's defaults."""
    config = config_from(options)
    given = options | (options_of(config) if config is not None else {})
    return _record(given | {"world_size": world_size}) | {"versions": versions(*DEPENDS_ON)}


def _record(options: dict) -> dict:
    kept = {name: _content(name, value) for name, value in sorted(options.items()) if not _is_harmless(name)}
    if kept.get("lr_scheduler") == "const":  # which may be trained on for as long as one likes
        del kept["epochs"]
    factors = [options.get(name) for name in ("batch_size", "accum_freq", "world_size")]
    record = {
        "options": kept,
        "global_batch_size": math.prod(factors) if None not in factors else None,
        "shards": _identity(expand(options["train_data"], "--train-data")),
        "versions": {},
    }
    return json.loads(json.dumps(record, default=str))


def _is_harmless(name: str) -> bool:
    return any(name == harmless or (harmless.endswith("_") and name.startswith(harmless)) for harmless in HARMLESS)


def _content(name: str, value):
    """Returns what an option means: the digest of a file or of a model's folder, wherever it lies."""
    if isinstance(value, list | tuple) and len(value) == 1:  # as OpenCLIP reads --force-image-size 224
        return value[0]
    if not isinstance(value, str) or not value:
        return value
    is_file = name in ("pretrained", "distill_pretrained", "pretrained_image") or (
        name == "superclip_idf" and is_idf_file(value)
    )
    if is_file and os.path.isfile(value):
        return DIGEST + (file_identity(Path(value)) or content_digest(Path(value)))
    if name in ("model", "distill_model") and (":" in value or value.endswith(".json")):
        towers = _towers(value)
        return value if towers is None else DIGEST + hashlib.sha256(json.dumps(towers).encode()).hexdigest()
    return value


def _identity(shards: list[str]) -> dict:
    """Returns what distinguishes a list of shards: names, as seen from the folder that holds them all, and sizes.

    The sizes are those of a few shards that are files: data sets are often named alike.
    """
    names = shards
    if not any(map(is_remote, shards)):
        paths = [os.path.abspath(shard) for shard in shards]
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = [os.path.relpath(path, folder) for path in paths]
    sizes = {}
    for place in range(0, len(shards), math.ceil(len(shards) / NUM_MEASURED)):
        with contextlib.suppress(OSError):
            sizes[names[place]] = os.path.getsize(shards[place])
    return {"number": len(shards), "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(), "bytes": sizes}


def read_beginning(folder: Path) -> dict | None:
    """Returns the record in a run's folder, or what OpenCLIP's params.txt holds of it; None if there is neither."""
    record = read_json(folder / NAME, default={})
    parts = {"options": dict, "global_batch_size": int, "shards": dict, "versions": dict}
    if all(isinstance(record.get(name), part) for name, part in parts.items()) and "sha256" in record["shards"]:
        return record
    options = read_run_record(folder / "checkpoints" / "epoch_0.pt", None).options
    return _record(options) if isinstance(options.get("train_data"), str) else None


def differences(before: dict, now: dict) -> list[str]:
    """Returns a line for each difference between what a run began with and what it would resume with."""
    lines = [
        f"--{name.replace('_', '-')} was {_shown(was)} and is {_shown(now['options'][name])}"
        for name, was in before["options"].items()
        if name in now["options"] and not _is_harmless(name) and not _same(name, was, now["options"][name])
    ]
    if before["global_batch_size"] not in (None, now["global_batch_size"]):
        lines.append(f"the global batch was {before['global_batch_size']:,} and is {now['global_batch_size']:,}")
    was, shards = before["shards"], now["shards"]
    sizes = was.get("bytes", {})
    changed = [name for name, size in shards["bytes"].items() if sizes.get(name, size) != size]
    if was["sha256"] != shards["sha256"]:
        shown = [f"{found['number']:,} shards ({found['sha256'][:8]})" for found in (was, shards)]
        lines.append(f"--train-data was {shown[0]} and is {shown[1]}")
    elif changed:
        lines.append(
            f"--train-data: {len(changed)} of {len(shards['bytes'])} shards that were measured have other sizes: "
            f"{changed[0]} had {sizes[changed[0]]:,} bytes and has {shards['bytes'][changed[0]]:,}"
        )
    installed = now["versions"]
    return lines + [
        f"{name} was {was} and is {installed[name]}"
        for name, was in before["versions"].items()
        if installed.get(name, was) != was
    ]


def _same(name: str, was, now) -> bool:
    """Returns whether an option is as it was; an earlier version recorded paths, which may no longer exist."""
    if isinstance(was, str) and str(now).startswith(DIGEST) and not was.startswith(DIGEST):
        found = _content(name, was)
        return found == now or not found.startswith(DIGEST)
    return was == now


def _shown(value) -> str:
    text = "not given" if value is None else str(value)
    return text[: len(DIGEST) + 8] if text.startswith(DIGEST) else text


def changes_since_beginning(folder: Path, now: dict) -> list[str]:
    """Returns the differences from what the run in `folder` began with, none if that was not recorded."""
    before = read_beginning(folder)
    return differences(before, now) if before is not None else []


def check_beginning(folder: Path, now: dict, accept: str) -> None:
    """Raises InputError, naming every difference, if the run in `folder` began with other things.

    Args:
        accept: the flag that resumes it all the same.
    """
    if lines := changes_since_beginning(folder, now):
        raise InputError(
            f"{folder} began with other things: {'; '.join(lines)}; resume with those, train into another folder, or "
            f"give {accept}, which notes the change"
        )


def write_beginning(folder: Path, now: dict, resumes: bool) -> list[str]:
    """Records what a run begins with; if it resumes, notes the differences from its record, and returns them."""
    before = read_beginning(folder) if resumes else None
    lines = differences(before, now) if before is not None else []
    if before is None or lines or not before["versions"]:  # else it is recorded
        changes = (before or {}).get("changes", [])
        if lines:
            changes = [*changes, {"when": datetime.now().astimezone().isoformat(timespec="seconds"), "changed": lines}]
        write_json(folder / NAME, {**now, "changes": changes})
    return lines


class Resumed(NamedTuple):
    """The checkpoint that --resume takes, None if there is none, once those that were not written whole are renamed."""

    file: str | None
    damaged: tuple[str, ...] = ()

    def set_damaged_aside(self) -> None:
        """Renames the damaged checkpoints, so that OpenCLIP's `--resume latest` takes the right one."""
        resumes = f"resumes from {os.path.normpath(self.file)}" if self.file else "starts from the beginning"
        for path in self.damaged:
            os.rename(path, f"{path}.damaged")
            renamed = f"was not written to its end and is now {os.path.normpath(path)}.damaged"
            line = f"superclip: {os.path.basename(path)} {renamed}; --resume latest {resumes}"
            print(line, file=sys.stderr, flush=True)
            if Path(path).stem == LATEST and self.file:
                copy = shutil.copytree if os.path.isdir(self.file) else shutil.copyfile
                copy(self.file, f"{path}.part")  # a name that --resume latest does not see
                os.replace(f"{path}.part", path)


def resumed_checkpoint(resume: str | None, run_folder: str, save_most_recent: bool) -> Resumed:
    """Returns the checkpoint that --resume takes; a remote one is left to OpenCLIP.

    Raises InputError for a file that does not exist.

    Args:
        resume: what the flag says.
        run_folder: LOGS/NAME.
        save_most_recent: OpenCLIP's flag.
    """
    if not resume or "://" in resume:
        return Resumed(None)
    if resume == "latest":
        folder = os.path.join(run_folder, "checkpoints")
        files = latest_checkpoints(folder)
        if save_most_recent:
            files.sort(key=lambda file: Path(file).stem != LATEST)
            files = files if files and Path(files[0]).stem == LATEST else []
        whole = next((place for place, file in enumerate(files) if is_complete(file)), len(files))
        return Resumed(files[whole] if whole < len(files) else None, tuple(files[:whole]))
    if os.path.isdir(resume) and not is_sharded(Path(resume)):
        newest = next(iter([*latest_checkpoints(resume), *latest_checkpoints(os.path.join(resume, "checkpoints"))]), "")
        expected = f"a checkpoint, such as {newest}" if newest else "a checkpoint, and there is none in it"
        raise InputError(f"--resume: {resume} is a folder; expected {expected}")
    if not os.path.exists(resume):
        raise InputError(f"--resume: there is no file {resume}; expected a checkpoint, or latest")
    return Resumed(resume)


def check_kind(file: str, with_head: bool, with_ddp: bool | None, model: str, has_tasks: bool | None = None) -> None:
    """Raises InputError, with what to do instead, if `file` is of a run of the other kind: plain or --superclip.

    A file that cannot be read is left to stock OpenCLIP in a run without the head.

    Args:
        with_head: whether --superclip trains.
        with_ddp: whether the ranks are torch.distributed's; None for a single process, which reads either's names.
        model: as --model names it.
        has_tasks: whether OpenCLIP 4 resumes it; None to leave that to OpenCLIP.
    """
    from .checkpoint import read_checkpoint

    try:
        checkpoint = read_checkpoint(file)
    except InputError as error:
        if with_head:
            raise InputError(f"--resume: {error}") from error
        return
    export = f"superclip export {file} --out FOLDER --model {model}, then --model local-dir:FOLDER"
    # Beside local-dir: and hf-hub:, OpenCLIP ignores --pretrained; with --superclip it is loaded all the same.
    fresh = f"--pretrained {file} and a new --name" if with_head or ":" not in model else f"{export} and a new --name"
    has_head = bool(checkpoint.head())
    if with_head and not has_head:
        raise InputError(
            f"--resume: {file} is of a run without --superclip; to start from its weights with a fresh class head, "
            f"give {fresh} instead"
        )
    if has_head and not with_head:
        raise InputError(
            f"--resume: {file} is of a run with --superclip: add --superclip; or, to start from its weights without "
            f"the class head, {export} and a new --name"
        )
    if has_tasks is not None and checkpoint.of_tasks != has_tasks:
        raise InputError(
            f"--resume: {file} is of a run on OpenCLIP {4 if checkpoint.of_tasks else 3}, whose optimizer has other "
            f"groups of parameters than OpenCLIP {4 if has_tasks else 3}'s: resume it with the OpenCLIP that it began "
            f"with; or, to start from its weights, give {fresh}"
        )
    if with_ddp is not None and checkpoint.of_ddp != with_ddp:
        kind = "torchrun's ranks" if checkpoint.of_ddp else "one process or Horovod's ranks"
        raise InputError(
            f"--resume: {file} is of a run of {kind}, whose names OpenCLIP does not resume here: resume with "
            f"the ranks that it began with; or, to start from its weights, give {fresh}"
        )


def check_same_model(file: str, model: str) -> None:
    """Raises InputError if the run that wrote `file` trained another model than `model`, as --model names both."""
    before = read_run_record(Path(file), None).options.get("model")
    if before is None or before == model:
        return
    towers_before, towers = _towers(before), _towers(model)
    if towers_before and towers and towers_before != towers:
        raise InputError(
            f"--model is {model}, and --resume: {file} is of a run of another model: give --model {before}, or leave "
            "--resume out and give a new --name"
        )


def _towers(model: str) -> dict | None:
    """Returns the configuration of a model, None if it is not at hand; its tokenizer may be anywhere."""
    import open_clip

    if model.startswith("hf-hub:"):
        return None
    try:
        know_model(model)
        config = open_clip.get_model_config(model if ":" in model else model.replace("/", "-"))
    except (InputError, OSError, ValueError, KeyError):  # a folder that was moved
        return None
    if config is None:
        return None
    text = {name: value for name, value in config.get("text_cfg", {}).items() if "tokenizer" not in name}
    return {**config, "text_cfg": text}


def check_slices(file: str, slices: int | None) -> None:
    """Raises InputError if the run that wrote `file` read its shards in other slices, or in none.

    OpenCLIP's params.txt beside the checkpoints records how that run was started.
    """
    before = read_run_record(Path(file), None).options
    began_with = before.get("superclip_slices")
    if "seed" not in before or slices == began_with:
        return
    found = "is not given" if slices is None else f"is {slices}"
    of, instead = "without it", "leave it out"
    if began_with is not None:
        of = instead = f"--superclip-slices {began_with}"
        of, instead = f"with {of}", f"give {instead}"
    raise InputError(
        f"--superclip-slices {found}, and --resume: {file} is of a run {of}: {instead}; to train otherwise, start from "
        f"its weights: --pretrained {file} and a new --name"
    )
