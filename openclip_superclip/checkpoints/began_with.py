"""What a run began with: recorded beside its checkpoints, and compared wherever it is resumed."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from datetime import datetime
from pathlib import Path

from ..atomic_files import write_json
from ..config import RECORDED_ALONE, Config, config_from, options_of
from ..data.shard_pattern import expand, is_remote
from ..errors import InputError
from ..versions import versions

NAME = "began_with.json"
MEASURED = 16  # shards, spread over the list
DEPENDS_ON = (
    "python", "openclip-superclip", "open_clip_torch", "torch", "torchvision", "timm", "webdataset", "numpy", "pillow",
)  # fmt: skip
# OpenCLIP's options from which the weights follow; the batch and the shards are compared as they are, not as written.
OPTIONS = (
    "model", "pretrained", "pretrained_image", "train_num_samples", "seed", "superclip_slices", "epochs", "lr", "beta1",
    "beta2", "eps", "wd", "momentum", "warmup", "opt", "lr_scheduler", "epochs_cooldown", "lr_cooldown_end",
    "lr_cooldown_power", "skip_scheduler", "precision", "grad_clip_norm", "aug_cfg", "image_mean", "image_std",
    "image_interpolation", "force_quick_gelu", "force_custom_text", "force_patch_dropout", "force_image_size",
    "force_context_length", "use_bn_sync", "lock_image", "lock_image_unlocked_groups", "lock_image_freeze_bn_stats",
    "lock_text", "lock_text_unlocked_layers", "lock_text_freeze_layer_norm", "siglip", "coca_caption_loss_weight",
    "coca_contrastive_loss_weight", "distill_model", "distill_pretrained", "use_bnb_linear", "superclip",
    *(f"superclip_{field.name}" for field in dataclasses.fields(Config) if field.name not in RECORDED_ALONE),
)  # fmt: skip


def beginning(options: dict, world_size: int) -> dict:
    """Returns what is recorded of a run on `world_size` ranks, given OpenCLIP's parsed options."""
    from open_clip_train.params import get_default_params

    config, given = config_from(options), get_default_params(options["model"])
    given |= {name: value for name, value in options.items() if value is not None}  # OpenCLIP's, once it has parsed
    given |= options_of(config) if config is not None else {}
    kept = {name: _of_one(given.get(name)) for name in OPTIONS}
    if kept["lr_scheduler"] == "const":  # which may be trained on for as long as one likes
        del kept["epochs"]
    shards = expand(options["train_data"], "--train-data")
    recorded = {
        "options": kept,
        "global_batch_size": options["batch_size"] * options["accum_freq"] * world_size,
        "shards": _identity(shards),
        "versions": versions(*DEPENDS_ON),
    }
    return json.loads(json.dumps(recorded, default=str))


def read_beginning(folder: Path) -> dict | None:
    """Returns what the record in a run's folder holds, None where there is none; InputError where it cannot be read."""
    path = folder / NAME
    try:
        record = json.loads(path.read_text())
        if isinstance(record["options"], dict):
            return record
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is broken: without it nobody knows what the run began with; remove it")


def differences(before: dict, now: dict) -> list[str]:
    """Returns a line for each difference between what a run began with and what it would go on with."""
    lines = [
        f"--{name.replace('_', '-')} was {_told(was)} and is {_told(now['options'][name])}"
        for name, was in before["options"].items()
        if name in now["options"] and now["options"][name] != was
    ]
    if before["global_batch_size"] != now["global_batch_size"]:
        lines.append(f"the global batch was {before['global_batch_size']:,} and is {now['global_batch_size']:,}")
    lines += _other_shards(before["shards"], now["shards"])
    installed = now["versions"]
    return lines + [
        f"{name} was {was} and is {installed[name]}"
        for name, was in before["versions"].items()
        if installed.get(name, was) != was
    ]


def changes_since_beginning(folder: Path, now: dict) -> list[str]:
    """Returns the differences from what the run in `folder` began with, none where that was not recorded."""
    before = read_beginning(folder)
    return differences(before, now) if before is not None else []


def check_beginning(folder: Path, now: dict, accept: str) -> None:
    """Raises InputError, naming every difference, where the run in `folder` began with other things.

    Args:
        accept: the flag that would have it go on all the same.
    """
    if lines := changes_since_beginning(folder, now):
        raise InputError(
            f"{folder} began with other things: {'; '.join(lines)}; go on with those, train into another folder, or "
            f"give {accept}, which notes the change"
        )


def write_beginning(folder: Path, now: dict, resumes: bool) -> list[str]:
    """Records what a run begins with; where it resumes, notes what is different from its record, and returns that."""
    before = read_beginning(folder) if resumes else None
    lines = differences(before, now) if before is not None else []
    if before is None or lines:
        changes = (before or {}).get("changes", [])
        if lines:
            changes = [*changes, {"when": datetime.now().astimezone().isoformat(timespec="seconds"), "changed": lines}]
        write_json(folder / NAME, {**now, "changes": changes})
    return lines


def _of_one(value):
    """Returns what OpenCLIP makes of a list of one, such as --force-image-size 224."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _told(value) -> str:
    return "not given" if value is None else str(value)


def _identity(shards: list[str]) -> dict:
    """Returns what tells a list of shards from others: names, as seen from the folder that holds them all, and sizes.

    Of a few shards, those that are files: data sets are often named alike.
    """
    names = shards
    if not any(map(is_remote, shards)):
        paths = [os.path.abspath(shard) for shard in shards]
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = [os.path.relpath(path, folder) for path in paths]
    sizes = {}
    for place in range(0, len(shards), math.ceil(len(shards) / MEASURED)):
        with contextlib.suppress(OSError):
            sizes[names[place]] = os.path.getsize(shards[place])
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return {"number": len(shards), "sha256": digest, "bytes": sizes}


def _other_shards(before: dict, now: dict) -> list[str]:
    if before["sha256"] != now["sha256"]:
        return [f"--train-data was {_shards(before)} and is {_shards(now)}"]
    sizes = before.get("bytes", {})
    changed = [name for name, size in now["bytes"].items() if sizes.get(name, size) != size]
    if not changed:
        return []
    first = changed[0]
    found = f"{len(changed)} of {len(now['bytes'])} shards that were measured have other sizes"
    return [f"--train-data: {found}: {first} had {sizes[first]:,} bytes and has {now['bytes'][first]:,}"]


def _shards(told: dict) -> str:
    return f"{told['number']:,} shards ({told['sha256'][:8]})"
