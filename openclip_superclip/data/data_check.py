"""Checks of training and validation data before a run starts: what tables and shards contain, and
whether it suffices."""

import functools
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.contrib.concurrent import thread_map

from ..errors import InputError, listed
from ..files import read_json
from ..flags import Config
from .caption_text import caption_member, has_long_caption, text_of
from .images import check_image
from .slices import Split, equal_sizes
from .tables import Columns, chunks_of
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

NUM_SHOWN = 5  # bad rows that an error names
MAX_DECODED = 200  # images, spread over a table, that are decoded before training
NUM_READ = 5  # shards of which the beginnings are read before training starts
NUM_DECODED = 40  # images of a shard
NUM_LOOKED_FOR = 1000  # shards, before training starts
NUM_THREADS = 32  # that query file sizes, for network file systems
# of the number of samples: downloads of the same data set at different times differ
TOLERANCE = 0.02
SHORT = Config()  # reads no long caption
# counts of the samples that were read
COUNTS = (
    "num_samples",
    "num_incomplete",
    "num_empty",
    "num_long",
    "num_decoded",
    "num_unreadable",
)
# what run.json does not record
NOT_RECORDED = ("shards", "listed", "parts", "members", "image_problem")


@dataclass(frozen=True)
class BadFile:
    """A shard, or an image of a table, that training cannot read."""

    file: str
    problem: str
    row: int | None = None  # of the table, from 1

    @property
    def name(self) -> str:
        return self.file if self.row is None else f"row {self.row} names {self.file}"


@dataclass
class DataCheck:
    """What a check finds in a table or a pattern of shards, or in one of the shards.

    Unless it is full, a check reads only some of the shards or images.
    """

    data: str
    flag: str = ""  # that gives the data
    full: bool = False
    num_shards: int = 0
    num_found: int | None = None  # of these; None for URLs and pipes, and for tables
    num_bytes: int | None = None
    num_checked: int = 0  # shards, or a table's images, of which some may be `bad`
    shards: list[str] = field(default_factory=list)
    listed: dict[str, int] = field(default_factory=dict)  # samples of shards, by sizes.json
    bad: list[BadFile] = field(default_factory=list)
    num_samples: int = 0  # rows, or samples with image and caption
    num_listed: int | None = None  # the sum of `listed`
    num_trained: int = 0  # rows of a table that training uses
    num_incomplete: int = 0  # samples of shards without an image or a caption
    num_empty: int = 0  # captions
    num_long: int = 0  # samples with a long caption
    num_decoded: int = 0  # images
    num_unreadable: int = 0  # of these
    # numbers of decoded images by what OpenCLIP ignores in them
    ignored: Counter = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)  # digests by path
    # of shards that were read; the extensions of all members, and the last image's problem
    parts: list["DataCheck"] = field(default_factory=list)
    members: dict[str, None] = field(default_factory=dict)
    image_problem: str = ""

    @property
    def total_samples(self) -> int | None:
        """The number of samples if OpenCLIP finds it, in the sizes.json of the only folder."""
        folders = {os.path.dirname(shard) for shard in self.shards}
        is_listed = all(shard in self.listed for shard in self.shards)
        return self.num_listed if len(folders) == 1 and is_listed else None

    def add(self, part: "DataCheck") -> None:
        """Adds the contents of a shard."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(part, name))
        self.ignored += part.ignored
        self.bad += part.bad
        self.parts.append(part)

    def count_image(self, problem: str, ignored: str) -> None:
        """Counts a decoded image, given what `check_image` returns."""
        self.num_decoded += 1
        if problem:
            self.num_unreadable += 1
            self.image_problem = problem
        if ignored:
            self.ignored[ignored] += 1

    def bad_text(self) -> str:
        """Returns a message on the images of a table that cannot be read."""
        rows = listed((f"{file.name}: {file.problem}" for file in self.bad), NUM_SHOWN)
        return (
            f"{self.flag}: {len(self.bad):,} of {self.num_checked:,} images of {self.data} cannot "
            f"be read: {rows}"
        )

    def check_images(self) -> None:
        """Raises InputError if an image of a table is missing or damaged."""
        if self.bad and self.num_found is None:
            raise InputError(
                f"{self.bad_text()}; paths are relative to {os.getcwd()}; correct these rows, or "
                "leave them out"
            )

    def check_rows(self, batch_size: int, world_size: int, accum_freq: int = 1) -> None:
        """Raises InputError if a table has fewer rows than one step of training needs."""
        needed = world_size * (batch_size * accum_freq - 1) + 1  # ranks share the rows, rounded up
        if self.num_samples and self.num_trained < needed:  # those of a URL are unknown
            raise InputError(
                f"{self.flag}: {self.data}: training reads {self.num_trained:,} of "
                f"{self.num_samples:,} rows, too few for --batch-size {batch_size:,} with "
                f"--accum-freq {accum_freq} on {world_size} rank(s); expected {needed:,} rows or a "
                "smaller batch"
            )

    def warn_of_contents(self, effect_of_empty: str) -> None:
        """Adds warnings on captions and on images, given how training reads empty captions."""
        if self.num_incomplete:
            self.warnings.append(
                f"{self.flag}: samples without an image or a caption: {self.num_incomplete:,} of "
                f"{self.num_samples + self.num_incomplete:,}; training skips them"
            )
        if self.num_empty:
            self.warnings.append(
                f"{self.flag}: empty captions in {self.data}: {self.num_empty:,} of "
                f"{self.num_samples:,}; {effect_of_empty}"
            )
        if self.ignored:
            counts = ", ".join(
                f"{number:,} × {name}" for name, number in self.ignored.most_common()
            )
            self.warnings.append(
                f"{self.flag}: of {self.num_decoded:,} decoded images, training reads some in "
                f"other pixels than a viewer shows: {counts}; examples/rgb_copies.py in the "
                "repository writes RGB copies"
            )

    def as_json(self) -> dict:
        """Returns what run.json records."""
        values = {**vars(self), "bad": [vars(file) for file in self.bad]}
        return {name: value for name, value in values.items() if name not in NOT_RECORDED}


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
        of_shards: caption, most and reads, as for `check_shards`.
    """
    if data_kind == "table":
        most = MAX_DECODED if decodes else 0
        return check_table(data, columns, flag, config=config, max_decoded=None if full else most)
    if data_kind != "shards":
        return DataCheck(data, flag)
    return check_shards(data, flag, config.long_caption_key, full=full, **of_shards)


