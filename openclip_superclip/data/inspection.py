"""Inspection of shards: existence, readability, contents, and whether they suffice for a run."""

import contextlib
import functools
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm.contrib.concurrent import thread_map

from ..errors import InputError, listed, reason
from ..files import read_json
from .caption_text import caption_member, has_long_caption, text_of
from .images import check_image, ignored_warning
from .slices import Split, equal_sizes, more_than_a_slice
from .tar_shards import (
    IMAGES,
    check_any_exists,
    contract,
    expand,
    is_remote,
    is_trained,
    read_members,
)
from .truncated_tar import BROKEN, why_broken
from .workers import work_on

NUM_MORE = 3  # shards to try before all are assumed to be broken
NUM_DECODED = 100  # images of a shard
NUM_LOOKED_FOR = 1000  # shards, before training starts
NUM_THREADS = 32  # that query file sizes, for network file systems
# of the number of samples: downloads of the same data set at different times differ
TOLERANCE = 0.02
# by extension, as webdataset decodes members
DECODERS = dict.fromkeys(("cls", "cls2", "index", "inx", "id"), int)
DECODERS |= dict.fromkeys(("json", "jsn"), json.loads)


@dataclass
class ShardReport:
    """The contents of a shard; `problem` is why training could not read all of it, or ""."""

    shard: str
    num_samples: int = 0  # readable samples with image and caption
    has_caption: bool = False  # that is not empty
    num_long: int = 0  # samples with a long caption
    num_decoded: int = 0  # images
    num_unreadable: int = 0  # of these
    image_error: str = ""  # of the last unreadable image
    # numbers of decoded images by the property that OpenCLIP ignores
    ignored: Counter = field(default_factory=Counter)
    members: dict[str, None] = field(default_factory=dict)  # the extensions of all samples
    problem: str = ""

    def count_captions(self, sample: dict, caption: str, long_key: str) -> None:
        """Counts a sample with an image and a caption."""
        self.num_samples += 1
        with contextlib.suppress(UnicodeDecodeError):  # OpenCLIP skips such a sample
            self.has_caption |= bool(text_of(sample[caption]))
        if long_key and has_long_caption(sample, long_key):
            self.num_long += 1

    def decode_image(self, sample: dict) -> None:
        """Decodes the image of a sample."""
        problem, ignored = check_image(next(sample[name] for name in IMAGES if name in sample))
        problem = _undecodable(sample) or problem
        self.num_decoded += 1
        if problem:
            self.num_unreadable += 1
            self.image_error = problem
        if ignored:
            self.ignored[ignored] += 1

    def check_contents(self, caption: str) -> None:
        """Sets the problem of a shard that was read without an error."""
        if not self.num_samples:
            self.problem = (
                f"no sample has an image (.{', .'.join(IMAGES)}) and a caption (.{caption}); its "
                f"members are {listed(self.members) or 'nothing'}"
            )
        elif not self.has_caption:
            self.problem = f"all of its captions (.{caption}) are empty or not UTF-8"
        elif self.num_unreadable == self.num_decoded:
            self.problem = (
                f"none of its {self.num_samples:,} images can be read: {self.image_error}"
            )


def _undecodable(sample: dict) -> str:
    """Returns why webdataset, which decodes all members, skips a sample; "" if it does not."""
    for extension, decode in DECODERS.items():
        content = sample.get(extension)
        try:
            if content is not None:
                decode(content)
        except ValueError as error:
            return f"its .{extension} cannot be decoded ({reason(error)})"
    return ""


def inspect_shard(
    shard: str,
    long_key: str = "",
    *,
    until_found: bool = False,
    caption: str = "txt",
    num_images: int = NUM_DECODED,
) -> ShardReport:
    """Reads a local shard, given the keys of the long and the short caption.

    It decodes the first `num_images` images and, if none of them can be read, the next until one
    can. With `until_found` it stops after these, once a caption and a long caption have been read.
    """
    report = ShardReport(shard)
    wanted = {caption, caption_member(long_key), *IMAGES, *DECODERS}
    try:
        for sample in read_members(shard, wanted):
            report.members |= dict.fromkeys(name for name in sample if not name.startswith("__"))
            if not is_trained(sample, caption):
                continue
            report.count_captions(sample, caption, long_key)
            if wanted.issuperset(IMAGES):
                report.decode_image(sample)
                if report.num_decoded >= num_images and report.num_unreadable < report.num_decoded:
                    wanted.difference_update(IMAGES)  # the next samples have no images
            elif until_found and report.has_caption and (report.num_long or not long_key):
                break
        report.check_contents(caption)
    except BROKEN as error:
        report.problem = why_broken(error)
    return report


