"""The data check: whether the shards of a pattern are there, whole and enough for a run, before it starts."""

import ast
import contextlib
import itertools
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError
from .shards import Look, contract, expand, is_remote, look, look_at, refuse_other_patterns
from .slices import Reads, more_than_a_slice, reads, shards_needed
from .tables import is_table_file

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
        warnings = remote(sum(map(is_remote, shards)), len(shards))
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
    warnings = all_of(checked, looks, listed, long_caption)
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


TOLERANCE = 0.02  # of a number of samples: data sets that are downloaded at different times differ


def check_number(num_shards: int, world_size: int, workers: int, slices: int) -> None:
    """Raises InputError, with what would do, where a worker would have no shard of a slice."""
    workers = max(1, workers)
    needed = shards_needed(slices, world_size, workers)
    if num_shards >= needed:
        return
    advice = "fewer GPUs, or more and smaller shards"
    if num_shards >= slices * world_size:
        advice = f"--workers {num_shards // (slices * world_size)}"
    elif num_shards >= world_size * workers:
        advice = f"--set slices={num_shards // (world_size * workers)}"
    raise InputError(
        f"--data: {num_shards:,} shards are too few for {slices} slices × {world_size} ranks × {workers} workers; "
        f"expected {needed:,} or more, or {advice}"
    )


