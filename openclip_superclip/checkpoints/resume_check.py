"""Which checkpoint --resume takes, and whether this run can resume it; checked before anything is loaded."""

import os
import shutil
import sys
from pathlib import Path

from ..errors import InputError
from ..model_files import know_model
from .run_options import read_run_record


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
    if os.path.isdir(resume):
        newest = _newest(Path(resume)) or _newest(Path(resume, "checkpoints"))
        expected = f"a checkpoint, such as {newest}" if newest else "a checkpoint, and there is none in it"
        raise InputError(f"--resume: {resume} is a folder; expected {expected}")
    if not os.path.isfile(resume):
        raise InputError(f"--resume: there is no file {resume}; expected a checkpoint, or latest")
    return resume


def _newest(folder: Path) -> Path | None:
    from open_clip_train.main import natural_key

    return max(folder.glob("*.pt"), key=lambda file: natural_key(file.name), default=None)


def _latest(folder: str, save_most_recent: bool, set_aside: bool) -> str | None:
    from .checkpoint import is_complete, latest_checkpoint

    file = latest_checkpoint(folder, save_most_recent)
    if save_most_recent:
        if not os.path.isfile(file):
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
    from .checkpoint import is_complete

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


def check_kind(file: str, with_head: bool, with_ddp: bool | None, model: str) -> None:
    """Raises InputError, with what to do instead, where `file` is of a run of the other kind: plain or --superclip.

    A file that cannot be read is left to stock OpenCLIP in a run without the head.

    Args:
        file: the checkpoint.
        with_head: whether --superclip trains.
        with_ddp: whether the ranks are torch.distributed's; None for a process alone, which reads either's names.
        model: as --model names it.
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
    from open_clip_train.data import expand_urls

    if now == before:
        return True
    try:
        shards, shards_before = expand_urls(now)[0], expand_urls(before)[0]
    except ValueError:  # unbalanced braces, told elsewhere
        return False
    moved = shards_before and not os.path.exists(shards_before[0])
    key = os.path.basename if moved else os.path.abspath
    return [*map(key, shards)] == [*map(key, shards_before)]