class Inspection(NamedTuple):
    """A report on shards; it is empty if some are URLs or pipes, which are not inspected."""

    shards: list[str]
    sizes: dict[str, int]  # bytes of the shards that exist
    bad: dict[str, str]  # the problems of missing and broken shards
    reports: list[ShardReport]  # of the shards that were read
    warnings: list[str]


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
    shards = expand(pattern, flag)
    if any(map(is_remote, shards)):
        return Inspection(shards, {}, {}, [], [])
    for source in pattern.split("::"):
        check_any_exists(expand(source, flag), flag)
    names = shards[:most]
    in_order = thread_map(_file_size, names, max_workers=NUM_THREADS, disable=True)
    sizes = dict(zip(names, in_order, strict=True))
    existing = {shard: size for shard, size in sizes.items() if size is not None}
    read = functools.partial(
        inspect_shard,
        long_key=long_caption,
        until_found=not full,
        caption=caption,
        num_images=num_images,
    )
    readable = list(existing) or [next(filter(os.path.exists, shards))]
    if full:
        reports = list(work_on(read, readable, os.cpu_count() or 1, "--check"))
    else:
        reports = _read_some(read, readable, long_caption)
    problems = {report.shard: report.problem for report in reports if report.problem}
    if len(problems) == len(reports):
        raise InputError(f"{flag}: {reports[0].shard}: {reports[0].problem}")
    if long_caption and not any(report.num_long for report in reports):
        raise InputError(
            f"{flag}: no sample of {reports[0].shard} holds the long caption '{long_caption}'; its "
            f"members are {listed(reports[0].members) or 'nothing'}"
        )
    problems |= {shard: "no such file" for shard, size in sizes.items() if size is None}
    warnings = []
    if problems:
        warnings.append(
            f"{flag}: {len(problems):,} of {len(sizes):,} shards are missing or broken, such as "
            f"{next(iter(problems))}: training skips them"
        )
    warnings += _content_warnings(reports, flag, long_caption if full else "")
    return Inspection(shards, existing, problems, reports, warnings)


