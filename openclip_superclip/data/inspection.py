"""Inspection of shards: existence, readability, contents, and whether they suffice for a run.

Used by training, `superclip plan`, slices, audit and frequencies.
"""

import contextlib
import functools
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..errors import InputError, listed
from ..files import read_json
from .images import ImageReport, check_image, depth_and_rotation_warnings
from .shards import (
    BROKEN,
    IMAGES,
    caption_member,
    contract,
    expand,
    has_long_caption,
    is_remote,
    is_trained,
    read_members,
    refuse_other_patterns,
    why_broken,
    work_on,
)  # fmt: skip
from .slices import SlicedTraining, Split, equal_sizes, more_than_a_slice

NUM_DECODED = 8  # images decoded per shard, and more until one can be read
NUM_MORE = 3  # shards to try before all are assumed to be broken
NUM_LOOKED_FOR = 1000  # shards, before training starts
NUM_THREADS = 32  # that query file sizes, for network file systems
START, ENDS, ALL = "start", "ends", "all"  # how much to read
TOLERANCE = 0.02  # of the number of samples: downloads of the same data set at different times differ


class ShardReport(NamedTuple):
    """The contents of a shard; `problem` is why training could not read all of it, or ""."""

    shard: str
    num_samples: int  # readable samples with image and caption
    num_long: int  # samples with a long caption
    members: str  # of all samples
    problem: str
    images: list[ImageReport]  # decoded images


def inspect_shard(shard: str, place: str = "", until_found: bool = False, caption: str = "txt") -> ShardReport:
    """Reads a local shard and decodes a few of its images, given the keys of the long and the short caption.

    With `until_found` it stops after a few samples, once a caption, an image and a long caption have been read.
    """
    members, images, problem = {}, [], ""
    num_samples = num_long = 0
    is_text = has_caption = is_readable = False
    wanted = {caption, caption_member(place), *IMAGES}
    try:
        for sample in read_members(shard, wanted):
            members |= dict.fromkeys(name for name in sample if not name.startswith("__"))
            if not is_trained(sample, caption):
                continue
            num_samples += 1
            with contextlib.suppress(UnicodeDecodeError):  # OpenCLIP skips such a sample
                has_caption |= bool(sample[caption].decode().strip())
                is_text = True
            num_long += bool(place) and has_long_caption(sample, place)
            if not is_readable or len(images) < NUM_DECODED:
                images.append(check_image(next(sample[image] for image in IMAGES if image in sample)))
                is_readable = is_readable or not images[-1].problem
            else:
                wanted.difference_update(IMAGES)  # the next samples have no images
                if until_found and has_caption and (num_long or not place):
                    break
    except BROKEN as error:
        problem = why_broken(error)
    found = listed(members) or "nothing"
    if not problem and not num_samples:
        problem = f"no sample has an image (.{', .'.join(IMAGES)}) and a caption (.{caption}); its members are {found}"
    elif not problem and not has_caption:
        problem = f"all of its captions (.{caption}) are {'empty' if is_text else 'unreadable: expected UTF-8'}"
    elif not problem and not is_readable:
        problem = f"none of its {len(images):,} images can be read: {images[0].problem}"
    return ShardReport(shard, num_samples, num_long, found, problem, images)


