"""The data check: whether the shards of a pattern are there, whole and enough for a run, before it starts."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError
from . import shard_scan_warnings as scan_warnings
from .shard_arithmetic import check_number, check_shares, equal_sizes
from .shard_contents import Look, look_at
from .shard_pattern import contract, expand, is_remote, refuse_other_patterns
from .slices import more_than_a_slice

NUM_THREADS = 32  # that ask a network's file system for sizes
MORE = 3  # shards, before a broken first and last one are taken for all


def check_data(
    pattern: str,
    world_size: int,
    workers: int,
    slices: int,
    expected_samples: int | None = None,
    full: bool = False,
    *,
    slice_samples: int | None = None,
    batch_size: int | None = None,
    long_caption: str = "",
    jobs: int | None = None,
) -> dict:
    """Returns what is known of the shards of --train-data, for JSON; InputError where training could not start.

    Args:
        world_size, workers, slices: every worker of every rank needs a shard of each slice.
        expected_samples: pairs in the data set.
        full: whether to read all shards, in `jobs` processes, or the first and the last alone.
        slice_samples, batch_size: --train-num-samples and --batch-size, for what a slice reads twice.
        long_caption: where the long caption is; "" where none is read.
    """
    shards = expand(pattern)
    refuse_other_patterns(shards[0])
    checked = {
        "data": pattern, "shards": len(shards), "found": None, "bytes": None, "full": False, "samples": None,
        "samples_listed": None, "samples_expected": expected_samples, "bad": [], "good": None, "warnings": [],
    }  # fmt: skip
    shares = {"slice_samples": slice_samples, "batch_size": batch_size, "world_size": world_size, "workers": workers}
    if any(map(is_remote, shards)):
        check_number(len(shards), world_size, workers, slices)
        warnings = scan_warnings.remote(sum(map(is_remote, shards)), len(shards))
        if slice_samples and batch_size and expected_samples:
            warnings += check_shares(equal_sizes(expected_samples, len(shards)), slices, **shares)
        return checked | {"warnings": warnings}
    sizes = _file_sizes(shards)
    if not sizes:
        hint = "; superclip demo --data-only writes the demo's" if pattern.startswith("demo/data/") else ""
        others = f", nor any other of {len(shards):,} shards" if len(shards) > 1 else ""
        raise InputError(f"--data: there is no file {shards[0]}{others}{hint}")
    check_number(len(shards), world_size, workers, slices)
    looks = look_at(list(sizes), long_caption, jobs) if full else _look_at_ends(list(sizes), long_caption)
    if all(look.problem for look in looks):
        raise InputError(f"--data: {looks[0].shard}: {looks[0].problem}")
    if long_caption and not any(look.num_long for look in looks):
        said = f"no sample has the long caption '{long_caption}'; its members are {looks[0].members}"
        raise InputError(f"--data: {looks[0].shard}: {said}")
    listed = listed_samples(shards)
    total = sum(listed.values()) if len(listed) == len(shards) else None  # as training finds it
    if total and slice_samples and more_than_a_slice(slice_samples, total, slices, batch_size * world_size):
        raise InputError(
            f"--data: sizes.json lists {total:,} samples, too few for {slices} slices of {slice_samples:,}: "
            f"--set data_samples={total} plans with those"
        )
    checked |= _findings(shards, sizes, looks, listed, full)
    warnings = scan_warnings.all_of(checked, looks, listed, long_caption)
    held = _held(shards, checked, looks, listed)
    if slice_samples and batch_size and held:
        warnings += check_shares(held, slices, **shares)
    return checked | {"warnings": warnings}


def _file_sizes(shards: list[str]) -> dict[str, int]:
    """Returns the bytes of those that exist."""

    def size(shard: str) -> int | None:
        try:
            return os.stat(shard).st_size
        except OSError:
            return None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        sizes = list(tqdm(pool.map(size, shards), total=len(shards), desc="looking for shards", disable=None))
    return {shard: size for shard, size in zip(shards, sizes, strict=True) if size is not None}


def _look_at_ends(shards: list[str], long_caption: str) -> list[Look]:
    """Returns looks at the first and the last shard, and at a few more where both are broken."""
    looks = look_at(shards[:1] + shards[1:][-1:], long_caption)
    return looks + (look_at(shards[1:-1][:MORE], long_caption) if all(look.problem for look in looks) else [])


def listed_samples(shards: list[str]) -> dict[str, int]:
    """Returns the samples of the shards as the sizes.json beside them tell, as far as there are such."""
    beside = {}
    for folder in {Path(shard).parent for shard in shards}:
        try:
            beside[folder] = {
                name: int(number) for name, number in json.loads((folder / "sizes.json").read_text()).items()
            }
        except OSError:
            beside[folder] = {}
        except (ValueError, TypeError, AttributeError):
            raise InputError(f"--data: {folder}/sizes.json is no mapping of shards to numbers: remove it") from None
    listed = {shard: beside[Path(shard).parent].get(Path(shard).name) for shard in shards}
    return {shard: number for shard, number in listed.items() if number is not None}


def _findings(shards: list[str], sizes: dict, looks: list[Look], listed: dict, full: bool) -> dict:
    bad = {shard: "no such file" for shard in shards if shard not in sizes}
    bad |= {look.shard: look.problem for look in looks if look.problem}
    return {
        "found": len(sizes),
        "bytes": sum(sizes.values()),
        "full": full,
        "samples": sum(look.num_samples for look in looks) if full else None,
        "samples_listed": sum(listed.values()) if listed else None,
        "bad": [{"shard": shard, "problem": bad[shard]} for shard in shards if shard in bad],
        "good": contract([shard for shard in shards if shard not in bad]) if bad else None,
    }


def _held(shards: list[str], checked: dict, looks: list[Look], listed: dict) -> list[int] | None:
    """Returns the samples of each shard: as counted, as listed, or equally many of those expected; None if unknown."""
    known = {look.shard: look.num_samples for look in looks} if checked["full"] else listed
    expected = checked["samples_expected"]
    if not known and not expected:
        return None
    if not known:
        known = dict(zip(shards, equal_sizes(expected, len(shards)), strict=True))
    mean = round(sum(known.values()) / len(known))
    bad = {one["shard"] for one in checked["bad"]}
    return [0 if shard in bad else known.get(shard, mean) for shard in shards]
