"""Whether a resumed run reads the shards in the order in which it began, so that a pass still reads each once."""

import os
from pathlib import Path

from ..errors import InputError
from .run_options import read_run_record


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