def equal_sizes(num_samples: int, num_shards: int) -> list[int]:
    """Returns the samples of each shard where nothing but their number in all is known."""
    return [num_samples * (i + 1) // num_shards - num_samples * i // num_shards for i in range(num_shards)]


def check_shares(
    shard_sizes: Sequence[int], slices: int, *, slice_samples: int, batch_size: int, world_size: int, workers: int
) -> list[str]:
    """Returns warnings of what the first slice reads twice and leaves out; InputError where a share fills no batch.

    Args:
        shard_sizes: samples of each shard, as far as they are known.
        slice_samples, batch_size: --train-num-samples and --batch-size.
    """
    first = reads(
        shard_sizes, slices, 0, 0,
        num_samples=slice_samples, batch_size=batch_size, world_size=world_size, workers=workers,
    )  # fmt: skip
    return _unevenly_read(first)


def _unevenly_read(first_slice: Reads) -> list[str]:
    """Returns a warning where the workers' shares of a slice are too small or too uneven to be read once each.

    What a slice holds beyond the samples that are trained of it is left out in any case, and not told here.
    """
    held, once, again = first_slice
    left_out = held - once
    uneven = left_out - max(0, held - once - again)
    if max(again / (once + again), uneven / held) <= TOLERANCE:
        return []
    return [
        f"{_percent(again / (once + again))} of what a slice trains on is read twice, and {_percent(left_out / held)} "
        "of its samples are left out until a later pass, as the workers' shares of the shards are small or uneven; "
        "fewer --workers, GPUs or slices make them larger"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def all_of(checked: dict, looks: Sequence[Look], listed: dict[str, int], long_caption: str) -> list[str]:
    """Returns the warnings that follow from the findings of a data check."""
    return [
        *_bad(checked),
        *_without_long_caption(looks, long_caption),
        *_wrong_list(looks, listed),
        *_other_number(checked),
    ]


def remote(num_remote: int, num_shards: int) -> list[str]:
    """Returns the warning that shards which are not files cannot be looked at."""
    return [
        f"{num_remote:,} of {num_shards:,} shards are URLs or pipes: that they exist and what they hold is not checked"
    ]


def _bad(checked: dict) -> list[str]:
    if not checked["bad"]:
        return []
    seen = "" if checked["full"] else ", and the first and the last alone were read: --check reads all"
    return [f"training passes over {len(checked['bad']):,} shards that are missing or broken{seen}"]


def _without_long_caption(looks: Sequence[Look], long_caption: str) -> list[str]:
    num_samples = sum(look.num_samples for look in looks)
    without = num_samples - sum(look.num_long for look in looks)
    if not long_caption or not without:
        return []
    return [f"{without:,} of {num_samples:,} samples looked at have no long caption '{long_caption}'"]


def _wrong_list(looks: Sequence[Look], listed: dict[str, int]) -> list[str]:
    wrong = [
        look for look in looks if not look.problem and listed.get(look.shard, look.num_samples) != look.num_samples
    ]
    if not wrong:
        return []
    first = wrong[0]
    return [
        f"sizes.json is wrong about {len(wrong):,} shards: {first.shard} holds {first.num_samples:,} samples, not "
        f"{listed[first.shard]:,}"
    ]


def _other_number(checked: dict) -> list[str]:
    expected = checked["samples_expected"]
    found = checked["samples"] or checked["samples_listed"]
    if not expected or not found or abs(found - expected) <= TOLERANCE * expected:
        return []
    where = "the shards hold" if checked["samples"] else "sizes.json lists"
    return [f"{where} {found:,} samples, and the recipe says {expected:,}: --set data_samples={found} plans with those"]


NUM_SHARDS = 3  # of each source: OpenCLIP skips a shard that is missing or broken, so one alone proves nothing


NUM_LOOKED_FOR = 1000  # shards, which a network's file system tells in a moment


def is_table(data: str, dataset_type: str, flag: str = "--train-data") -> bool:
    """Returns whether OpenCLIP reads the data as a table; InputError, which names `flag`, where it could not tell."""
    if dataset_type != "auto":
        return dataset_type == "csv"
    if not is_table_file(data) and not data.endswith(".tar"):
        raise InputError(f"{flag}: {data} ends in neither .tar, .csv nor .tsv: say what it is with --dataset-type")
    return is_table_file(data)


def check_shards(
    train_data: str, long_caption: str, *, num_samples: int | None, world_size: int, workers: int, resampled: bool
) -> list[str]:
    """Returns what is to be said of the shards of `train_data`; InputError where OpenCLIP could not train on them.

    Looks into the first local shards of each source; URLs and pipes are left to OpenCLIP.

    Args:
        long_caption: where the long caption is; "" where none is read.
        num_samples: --train-num-samples, None where it is not given.
        resampled: whether a worker draws its shards from all of them.
    """
    shards = expand(train_data, "--train-data")
    found = [path for source in train_data.split("::") for path in _first_shards(source)]
    needed = shards_needed(1, world_size, workers)
    if len(shards) < needed and not resampled:
        raise InputError(
            f"--train-data: {len(shards):,} shards are too few for {world_size} ranks × {max(1, workers)} workers; "
            f"expected {needed:,} or more, or fewer --workers"
        )
    if found:
        _check_captions(found, long_caption)
    if num_samples is None and total_samples(train_data) is None:
        raise InputError(
            "--train-num-samples is not given, and no sizes.json beside the shards tells it: expected the samples of "
            "an epoch"
        )
    return missing_shards(train_data, "--train-data")


def check_validation_shards(val_data: str) -> list[str]:
    """Returns what is to be said of the shards of --val-data; InputError where no sample of them can be measured."""
    found = [path for source in val_data.split("::") for path in _first_shards(source, "--val-data")]
    if found:
        _check_captions(found, "", "--val-data")
    return missing_shards(val_data, "--val-data")


def missing_shards(data: str, flag: str) -> list[str]:
    """Returns a line on the local shards that are not there, or nothing: OpenCLIP trains without them."""
    local = [shard for shard in expand(data, flag) if not is_remote(shard)][:NUM_LOOKED_FOR]
    missing = [shard for shard in local if not os.path.exists(shard)]
    if not missing:
        return []
    return [
        f"{flag}: {len(missing):,} of {'the first ' * (len(local) == NUM_LOOKED_FOR)}{len(local):,} shards are not "
        f"there, the first is {missing[0]}; OpenCLIP goes on without them"
    ]


def total_samples(train_data: str) -> int | None:
    """Returns the samples of all shards as OpenCLIP finds them in a file beside the shards, None where it does not."""
    shards = expand(train_data)
    folder = os.path.dirname(shards[0])
    with contextlib.suppress(OSError, KeyError, ValueError, SyntaxError):
        if os.path.exists(sizes := os.path.join(folder, "sizes.json")):
            sizes = json.loads(Path(sizes).read_text())
            return sum(int(sizes[os.path.basename(shard)]) for shard in shards)
        if os.path.exists(length := os.path.join(folder, "__len__")):
            return ast.literal_eval(Path(length).read_text())
    return None


def _first_shards(source: str, flag: str = "--train-data") -> list[str]:
    """Returns the first shards of a source that exist; InputError where none does. URLs and pipes have none."""
    if is_remote(source):
        return []
    names = expand(source, flag)
    refuse_other_patterns(names[0], flag)
    paths = list(itertools.islice(filter(os.path.exists, names), NUM_SHARDS))
    if not paths:
        raise InputError(f"{flag}: there is no file {source}")
    return paths


def _check_captions(shards: list[str], place: str, flag: str = "--train-data") -> None:
    """Raises InputError where no sample of these shards has picture and caption, and a long one where `place` asks."""
    refusals = []
    for shard in shards:
        found = look(shard, place, until_found=True)
        if found.problem:
            refusals.append(f"{flag}: {shard}: {found.problem}")
        elif place and not found.num_long:
            members = f"its members are {found.members}"
            refusals.append(f"--superclip-long-caption: no sample of {shard} holds '{place}'; {members}")
        else:
            return
    raise InputError(refusals[-1])


def check_slices(
    slices: int,
    train_data: str,
    dataset_type: str,
    resampled: bool,
    num_samples: int | None,
    batch_size: int,
    world_size: int,
    workers: int,
) -> None:
    """Raises InputError for training data that cannot be passed over in `slices`, and for a wrong --train-num-samples.

    Takes OpenCLIP's arguments of that name.
    """
    tar_files = dataset_type == "auto" and train_data.endswith(".tar")
    if dataset_type != "webdataset" and not tar_files:
        raise InputError(
            f"--superclip-slices cuts the shards of a WebDataset, and --dataset-type is {dataset_type}: expected "
            "webdataset and a pattern of .tar files, or leave --superclip-slices out"
        )
    if resampled:
        raise InputError(
            "--superclip-slices reads every shard once a pass, and --dataset-resampled draws them with replacement: "
            "leave one of them out"
        )
    num_shards = len(expand(train_data, "--train-data"))
    workers, needed = max(1, workers), shards_needed(slices, world_size, workers)
    if num_shards < needed:
        raise InputError(
            f"--superclip-slices {slices} leaves a data-loading worker without a shard: --train-data has {num_shards} "
            f"shards; expected {needed} or more, {slices} slices × {world_size} ranks × {workers} workers"
        )
    total = total_samples(train_data)
    if num_samples is None or (total and more_than_a_slice(num_samples, total, slices, batch_size * world_size)):
        found = "is not given" if num_samples is None else f"is {num_samples:,}"
        expected = f", {math.ceil(total / slices):,} of {total:,}" if total else ""
        raise InputError(f"--train-num-samples {found}; expected the samples of one of the {slices} slices{expected}")