# Tables


def check_table(
    path: str,
    columns: Columns,
    flag: str,
    *,
    config: Config = SHORT,
    max_decoded: int | None = MAX_DECODED,
    rows: Iterable | None = None,
) -> DataCheck:
    """Returns what the table at `path` contains, with warnings; nothing for a URL, which is not
    checked.

    At most `max_decoded` images, evenly spaced, are decoded; None decodes all. `rows` are data
    frames of a table that is not written yet.

    Raises InputError, naming `flag`, for missing columns or captions, and if OpenCLIP could not
    read the table correctly. Missing and damaged images are warnings; `check_images` makes them an
    error.
    """
    table = DataCheck(path, flag, full=max_decoded is None)
    if is_remote(path):
        return table
    long_key = config.long_caption_key
    images = []
    names = []
    swallowing = ""  # the first row whose caption contains other rows
    for chunk in rows or chunks_of(path, columns, flag):
        names = list(chunk)
        captions = [text_of(caption) for caption in chunk[columns.caption]]
        images_of_chunk = [str(image) for image in chunk[columns.image]]
        swallowing = swallowing or _swallowing_row(captions, images_of_chunk, columns.separator)
        table.num_samples += len(captions)
        table.num_empty += captions.count("")
        if long_key:
            table.num_long += sum(
                has_long_caption(row, long_key) for row in chunk.to_dict("records")
            )
        if max_decoded != 0:
            images += images_of_chunk
    if table.num_empty == table.num_samples:
        raise InputError(f"{flag}: the column '{columns.caption}' of {path} holds no caption")
    if long_key and not table.num_long:
        raise InputError(
            f"--superclip-long-caption: no row of {path} holds '{config.long_caption}'; its "
            f"columns are {listed(names)}"
        )
    if swallowing:
        table.warnings.append(
            f"{flag}: the caption of {swallowing} in {path} contains other rows of the table: "
            "close its quotation mark, or write it twice"
        )
    table.num_trained = table.num_long if config.missing_long == "skip" else table.num_samples
    _decode_images(table, images, max_decoded)
    if table.bad:
        table.warnings.append(f"{table.bad_text()}; such rows are skipped")
    table.warn_of_contents(
        "the text tower reads the word 'nan', as in stock OpenCLIP, and the class loss no word"
    )
    return table


def _swallowing_row(captions: list[str], images: list[str], separator: str) -> str:
    """Returns the image of the first row whose caption contains lines like those of the table,
    because a quotation mark is not closed; "" if there is none."""
    for image, caption in zip(images, captions, strict=True):
        extension = os.path.splitext(image)[1]
        for line in caption.splitlines()[1:]:
            if extension and extension in line and separator in line:
                return image
    return ""


