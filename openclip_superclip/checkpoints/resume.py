"""Which checkpoint --resume takes, and whether this run can resume it; checked before anything is loaded."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path

from ..config import RECORDED_ALONE, Config, config_from, options_of
from ..data.shards import expand, is_remote
from ..environment import versions
from ..errors import InputError
from ..files import write_json
from . import is_sharded
from .model_files import know_model
from .run_outputs import read_run_record

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
    config = config_from(options)
    given = options | (options_of(config) if config is not None else {})
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


def resumed_file(resume: str | None, run_folder: str, save_most_recent: bool, set_aside: bool) -> str | None:
    """Returns the checkpoint that --resume takes, None where there is none; a remote one is left to OpenCLIP.

    A checkpoint that was not written to its end is passed over with `--resume latest`: OpenCLIP takes the newest file,
    so it gets another name. Raises InputError for a file that is not there.

    Args:
        resume: what the flag says.
        run_folder: LOGS/NAME.
        save_most_recent: OpenCLIP's flag.
        set_aside: whether to rename what is cut; one rank does.
    """
    if not resume or "://" in resume:
        return None
    if resume == "latest":
        return _latest(os.path.join(run_folder, "checkpoints"), save_most_recent, set_aside)
    if os.path.isdir(resume) and not is_sharded(Path(resume)):
        newest = _newest(Path(resume)) or _newest(Path(resume, "checkpoints"))
        expected = f"a checkpoint, such as {newest}" if newest else "a checkpoint, and there is none in it"
        raise InputError(f"--resume: {resume} is a folder; expected {expected}")
    if not os.path.exists(resume):
        raise InputError(f"--resume: there is no file {resume}; expected a checkpoint, or latest")
    return resume


def _newest(folder: Path) -> Path | None:
    from .checkpoint import natural_key

    return max(folder.glob("*.pt"), key=lambda file: natural_key(file.name), default=None)


def _latest(folder: str, save_most_recent: bool, set_aside: bool) -> str | None:
    from .checkpoint import latest_checkpoint
    from .run_outputs import is_complete

    file = latest_checkpoint(folder, save_most_recent)
    if save_most_recent:
        if not os.path.exists(file):
            return None
        if set_aside and not is_complete(file):
            _go_back(Path(file))
        return file if is_complete(file) else None
    if set_aside:
        while file is not None and not is_complete(file):
            damaged = Path(file).rename(f"{file}.damaged")
            file = latest_checkpoint(folder, save_most_recent)
            resumes = f"resumes from {os.path.normpath(file)}" if file else "starts anew"
            print(f"superclip: {damaged.stem} was not written to its end and is now {damaged}; "
                  f"--resume latest {resumes}", file=sys.stderr, flush=True)  # fmt: skip
    return file if file is not None and is_complete(file) else None


def _go_back(latest: Path) -> None:
    """Sets a cut epoch_latest.pt aside and puts the newest whole epoch_N.pt, if there is one, in its place."""
    from .run_outputs import is_complete

    damaged = latest.rename(f"{latest}.damaged")
    file = _newest(latest.parent)
    while file is not None and not is_complete(file):
        file.rename(f"{file}.damaged")
        file = _newest(latest.parent)
    if file is not None:
        copy = Path(shutil.copyfile(file, f"{latest}.part"))  # a name that --resume latest does not see
        copy.replace(latest)
    resumes = f"resumes from {file}" if file else "starts anew"
    print(f"superclip: {latest.name} was not written to its end and is now {damaged}; --resume latest {resumes}",
          file=sys.stderr, flush=True)  # fmt: skip


def check_kind(file: str, with_head: bool, with_ddp: bool | None, model: str, has_tasks: bool | None = None) -> None:
    """Raises InputError, with what to do instead, where `file` is of a run of the other kind: plain or --superclip.

    A file that cannot be read is left to stock OpenCLIP in a run without the head.

    Args:
        file: the checkpoint.
        with_head: whether --superclip trains.
        with_ddp: whether the ranks are torch.distributed's; None for a process alone, which reads either's names.
        model: as --model names it.
        has_tasks: whether OpenCLIP 4 resumes it; None to leave that to OpenCLIP.
    """
    from .checkpoint import read_checkpoint

    try:
        checkpoint = read_checkpoint(file)
        has_head = bool(checkpoint.head())
    except InputError as error:
        if with_head:
            raise InputError(f"--resume: {error}") from error
        return
    export = f"superclip export {file} --out FOLDER --model {model}, then --model local-dir:FOLDER"
    # Beside local-dir: and hf-hub:, OpenCLIP ignores --pretrained; with --superclip it is loaded all the same.
    anew = f"--pretrained {file} and a new --name" if with_head or ":" not in model else f"{export} and a new --name"
    if with_head and not has_head:
        raise InputError(
            f"--resume: {file} is of a run without --superclip; to start from its weights with a fresh class head, "
            f"give {anew} instead"
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
            f"with; or, to start from its weights, give {anew}"
        )
    if with_ddp is not None and checkpoint.of_ddp != with_ddp:
        kind = "torchrun's ranks" if checkpoint.of_ddp else "one process or Horovod's ranks"
        raise InputError(
            f"--resume: {file} is of a run of {kind}, whose names OpenCLIP does not resume here: resume with "
            f"the ranks that it began with; or, to start from its weights, give {anew}"
        )


def check_same_model(file: str, model: str) -> None:
    """Raises InputError where the run that wrote `file` trained another model than `model`, as --model names both."""
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
    """Returns the configuration of a model, None where it is not at hand; its tokenizer may lie anywhere."""
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


def check_order(file: str, slices: int | None, seed: int, train_data: str | None) -> None:
    """Raises InputError where the order of the shards is another than that of the run that wrote the checkpoint.

    OpenCLIP's params.txt beside the checkpoints tells how that run was started; a checkpoint that stands alone says
    nothing. Runs without slices have no order to keep.

    Args:
        file: the checkpoint.
        slices: of --superclip-slices, None without it.
        seed, train_data: OpenCLIP's arguments of that name.
    """
    before = read_run_record(Path(file), None).options
    if not before or "seed" not in before:
        return
    began_with = before.get("superclip_slices")
    if slices is None and began_with is None:
        return
    anew = f"to train otherwise, start from its weights: --pretrained {file} and a new --name"
    if slices != began_with:
        found = "is not given" if slices is None else f"is {slices}"
        instead = f"give --superclip-slices {began_with}" if began_with is not None else "leave it out"
        of = f"with --superclip-slices {began_with}" if began_with is not None else "without it"
        raise InputError(f"--superclip-slices {found}, and --resume: {file} is of a run {of}: {instead}; {anew}")
    if seed != before["seed"]:
        raise InputError(
            f"--seed is {seed}, and --resume: {file} is of a run with --seed {before['seed']}, from which its order of "
            f"the shards follows: give --seed {before['seed']}; {anew}"
        )
    if train_data is not None and not _same_shards(train_data, str(before.get("train_data"))):
        raise InputError(
            f"--train-data is {train_data}, and --resume: {file} is of a run on other shards: give --train-data "
            f"'{before.get('train_data')}'; {anew}"
        )


def _same_shards(now: str, before: str) -> bool:
    """Returns whether both name the same shards in the same order; shards that are no longer there may have moved."""
    if now == before:
        return True
    try:
        shards, shards_before = expand(now), expand(before)
    except InputError:  # unbalanced braces, told elsewhere
        return False
    moved = shards_before and not os.path.exists(shards_before[0])
    key = os.path.basename if moved else os.path.abspath
    return [*map(key, shards)] == [*map(key, shards_before)]
