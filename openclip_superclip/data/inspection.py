"""Inspection of shards: existence, readability, contents, and whether they suffice for a run."""

import contextlib
import functools
import itertools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError, listed
from ..files import read_json
from . import tar_shards as tar
from .images import check_image, ignored_warning
from .slices import Split, equal_sizes, more_than_a_slice

NUM_MORE = 3  # shards to try before all are assumed to be broken
NUM_DECODED = 100  # images of a shard
NUM_LOOKED_FOR = 1000  # shards, before training starts
NUM_THREADS = 32  # that query file sizes, for network file systems
# of the number of samples: downloads of the same data set at different times differ
TOLERANCE = 0.02


@dataclass(frozen=True)
class ShardReport:
    """The contents of a shard; `problem` is why training could not read all of it, or ""."""

    shard: str
    num_samples: int  # readable samples with image and caption
    num_long: int  # samples with a long caption
    num_decoded: int  # images
    num_unreadable: int  # of these
    ignored: Counter  # numbers of decoded images by the property that OpenCLIP ignores
    members: str  # of all samples
    problem: str


def inspect_shard(
    shard: str,
    place: str = "",
    until_found: bool = False,
    caption: str = "txt",
    num_images: int = NUM_DECODED,
) -> ShardReport:
    """Reads a local shard, given the keys of the long and the short caption.

    It decodes the first `num_images` images and, if none of them can be read, the next until one
    can. With `until_found` it stops after these, once a caption and a long caption have been read.
    """
    members, problem, image_error = {}, "", ""
    num_samples = num_long = num_decoded = num_unreadable = 0
    ignored = Counter()
    has_caption = False
    wanted = {caption, tar.caption_member(place), *tar.IMAGES}
    try:
        for sample in tar.read_members(shard, wanted):
            members |= dict.fromkeys(name for name in sample if not name.startswith("__"))
            if not tar.is_trained(sample, caption):
                continue
            num_samples += 1
            with contextlib.suppress(UnicodeDecodeError):  # OpenCLIP skips such a sample
                has_caption |= bool(sample[caption].decode().strip())
            num_long += bool(place) and tar.has_long_caption(sample, place)
            if wanted.issuperset(tar.IMAGES):
                image = next(sample[name] for name in tar.IMAGES if name in sample)
                checked = check_image(image)
                num_decoded += 1
                if checked.problem:
                    image_error = checked.problem
                    num_unreadable += 1
                if checked.ignored:
                    ignored[checked.ignored] += 1
                if num_decoded >= num_images and num_unreadable < num_decoded:
                    wanted.difference_update(tar.IMAGES)  # the next samples have no images
            elif until_found and has_caption and (num_long or not place):
                break
    except tar.BROKEN as error:
        problem = tar.why_broken(error)
    found = listed(members) or "nothing"
    if not problem and not num_samples:
        problem = (
            f"no sample has an image (.{', .'.join(tar.IMAGES)}) and a caption "
            f"(.{caption}); its members are {found}"
        )
    elif not problem and not has_caption:
        problem = f"all of its captions (.{caption}) are empty or not UTF-8"
    elif not problem and num_unreadable == num_decoded:
        problem = f"none of its {num_samples:,} images can be read: {image_error}"
    return ShardReport(
        shard=shard,
        num_samples=num_samples,
        num_long=num_long,
        num_decoded=num_decoded,
        num_unreadable=num_unreadable,
        ignored=ignored,
        members=found,
        problem=problem,
    )


@dataclass
class Inspection:
    """A report on shards; it is empty if some are URLs or pipes, which are not inspected."""

    shards: list[str]
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of the shards that exist
    bad: dict[str, str] = field(default_factory=dict)  # the problems of missing and broken shards
    reports: list[ShardReport] = field(default_factory=list)  # of the shards that were read
    warnings: list[str] = field(default_factory=list)


def inspect(
    pattern: str,
    flag: str,
    long_caption: str = "",
    *,
    full: bool = False,
    caption: str = "txt",
    most: int | None = None,
    num_images: int = NUM_DECODED,
) -> Inspection:
    """Returns a report on the shards of a pattern; URLs and pipes are not inspected.

    Raises InputError if no shard of a source exists, or if the inspected shards contain no training
    samples.

    Args:
        long_caption: the key of the long caption; "" if it is not used.
        full: read all shards, with a process per core, instead of the beginnings of the first and
            the last one and, if these are broken, of a few more.
        caption: the extension of the short caption.
        most: the number of shards to look for; by default all.
        num_images: the number of images to decode in each inspected shard.
    """
    found = Inspection(tar.expand(pattern, flag))
    if any(map(tar.is_remote, found.shards)):
        return found
    for source in pattern.split("::"):
        tar.check_any_exists(tar.expand(source, flag), flag)
    sizes = _file_sizes(found.shards[:most])
    found.sizes = {shard: size for shard, size in sizes.items() if size is not None}
    there = list(found.sizes) or [next(filter(os.path.exists, found.shards))]
    read = functools.partial(
        inspect_shard,
        place=long_caption,
        until_found=not full,
        caption=caption,
        num_images=num_images,
    )
    if full:
        reports = tar.work_on(read, there, os.cpu_count() or 1, "--check")
        found.reports = list(
            tqdm(reports, total=len(there), desc="reading shards", unit=" shards", disable=None)
        )
    else:
        found.reports = [read(shard) for shard in there[:1] + there[1:][-1:]]
        for shard in there[1:-1][:NUM_MORE]:
            if all(report.problem for report in found.reports):
                found.reports.append(read(shard))
    first = found.reports[0]
    if all(report.problem for report in found.reports):
        raise InputError(f"{flag}: {first.shard}: {first.problem}")
    num_samples = sum(report.num_samples for report in found.reports)
    num_long = sum(report.num_long for report in found.reports)
    if long_caption and not num_long:
        raise InputError(
            f"{flag}: no sample of {first.shard} holds the long caption '{long_caption}'; its "
            f"members are {first.members}"
        )
    problems = {report.shard: report.problem for report in found.reports if report.problem}
    problems |= {shard: "no such file" for shard, size in sizes.items() if size is None}
    found.bad = {shard: problems[shard] for shard in found.shards if shard in problems}
    if found.bad:
        found.warnings.append(
            f"{flag}: {len(found.bad):,} of {len(sizes):,} shards are missing or broken, the "
            f"first is {next(iter(found.bad))}: training skips them"
        )
    ignored = sum((report.ignored for report in found.reports), Counter())
    num_decoded = sum(report.num_decoded for report in found.reports)
    found.warnings += ignored_warning(ignored, num_decoded, flag)
    partly = [report for report in found.reports if report.num_unreadable and not report.problem]
    if partly:
        num_unreadable = sum(report.num_unreadable for report in partly)
        found.warnings.append(
            f"{flag}: {num_unreadable:,} of {num_decoded:,} decoded images cannot be read, the "
            f"first is in {partly[0].shard}: training skips them"
        )
    if full and long_caption and num_long < num_samples:
        without = f"{num_samples - num_long:,} of {num_samples:,}"
        found.warnings.append(f"{flag}: {without} samples have no long caption '{long_caption}'")
    return found