@dataclass
class Inspection:
    """A report on the shards of a pattern."""

    flag: str
    pattern: str
    long_caption: str
    depth: str  # START, ENDS or ALL
    shards: list[str]
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each checked shard that exists
    missing: list[str] = field(default_factory=list)  # checked shards that do not exist
    reports: list[ShardReport] = field(default_factory=list)  # of the shards that were read

    @functools.cached_property
    def listed(self) -> dict[str, int]:
        """The numbers of samples of the shards that are listed in a sizes.json beside them."""
        return listed_samples(self.shards, self.flag)

    @property
    def num_listed(self) -> int | None:
        """The total number of samples, if all shards are listed."""
        return sum(self.listed.values()) if len(self.listed) == len(self.shards) else None

    @property
    def num_counted(self) -> int | None:
        """The total number of samples, if all shards were read."""
        return sum(report.num_samples for report in self.reports) if self.depth == ALL and self.reports else None

    @functools.cached_property
    def bad(self) -> dict[str, str]:
        """The problems of shards that are missing or broken."""
        found = dict.fromkeys(self.missing, "no such file") | {r.shard: r.problem for r in self.reports if r.problem}
        return {shard: found[shard] for shard in self.shards if shard in found}

    def warnings(self) -> list[str]:
        """Returns warnings on samples that training skips, and on images that OpenCLIP reads incorrectly."""
        if num_remote := sum(map(is_remote, self.shards)):
            line = f"{num_remote:,} of {len(self.shards):,} shards are URLs or pipes"
            return [f"{line}: that they exist and what they hold is not checked"] * (self.depth != START)
        lines, images = [], [image for report in self.reports for image in report.images]
        if self.bad:
            seen = ", and only the first and the last were read: --check reads all" * (self.depth == ENDS)
            lines.append(
                f"{self.flag}: {len(self.bad):,} of {len(self.sizes) + len(self.missing):,} shards are missing or "
                f"broken, the first is {next(iter(self.bad))}: training goes on without them{seen}"
            )
        num_samples, num_long = (sum(column) for column in list(zip(*self.reports, strict=True))[1:3])
        if self.long_caption and num_long < num_samples and self.depth != START:
            without = f"{num_samples - num_long:,} of {num_samples:,} samples looked at"
            lines.append(f"{without} have no long caption '{self.long_caption}'")
        if num_bad := sum(bool(image.problem) for image in images):
            lines.append(
                f"{self.flag}: {num_bad:,} of {len(images):,} images that were decoded cannot be read: training skips "
                "such samples"
            )
        return lines + depth_and_rotation_warnings(images, self.flag)


def inspect(
    pattern: str, flag: str, long_caption: str, depth: str, jobs: int | None = None, caption: str = "txt"
) -> Inspection:
    """Returns a report on the shards of a pattern; URLs and pipes are not inspected.

    Raises InputError if no shard of a source exists, or if the inspected shards contain no training samples.

    Args:
        long_caption: the key of the long caption; "" if it is not used.
        depth: START reads the beginnings of the first and the last shard, ENDS reads both completely, and ALL reads all
            shards completely. START and ENDS read a few more if the first and the last shard are broken.
        jobs: number of processes for ALL; by default one per core.
        caption: the extension of the short caption.
    """
    found = Inspection(flag, pattern, long_caption, depth, expand(pattern, flag))
    refuse_other_patterns(found.shards[0], flag)
    if any(map(is_remote, found.shards)):
        return found
    for source in pattern.split("::"):
        shards = expand(source, flag)
        if not any(map(os.path.exists, shards)):
            hint = "; superclip demo --data-only writes the demo's" if source.startswith("demo/data/") else ""
            others = f", nor any other of {len(shards):,} shards" if len(shards) > 1 else ""
            raise InputError(f"{flag}: there is no file {shards[0]}{others}{hint}")
    found.sizes = _file_sizes(found.shards[: NUM_LOOKED_FOR if depth == START else None])
    found.missing = [shard for shard, size in found.sizes.items() if size is None]
    found.sizes = {shard: size for shard, size in found.sizes.items() if size is not None}
    there = list(found.sizes) or [next(filter(os.path.exists, found.shards))]
    read = functools.partial(inspect_shard, place=long_caption, until_found=depth == START, caption=caption)
    if depth == ALL and len(there) > 2:
        reports = work_on(read, there, jobs or os.cpu_count() or 1, "--jobs")
        found.reports = list(tqdm(reports, total=len(there), desc="reading shards", unit=" shards", disable=None))
    else:
        found.reports = [read(shard) for shard in there[:1] + there[1:][-1:]]
        for shard in there[1:-1][:NUM_MORE]:
            if all(report.problem for report in found.reports):
                found.reports.append(read(shard))
    first = found.reports[0]
    if all(report.problem for report in found.reports):
        raise InputError(f"{flag}: {first.shard}: {first.problem}")
    if long_caption and not any(report.num_long for report in found.reports):
        raise InputError(
            f"{flag}: no sample of {first.shard} holds the long caption '{long_caption}'; its members are "
            f"{first.members}"
        )
    return found


def _file_sizes(shards: list[str]) -> dict[str, int | None]:
    """Returns the size of each file in bytes, or None if it does not exist."""

    def size(shard: str) -> int | None:
        with contextlib.suppress(OSError):
            return os.stat(shard).st_size
        return None

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        sizes = tqdm(pool.map(size, shards), total=len(shards), desc="looking for shards", disable=None, leave=False)
        return dict(zip(shards, sizes, strict=True))


