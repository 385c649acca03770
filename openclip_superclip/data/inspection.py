"""Checks of data before a run starts; of shards: existence, readability, contents, and whether they
suffice for a run."""

import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from tqdm.contrib.concurrent import thread_map

from ..errors import InputError, listed
from ..files import read_json
from ..flags import Config
from .caption_text import caption_member, has_long_caption, text_of
from .data_check import BadFile, DataCheck
from .images import check_image
from .slices import Split, equal_sizes
from .tables import MAX_DECODED, SHORT, Columns, check_table
from .tar_shards import (
    BROKEN,
    IMAGES,
    NO_FILE,
    check_any_exists,
    expand,
    is_remote,
    is_trained,
    read_members,
    why_broken,
)
from .workers import work_on

NUM_READ = 5  # shards of which the beginnings are read before training starts
NUM_DECODED = 40  # images of a shard
NUM_LOOKED_FOR = 1000  # shards, before training starts
NUM_THREADS = 32  # that query file sizes, for network file systems
# of the number of samples: downloads of the same data set at different times differ
TOLERANCE = 0.02


def inspect_shard(
    shard: str,
    long_key: str = "",
    *,
    until_found: bool = False,
    caption: str = "txt",
) -> DataCheck:
    """Reads a local shard, given the keys of the long and the short caption.

    It decodes the first NUM_DECODED images and, if none of them can be read, the next until one
    can. With `until_found` it stops after these, once a caption and a long caption have been read.
    """
    check = DataCheck(shard)
    captions = []
    wanted = {caption, caption_member(long_key), *IMAGES}
    problem = ""
    try:
        for sample in read_members(shard, wanted):
            check.members |= dict.fromkeys(name for name in sample if not name.startswith("__"))
            if not is_trained(sample, caption):
                check.num_incomplete += 1
                continue
            captions.append(_caption(sample[caption]))
            check.num_long += bool(long_key) and has_long_caption(sample, long_key)
            if wanted.issuperset(IMAGES):
                image = next(sample[name] for name in IMAGES if name in sample)
                unreadable, ignored = check_image(image)
                check.count_image(unreadable, ignored)
                if check.num_decoded >= NUM_DECODED and check.num_unreadable < check.num_decoded:
                    wanted.difference_update(IMAGES)  # the next samples have no images
            elif until_found and captions[-1] and (check.num_long or not long_key):
                break
    except BROKEN as error:
        problem = why_broken(error)
    check.count_captions(captions)
    problem = problem or _problem_of_shard(check, caption)
    if problem:
        check.bad.append(BadFile(shard, problem))
    return check


def _caption(content: bytes) -> str:
    """Returns the text of a caption; "" if it is not UTF-8, so that OpenCLIP skips the sample."""
    try:
        return text_of(content)
    except UnicodeDecodeError:
        return ""


def _problem_of_shard(check: DataCheck, caption: str) -> str:
    """Returns why training reads nothing in a shard that was read without an error, or ""."""
    if not check.num_samples:
        return (
            f"no sample has an image (.{', .'.join(IMAGES)}) and a caption (.{caption}); its "
            f"members are {listed(check.members) or 'nothing'}"
        )
    if check.num_empty == check.num_samples:
        return f"all of its captions (.{caption}) are empty or not UTF-8"
    if check.num_unreadable == check.num_decoded:
        return f"none of its {check.num_samples:,} images can be read: {check.image_problem}"
    return ""


def inspect(
    pattern: str,
    flag: str,
    long_caption: str = "",
    *,
    full: bool = False,
    caption: str = "txt",
    most: int | None = None,
    reads: bool = True,
) -> DataCheck:
    """Returns what the shards of a pattern contain; URLs and pipes are not inspected.

    Raises InputError if no shard of a source exists, or if the inspected shards contain no training
    samples.

    Args:
        long_caption: the key of the long caption; "" if it is not used.
        full: read all shards, with a process per core, instead of the beginnings of a few.
        caption: the extension of the short caption.
        most: the number of shards to look for; by default all.
        reads: whether to look for shards and read them, and not only their names and sizes.json.
    """
    shards = expand(pattern, flag)
    check = DataCheck(pattern, flag, num_shards=len(shards), num_checked=len(shards), shards=shards)
    check.listed = listed_samples(shards, flag)
    check.num_listed = sum(check.listed.get(shard, 0) for shard in shards) or None
    if not reads or any(map(is_remote, shards)):
        return check
    for source in pattern.split("::"):
        check_any_exists(expand(source, flag), flag)
    names = shards[:most]
    in_order = thread_map(_file_size, names, max_workers=NUM_THREADS, disable=True)
    sizes = dict(zip(names, in_order, strict=True))
    existing = {shard: size for shard, size in sizes.items() if size is not None}
    check.full = full
    check.num_found = len(existing)
    check.num_bytes = sum(existing.values())
    read = functools.partial(
        inspect_shard,
        long_key=long_caption,
        until_found=not full,
        caption=caption,
    )
    readable = list(existing) or [next(filter(os.path.exists, shards))]
    chosen = readable if full else _sample(readable)
    for part in work_on(read, chosen, os.cpu_count() or 1 if full else 1, "--check"):
        check.add(part)
    first = check.parts[0]
    if len(check.bad) == len(check.parts):
        raise InputError(f"{flag}: {first.data}: {first.bad[0].problem}")
    if long_caption and not check.num_long:
        raise InputError(
            f"{flag}: no sample of {first.data} holds the long caption '{long_caption}'; its "
            f"members are {listed(first.members) or 'nothing'}"
        )
    check.bad += [BadFile(shard, NO_FILE) for shard, size in sizes.items() if size is None]
    if check.bad:
        check.warnings.append(
            f"{flag}: missing or broken shards: {len(check.bad):,} of {len(sizes):,}, such as "
            f"{check.bad[0].file}; training skips them"
        )
    check.warnings += check.content_warnings("the class loss reads no word")
    check.warnings += _shard_warnings(check, long_caption if full else "")
    return check