def _file_sizes(shards: list[str]) -> dict[str, int | None]:
    """Returns the size of each file in bytes, or None if it does not exist."""

    def size(shard: str) -> int | None:
        with contextlib.suppress(OSError):
            return os.stat(shard).st_size
        return None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return dict(zip(shards, pool.map(size, shards), strict=True))


def listed_samples(shards: list[str], flag: str = "--data") -> dict[str, int]:
    """Returns the numbers of samples in the sizes.json files beside the shards; InputError if
    one cannot be read."""
    numbers = {}
    for folder, names in itertools.groupby(shards, key=lambda shard: Path(shard).parent):
        if (folder / "sizes.json").exists():
            sizes = read_json(folder / "sizes.json", flag=flag, advice="remove it")
            numbers |= {name: sizes[Path(name).name] for name in names if Path(name).name in sizes}
    if wrong := [
        shard for shard, number in numbers.items() if not isinstance(number, int) or number < 0
    ]:
        raise InputError(
            f"{flag}: sizes.json gives {wrong[0]} {numbers[wrong[0]]!r} samples: correct or "
            "remove it"
        )
    return numbers


def total_samples(shards: list[str]) -> int | None:
    """Returns the total number of samples if OpenCLIP finds it, in the sizes.json or `__len__`
    of the only folder."""
    if len({os.path.dirname(shard) for shard in shards}) > 1:
        return None
    numbers = listed_samples(shards, "--train-data")
    if len(numbers) == len(shards):
        return sum(numbers.values())
    with contextlib.suppress(OSError, ValueError):
        return int(Path(shards[0]).with_name("__len__").read_text())
    return None


def check_shards(
    pattern: str,
    split: Split,
    expected: int | None = None,
    full: bool = False,
    *,
    long_caption: str = "",
) -> dict:
    """Returns a report on the shards of --data, for JSON; InputError if training could not start.

    With `full` all shards are read; otherwise only the first and the last. The recipe assumes
    `expected` samples.
    """
    split.check()
    found = inspect(pattern, split.flag, long_caption, full=full)
    was_read = bool(found.reports)
    numbers = listed_samples(found.shards, split.flag)
    num_listed, is_counted = sum(numbers.values()), full and was_read
    global_batch_size = (split.batch_size or 1) * split.world_size
    is_listed = split.slice_samples and len(numbers) == len(found.shards)
    if is_listed and more_than_a_slice(
        split.slice_samples, num_listed, split.slices, global_batch_size
    ):
        raise InputError(
            f"{split.flag}: sizes.json lists {num_listed:,} samples, too few for "
            f"{split.slices} slices of {split.slice_samples:,}: --set "
            f"data_samples={num_listed} plans with those"
        )
    warnings = found.warnings
    if num_remote := sum(map(tar.is_remote, found.shards)):
        warnings.append(
            f"{num_remote:,} of {len(found.shards):,} shards are URLs or pipes, which are not "
            "checked"
        )
    if is_counted:
        numbers = {report.shard: report.num_samples for report in found.reports}
    samples = sum(numbers.values())
    if expected and samples and abs(samples - expected) > TOLERANCE * expected:
        where = "the shards hold" if is_counted else "sizes.json lists"
        warnings.append(
            f"{where} {samples:,} samples, and the recipe assumes {expected:,}: --set "
            f"data_samples={samples} plans with those"
        )
    if not numbers and expected:
        numbers = dict(zip(found.shards, equal_sizes(expected, len(found.shards)), strict=True))
    if split.slice_samples and split.batch_size and numbers:
        mean = round(sum(numbers.values()) / len(numbers))
        warnings += split.check_sizes(
            [0 if s in found.bad else numbers.get(s, mean) for s in found.shards]
        )
    return {
        "data": pattern,
        "shards": len(found.shards),
        "found": len(found.sizes) if was_read else None,
        "bytes": sum(found.sizes.values()) if was_read else None,
        "full": is_counted,
        "num_checked": len(found.shards),
        "samples": samples if is_counted else None,
        "samples_listed": num_listed or None,
        "samples_expected": expected,
        "bad": [{"shard": shard, "problem": problem} for shard, problem in found.bad.items()],
        "good": tar.contract([shard for shard in found.shards if shard not in found.bad])
        if found.bad
        else None,
        "warnings": warnings,
    }