def _decode_images(table: DataCheck, images: list[str], max_decoded: int | None) -> None:
    stride = math.ceil(len(images) / max_decoded) if max_decoded else 1
    chosen = images[::stride]
    table.num_checked = len(chosen)
    # Pillow decodes without holding the GIL
    checks = thread_map(check_image, chosen, desc="reading images", unit=" images", disable=None)
    for index, (problem, ignored) in enumerate(checks):
        table.count_image(problem, ignored)
        if problem:
            table.bad.append(BadFile(chosen[index], problem, row=index * stride + 1))


# Shards


def check_shards(
    pattern: str,
    flag: str,
    long_caption: str = "",
    *,
    full: bool = False,
    caption: str = "txt",
    most: int | None = None,
    reads: bool = True,
) -> DataCheck:
    """Returns what the shards of a pattern contain; URLs and pipes are not read.

    Raises InputError if no shard of a source exists, or if those that are read contain no training
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
    check.listed = _listed_samples(shards, flag)
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
        check_shard, long_key=long_caption, until_found=not full, caption=caption
    )
    readable = list(existing) or [next(filter(os.path.exists, shards))]
    chosen = readable if full else _sample(readable)
    for part in work_on(read, chosen, os.cpu_count() or 1 if full else 1):
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
    check.warn_of_contents("the class loss reads no word")
    partly = [part for part in check.parts if part.num_unreadable and not part.bad]
    if partly:
        num_unreadable = sum(part.num_unreadable for part in partly)
        check.warnings.append(
            f"{flag}: {num_unreadable:,} of {check.num_decoded:,} decoded images cannot be "
            f"read, the first is in {partly[0].data} ({partly[0].image_problem}): training skips "
            "them"
        )
    num_missing = check.num_samples - check.num_long
    if full and long_caption and num_missing:
        check.warnings.append(
            f"{flag}: samples without the long caption '{long_caption}': {num_missing:,} of "
            f"{check.num_samples:,}"
        )
    return check


def _file_size(shard: str) -> int | None:
    """Returns the size of a file in bytes, or None if it does not exist."""
    return os.path.getsize(shard) if os.path.exists(shard) else None


def _sample(shards: list[str]) -> list[str]:
    """Returns at most NUM_READ shards, evenly spaced, with the first and the last one."""
    last = len(shards) - 1
    return [
        shards[place] for place in sorted({last * n // (NUM_READ - 1) for n in range(NUM_READ)})
    ]


def _listed_samples(shards: list[str], flag: str) -> dict[str, int]:
    """Returns the numbers of samples in the sizes.json files beside the shards."""
    numbers = {}
    local = [shard for shard in shards if not is_remote(shard)]
    for folder, names in itertools.groupby(local, key=lambda shard: Path(shard).parent):
        if (folder / "sizes.json").exists():
            sizes = read_json(folder / "sizes.json", flag=flag, advice="remove it")
            numbers |= {name: sizes[Path(name).name] for name in names if Path(name).name in sizes}
    return numbers


def check_shard(
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
    wanted = {caption, caption_member(long_key), *IMAGES}
    problem = ""
    try:
        for sample in read_members(shard, wanted):
            check.members |= dict.fromkeys(name for name in sample if not name.startswith("__"))
            if not is_trained(sample, caption):
                check.num_incomplete += 1
                continue
            check.num_samples += 1
            check.num_empty += not _has_caption(sample[caption])
            check.num_long += bool(long_key) and has_long_caption(sample, long_key)
            if wanted.issuperset(IMAGES):
                image = next(sample[name] for name in IMAGES if name in sample)
                check.count_image(*check_image(image))
                if check.num_decoded >= NUM_DECODED and check.num_unreadable < check.num_decoded:
                    wanted.difference_update(IMAGES)  # the next samples have no images
            elif (
                until_found
                and check.num_empty < check.num_samples
                and (check.num_long or not long_key)
            ):
                break
    except BROKEN as error:
        problem = why_broken(error)
    problem = problem or _problem_of_shard(check, caption)
    if problem:
        check.bad.append(BadFile(shard, problem))
    return check


def _has_caption(content: bytes) -> bool:
    """Returns whether a caption has text; OpenCLIP skips one that is not UTF-8."""
    try:
        return bool(text_of(content))
    except UnicodeDecodeError:
        return False


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
    num_samples = check.num_listed or 0
    if num_samples and abs(num_samples - expected) > TOLERANCE * expected:
        check.warnings.append(
            f"sizes.json lists {num_samples:,} samples, and the recipe assumes {expected:,}: --set "
            f"data_samples={num_samples} plans with those"
        )
    # without sizes.json, all shards are assumed to be equal
    sizes = in_json or dict(zip(shards, equal_sizes(expected, len(shards)), strict=True))
    mean = round(sum(sizes.values()) / len(sizes))
    bad = {file.file for file in check.bad}
    check.warnings += split.check_sizes(
        [0 if shard in bad else sizes.get(shard, mean) for shard in shards]
    )
