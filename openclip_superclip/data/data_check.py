"""The record of a data check: what training or validation data contain, and what of it training
cannot read."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import listed

NUM_SHOWN = 5  # bad rows that an error names
# counts of the samples that were read
COUNTS = (
    "num_samples",
    "num_incomplete",
    "num_empty",
    "num_long",
    "num_decoded",
    "num_unreadable",
)
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

    def count_captions(self, captions: list[str]) -> None:
        """Counts samples by their captions."""
        self.num_samples += len(captions)
        self.num_empty += captions.count("")

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

    def bad_images(self) -> Iterator[str]:
        """Yields an error if an image of a table is missing or damaged."""
        if self.bad and self.num_found is None:
            yield (
                f"{self.bad_text()}; paths are relative to {os.getcwd()}; correct these rows, or "
                "leave them out"
            )

    def content_warnings(self, effect_of_empty: str) -> Iterator[str]:
        """Yields warnings on captions and on images, given how training reads empty captions."""
        if self.num_incomplete:
            yield (
                f"{self.flag}: samples without an image or a caption: {self.num_incomplete:,} of "
                f"{self.num_samples + self.num_incomplete:,}; training skips them"
            )
        if self.num_empty:
            yield (
                f"{self.flag}: empty captions in {self.data}: {self.num_empty:,} of "
                f"{self.num_samples:,}; {effect_of_empty}"
            )
        if self.ignored:
            counts = ", ".join(
                f"{number:,} × {name}" for name, number in self.ignored.most_common()
            )
            yield (
                f"{self.flag}: of {self.num_decoded:,} decoded images, training reads some in "
                f"other pixels than a viewer shows: {counts}; examples/rgb_copies.py in the "
                "repository writes RGB copies"
            )

    def as_json(self) -> dict:
        """Returns what run.json records."""
        values = {**vars(self), "bad": [vars(file) for file in self.bad]}
        for name in NOT_RECORDED:
            del values[name]
        return values
