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
from .model_files import instead_of_passing_over, know_model
from .run_outputs import is_complete, latest_checkpoints, read_run_record

NAME = "began_with.json"
LATEST = "epoch_latest"  # the name of what --save-most-recent writes
NUM_MEASURED = 16  # shards, spread over the list
DEPENDS_ON = (
    "python", "openclip-superclip", "open_clip_torch", "torch", "torchvision", "timm", "webdataset", "numpy", "pillow",
)  # fmt: skip
# Options on which no weight depends, by name or prefix; all others are compared. The batch and the shards are compared
# by what they mean, not as they were written.
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
    """Returns what an option means: for a file or a model's folder its digest, so that it may be moved."""
    if isinstance(value, list | tuple) and len(value) == 1:  # as OpenCLIP reads --force-image-size 224
        return value[0]
    if not isinstance(value, str) or not value:
        return value
    is_file = name in ("pretrained", "distill_pretrained", "pretrained_image") or (
        name == "superclip_idf" and is_idf_file(value)
    )
    if is_file and os.path.isfile(value):
        return DIGEST + (file_identity(Path(value)) or content_digest(Path(value)))
    if name in ("model", "distill_model") and (value.startswith("local-dir:") or value.endswith(".json")):
        return _model_digest(value)
    return value


def _model_digest(model: str) -> str:
    """Returns a digest of a model's configuration, tokenizer aside; `model` itself if its file is not there."""
    import open_clip

    try:
        know_model(model)
        config = open_clip.get_model_config(model)
    except (InputError, OSError, ValueError, KeyError):
        return model
    text = {name: value for name, value in config.get("text_cfg", {}).items() if "tokenizer" not in name}
    return DIGEST + hashlib.sha256(json.dumps({**config, "text_cfg": text}).encode()).hexdigest()


def _identity(shards: list[str]) -> dict:
    """Returns what distinguishes a list of shards: relative names, and the sizes of a few that are files."""
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
    """Returns the record in a run's folder, or one made of OpenCLIP's params.txt; None if there is neither."""
    record = read_json(folder / NAME, default={})
    parts = {"options": dict, "global_batch_size": int, "shards": dict, "versions": dict}
    if all(isinstance(record.get(name), part) for name, part in parts.items()) and "sha256" in record["shards"]:
        return record
    options = read_run_record(folder / "checkpoints" / "epoch_0.pt", None).options
    return _record(options) if isinstance(options.get("train_data"), str) else None


def differences(before: dict, now: dict) -> list[str]:
    """Returns a line for each difference between what a run began with and what it would resume with."""
    was, given = before["options"], now["options"]
    compared = [name for name in was if name in given and not _is_harmless(name)]
    lines = [
        f"--{name.replace('_', '-')} was {_shown(was.get(name))} and is {_shown(given.get(name))}"
        for name in dict.fromkeys([*compared, "superclip_slices"])  # which is not recorded unless it is given
        if was.get(name) != given.get(name)
    ]
    if before["global_batch_size"] not in (None, now["global_batch_size"]):
        lines.append(f"the global batch was {before['global_batch_size']:,} and is {now['global_batch_size']:,}")
    old, new = before["shards"], now["shards"]
    sizes = {name: (size, new["bytes"].get(name, size)) for name, size in old.get("bytes", {}).items()}
    changed = [name for name, (size, new_size) in sizes.items() if size != new_size]
    if old["sha256"] != new["sha256"]:
        shown = [f"{found['number']:,} shards ({found['sha256'][:8]})" for found in (old, new)]
        lines.append(f"--train-data was {shown[0]} and is {shown[1]}")
    elif changed:
        size, new_size = sizes[changed[0]]
        lines.append(f"--train-data: {changed[0]} had {size:,} bytes and has {new_size:,}")
    installed = now["versions"]
    return lines + [
        f"{name} was {version} and is {installed[name]}"
        for name, version in before["versions"].items()
        if installed.get(name, version) != version
    ]


def _shown(value) -> str:
    text = "not given" if value is None else str(value)
    return text[: len(DIGEST) + 8] if text.startswith(DIGEST) else text


def changes_since_beginning(folder: Path, now: dict) -> list[str]:
    """Returns the differences from what the run in `folder` began with, none if that was not recorded."""
    before = read_beginning(folder)
    return differences(before, now) if before is not None else []


def check_beginning(folder: Path, now: dict, accept: str) -> None:
    """Raises InputError, naming every difference and the flag `accept`, if the run in `folder` began otherwise."""
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
    """The checkpoint that --resume takes, None if there is none, and the newer ones that are damaged."""

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
        resume: the flag's value.
        run_folder: LOGS/NAME.
        save_most_recent: OpenCLIP's flag.
    """
    if not resume or "://" in resume:
        return Resumed(None)
    if resume == "latest":
        files = latest_checkpoints(os.path.join(run_folder, "checkpoints"))
        if save_most_recent:
            files.sort(key=lambda file: Path(file).stem != LATEST)
            files = files if files and Path(files[0]).stem == LATEST else []
        whole = next((place for place, file in enumerate(files) if is_complete(file)), len(files))
        return Resumed(files[whole] if whole < len(files) else None, tuple(files[:whole]))
    if not (os.path.isfile(resume) or is_sharded(Path(resume))):
        problem = f"{resume} is a folder" if os.path.isdir(resume) else f"there is no file {resume}"
        raise InputError(f"--resume: {problem}; expected a checkpoint, such as checkpoints/epoch_1.pt, or latest")
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
    has_head = bool(checkpoint.head())
    if with_head and not has_head:
        kind = "without --superclip"
    elif has_head and not with_head:
        kind = "with --superclip: add --superclip"
    elif has_tasks is not None and checkpoint.of_tasks != has_tasks:
        other = 4 if checkpoint.of_tasks else 3
        kind = f"on OpenCLIP {other}, whose optimizer has other groups of parameters: resume it with OpenCLIP {other}"
    elif with_ddp is not None and checkpoint.of_ddp != with_ddp:
        ranks = "torchrun's ranks" if checkpoint.of_ddp else "one process or Horovod's ranks"
        kind = f"of {ranks}, whose names of weights are others: resume it with those"
    else:
        return
    # Without --superclip, OpenCLIP ignores --pretrained beside a folder's own weights.
    instead = None if with_head else instead_of_passing_over(model)
    start = f"--pretrained {file}{f' --model {instead}' if instead else ''} and a new --name"
    raise InputError(f"--resume: {file} is of a run {kind}; to start from its weights, give {start}")