def _read_some(read: Callable, shards: list[str], long_caption: str) -> list[ShardReport]:
    """Returns the reports on the first and the last shard and, if these are broken or lack the
    long caption, on a few more."""
    reports = [read(shard) for shard in dict.fromkeys([shards[0], shards[-1]])]
    others = shards[1:-1]
    for shard in others[:: max(1, len(others) // NUM_MORE)][:NUM_MORE]:
        if any(report.num_long or not (report.problem or long_caption) for report in reports):
            break
        reports.append(read(shard))
    return reports


def _content_warnings(reports: list[ShardReport], flag: str, long_caption: str) -> Iterator[str]:
    """Yields warnings on images, and on missing long captions if they are looked for."""
    num_decoded = sum(report.num_decoded for report in reports)
    ignored = sum((report.ignored for report in reports), Counter())
    yield from ignored_warning(ignored, num_decoded, flag)
    partly = [report for report in reports if report.num_unreadable and not report.problem]
    if partly:
        num_unreadable = sum(report.num_unreadable for report in partly)
        yield (
            f"{flag}: {num_unreadable:,} of {num_decoded:,} decoded images cannot be read, the "
            f"first is in {partly[0].shard} ({partly[0].image_error}): training skips them"
        )
    num_samples = sum(report.num_samples for report in reports)
    num_missing = num_samples - sum(report.num_long for report in reports)
    if long_caption and num_missing:
        yield (
            f"{flag}: {num_missing:,} of {num_samples:,} samples have no long caption "
            f"'{long_caption}'"
        )


def _file_size(shard: str) -> int | None:
    """Returns the size of a file in bytes, or None if it does not exist."""
    return os.path.getsize(shard) if os.path.exists(shard) else None


def listed_samples(shards: list[str], flag: str) -> dict[str, int]:
    """Returns the numbers of samples in the sizes.json files beside the shards; InputError if
    one cannot be read."""
    numbers = {}
    for folder, names in itertools.groupby(shards, key=lambda shard: Path(shard).parent):
        if (folder / "sizes.json").exists():
            sizes = read_json(folder / "sizes.json", flag=flag, advice="remove it")
            numbers |= {name: sizes[Path(name).name] for name in names if Path(name).name in sizes}
    for shard, number in numbers.items():
        if not isinstance(number, int) or number < 0:
            raise InputError(
                f"{flag}: sizes.json gives {shard} {number!r} samples: correct or remove it"
            )
    return numbers


def total_samples(shards: list[str]) -> int | None:
    """Returns the total number of samples if OpenCLIP finds it, in the sizes.json of the only
    folder."""
    num_folders = len({Path(shard).parent for shard in shards})
    numbers = listed_samples(shards, "--train-data")
    if num_folders > 1 or not all(shard in numbers for shard in shards):
        return None
    return sum(numbers[shard] for shard in shards)


@dataclass(frozen=True)
class ShardCheck:
    """What a check of a run finds in its shards. Its fields are those of the JSON of plan."""

    data: str
    shards: int
    found: int | None  # shards that exist; None for URLs and pipes
    bytes: int | None
    full: bool  # whether all were read
    num_checked: int
    samples: int | None  # counted
    samples_listed: int | None  # by sizes.json
    samples_expected: int  # by the recipe
    bad: list[dict[str, str]]  # each with "shard" and "problem"
    good: str | None  # the pattern without these
    warnings: list[str]


def check_shards(
    pattern: str,
    split: Split,
    expected: int,
    *,
    full: bool = False,
    long_caption: str = "",
) -> ShardCheck:
    """Returns a report on the shards of --data; InputError if training could not start.

    With `full` all shards are read; otherwise only the first and the last. The recipe assumes
    `expected` samples.
    """
    split.check()
    inspection = inspect(pattern, split.flag, long_caption, full=full)
    shards = inspection.shards
    bad = inspection.bad
    in_json = listed_samples(shards, split.flag)
    if all(shard in in_json for shard in shards):
        _check_slice(split, sum(in_json[shard] for shard in shards))
    counted = {report.shard: report.num_samples for report in inspection.reports} if full else {}
    sizes = counted or in_json
    num_samples = sum(sizes.get(shard, 0) for shard in shards)  # a shard may be named twice
    warnings = inspection.warnings
    num_remote = sum(map(is_remote, shards))
    if num_remote:
        warnings.append(
            f"{num_remote:,} of {len(shards):,} shards are URLs or pipes, which are not checked"
        )
    if num_samples and abs(num_samples - expected) > TOLERANCE * expected:
        source = "the shards hold" if counted else "sizes.json lists"
        warnings.append(
            f"{source} {num_samples:,} samples, and the recipe assumes {expected:,}: --set "
            f"data_samples={num_samples} plans with those"
        )
    if not sizes:  # then all shards are assumed to be equal
        sizes = dict(zip(shards, equal_sizes(expected, len(shards)), strict=True))
    mean = round(sum(sizes.values()) / len(sizes))
    warnings += split.check_sizes(
        [0 if shard in bad else sizes.get(shard, mean) for shard in shards]
    )
    good = [shard for shard in shards if shard not in bad]
    has_sizes = bool(inspection.reports)  # none of URLs and pipes
    return ShardCheck(
        data=pattern,
        shards=len(shards),
        found=len(inspection.sizes) if has_sizes else None,
        bytes=sum(inspection.sizes.values()) if has_sizes else None,
        full=bool(counted),
        num_checked=len(shards),
        samples=num_samples if counted else None,
        samples_listed=sum(in_json.get(shard, 0) for shard in shards) or None,
        samples_expected=expected,
        bad=[{"shard": shard, "problem": problem} for shard, problem in bad.items()],
        good=contract(good) if bad else None,
        warnings=warnings,
    )


def _check_slice(split: Split, num_samples: int) -> None:
    """Raises InputError if the shards hold too few samples for the slices."""
    global_batch_size = split.batch_size * split.world_size
    if more_than_a_slice(split.slice_samples, num_samples, split.slices, global_batch_size):
        raise InputError(
            f"{split.flag}: sizes.json lists {num_samples:,} samples, too few for {split.slices} "
            f"slices of {split.slice_samples:,}: --set data_samples={num_samples} plans with those"
        )