def _sample(shards: list[str]) -> list[str]:
    """Returns at most NUM_READ shards, evenly spaced, with the first and the last one."""
    last = len(shards) - 1
    return [
        shards[place] for place in sorted({last * n // (NUM_READ - 1) for n in range(NUM_READ)})
    ]


def _shard_warnings(check: DataCheck, long_caption: str) -> Iterator[str]:
    """Yields warnings on images of readable shards, and on missing long captions if they are looked
    for."""
    partly = [part for part in check.parts if part.num_unreadable and not part.bad]
    if partly:
        num_unreadable = sum(part.num_unreadable for part in partly)
        yield (
            f"{check.flag}: {num_unreadable:,} of {check.num_decoded:,} decoded images cannot be "
            f"read, the first is in {partly[0].data} ({partly[0].image_problem}): training skips "
            "them"
        )
    num_missing = check.num_samples - check.num_long
    if long_caption and num_missing:
        yield (
            f"{check.flag}: samples without the long caption '{long_caption}': {num_missing:,} of "
            f"{check.num_samples:,}"
        )


def _file_size(shard: str) -> int | None:
    """Returns the size of a file in bytes, or None if it does not exist."""
    return os.path.getsize(shard) if os.path.exists(shard) else None


def listed_samples(shards: list[str], flag: str) -> dict[str, int]:
    """Returns the numbers of samples in the sizes.json files beside the shards; InputError if
    one cannot be read."""
    numbers = {}
    local = [shard for shard in shards if not is_remote(shard)]
    for folder, names in itertools.groupby(local, key=lambda shard: Path(shard).parent):
        if (folder / "sizes.json").exists():
            sizes = read_json(folder / "sizes.json", flag=flag, advice="remove it")
            numbers |= {name: sizes[Path(name).name] for name in names if Path(name).name in sizes}
    if numbers and not any(numbers.values()):
        raise InputError(
            f"{flag}: sizes.json beside {shards[0]} lists no samples: correct or remove it"
        )
    for shard, number in numbers.items():
        if not isinstance(number, int) or number < 0:
            raise InputError(
                f"{flag}: sizes.json gives {shard} {number!r} samples: correct or remove it"
            )
    return numbers


def check_data(
    data: str,
    flag: str,
    data_kind: str,
    columns: Columns,
    config: Config = SHORT,
    *,
    full: bool = False,
    decodes: bool = True,
    **of_shards,
) -> DataCheck:
    """Returns what training or validation data of a kind contain, before a run starts: nothing but
    its name if it is neither a table nor shards.

    Args:
        full: read all shards or images, instead of a few.
        decodes: whether to decode images of a table.
        of_shards: caption, most and reads, as for `inspect`.
    """
    if data_kind == "table":
        most = MAX_DECODED if decodes else 0
        return check_table(data, columns, flag, config=config, max_decoded=None if full else most)
    if data_kind != "shards":
        return DataCheck(data, flag)
    return inspect(data, flag, config.long_caption_key, full=full, **of_shards)


def check_samples(check: DataCheck, split: Split, expected: int) -> None:
    """Adds warnings on the numbers of samples in shards, of which the recipe assumes `expected`;
    InputError if its slices need more."""
    shards = check.shards
    in_json = check.listed
    if all(shard in in_json for shard in shards) and split.exceeds(check.num_listed):
        raise InputError(
            f"{split.flag}: sizes.json lists {check.num_listed:,} samples, too few for "
            f"{split.slices} slices of {split.slice_samples:,}: --set "
            f"data_samples={check.num_listed} plans with those"
        )
    num_remote = sum(map(is_remote, shards))
    if num_remote:
        check.warnings.append(
            f"{num_remote:,} of {len(shards):,} shards are URLs or pipes, which are not checked"
        )
    counted = {part.data: part.num_samples for part in check.parts} if check.full else {}
    sizes = counted or in_json
    num_samples = sum(sizes.get(shard, 0) for shard in shards)  # a shard may be named twice
    if num_samples and abs(num_samples - expected) > TOLERANCE * expected:
        source = "the shards hold" if counted else "sizes.json lists"
        check.warnings.append(
            f"{source} {num_samples:,} samples, and the recipe assumes {expected:,}: --set "
            f"data_samples={num_samples} plans with those"
        )
    if not sizes:  # then all shards are assumed to be equal
        sizes = dict(zip(shards, equal_sizes(expected, len(shards)), strict=True))
    mean = round(sum(sizes.values()) / len(sizes))
    bad = {file.file for file in check.bad}
    check.warnings += split.check_sizes(
        [0 if shard in bad else sizes.get(shard, mean) for shard in shards]
    )