def listed_samples(shards: list[str], flag: str = "--data") -> dict[str, int]:
    """Returns the numbers of samples in the sizes.json files beside the shards; InputError if one cannot be read."""
    listed = {}
    for folder, names in itertools.groupby(shards, key=lambda shard: Path(shard).parent):
        if (folder / "sizes.json").exists():
            sizes = read_json(folder / "sizes.json", flag=flag, advice="remove it")
            listed |= {name: sizes[Path(name).name] for name in names if Path(name).name in sizes}
    if wrong := [shard for shard, number in listed.items() if not isinstance(number, int) or number < 0]:
        raise InputError(f"{flag}: sizes.json gives {wrong[0]} {listed[wrong[0]]!r} samples: correct or remove it")
    return listed


def total_samples(shards: list[str]) -> int | None:
    """Returns the total number of samples from OpenCLIP's size file beside the first shard, or None."""
    folder = Path(shards[0]).parent
    with contextlib.suppress(OSError, KeyError, ValueError, TypeError):
        if (folder / "sizes.json").exists():
            sizes = json.loads((folder / "sizes.json").read_text())
            return sum(int(sizes[os.path.basename(shard)]) for shard in shards)
        return int((folder / "__len__").read_text())
    return None


def check_data(
    pattern: str,
    split: Split,
    expected_samples: int | None = None,
    full: bool = False,
    *,
    long_caption: str = "",
    jobs: int | None = None,
) -> dict:
    """Returns a report on the shards of --data, for JSON; InputError if training could not start.

    With `full` all shards are read, in `jobs` processes; otherwise only the first and the last.
    """
    split.check()
    found = inspect(pattern, split.flag, long_caption, ALL if full else ENDS, jobs)
    total = found.num_listed
    global_batch_size = (split.batch_size or 1) * split.world_size
    if total and split.slice_samples and more_than_a_slice(split.slice_samples, total, split.slices, global_batch_size):
        raise InputError(
            f"{split.flag}: sizes.json lists {total:,} samples, too few for {split.slices} slices of "
            f"{split.slice_samples:,}: --set data_samples={total} plans with those"
        )
    warnings, samples = [*found.warnings(), *_wrong_list(found)], found.num_counted or sum(found.listed.values())
    if expected_samples and samples and abs(samples - expected_samples) > TOLERANCE * expected_samples:
        where = "the shards hold" if found.num_counted else "sizes.json lists"
        warnings.append(
            f"{where} {samples:,} samples, and the recipe says {expected_samples:,}: --set data_samples={samples} "
            "plans with those"
        )
    sizes = _sizes(found, expected_samples)
    if split.slice_samples and split.batch_size and sizes:
        warnings += split.check_shares(sizes)
    return {
        "data": pattern, "shards": len(found.shards), "found": len(found.sizes) if found.reports else None,
        "bytes": sum(found.sizes.values()) if found.reports else None, "full": bool(full and found.reports),
        "samples": found.num_counted, "samples_listed": sum(found.listed.values()) or None,
        "samples_expected": expected_samples,
        "bad": [{"shard": shard, "problem": problem} for shard, problem in found.bad.items()],
        "good": contract([shard for shard in found.shards if shard not in found.bad]) if found.bad else None,
        "warnings": warnings,
    }  # fmt: skip


def _wrong_list(found: Inspection) -> list[str]:
    counted = [report for report in found.reports if not report.problem]
    wrong = [report for report in counted if found.listed.get(report.shard, report.num_samples) != report.num_samples]
    return [
        f"sizes.json is wrong about {len(wrong):,} shards: {report.shard} holds {report.num_samples:,} samples, not "
        f"{found.listed[report.shard]:,}"
        for report in wrong[:1]
    ]


def _sizes(found: Inspection, expected: int | None) -> list[int]:
    """Returns the number of samples of each shard: counted, listed, or an equal part of the expected total, or []."""
    known = {report.shard: report.num_samples for report in found.reports} if found.num_counted else found.listed
    if not known and expected:
        known = dict(zip(found.shards, equal_sizes(expected, len(found.shards)), strict=True))
    mean = round(sum(known.values()) / len(known)) if known else 0
    return [0 if shard in found.bad else known.get(shard, mean) for shard in found.shards] if known else []


def check_training_shards(train_data: str, sliced: SlicedTraining, long_caption: str, caption: str) -> list[str]:
    """Returns warnings about the shards of --train-data; InputError if OpenCLIP cannot train on them."""
    sliced.check()
    found = inspect(train_data, "--train-data", long_caption, START, caption=caption)
    if sliced.slice_samples is None and sliced.total is None:
        raise InputError(
            "--train-num-samples is not given, and no sizes.json beside the shards lists them: expected the samples of "
            "an epoch"
        )
    return found.warnings()
