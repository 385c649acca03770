"""The options of a training command that concern its data, and whether OpenCLIP can train on it."""

import functools
import math
import multiprocessing
from dataclasses import dataclass

from ..errors import InputError, Rule, check
from ..flags import Config
from .inspection import NUM_LOOKED_FOR, inspect, total_samples
from .slices import Split, more_than_a_slice
from .tables import MAX_DECODED, Columns, check_table, has_empty_captions, is_table, kind
from .tar_shards import expand

RULES = [  # on DataOptions
    Rule(
        "--train-num-samples is not given; expected the number of images of --dataset-type synthetic",
        lambda o: o.num_samples is None and o.kind == "synthetic",
    ),
    Rule(
        "--superclip-slices cuts the shards of a WebDataset, and --dataset-type is {dataset_type}: expected webdataset "
        "and a pattern of .tar files, or leave --superclip-slices out",
        lambda o: o.slices is not None and o.kind != "shards",
    ),
    Rule(
        "--superclip-slices reads every shard once in each pass, and --dataset-resampled draws shards with "
        "replacement: leave one of them out",
        lambda o: o.slices is not None and o.resampled,
    ),
]


@dataclass(frozen=True)
class DataOptions:
    """OpenCLIP's options of the data, by their meaning."""

    train_data: str | None
    val_data: str | None
    dataset_type: str
    columns: Columns
    num_samples: int | None  # --train-num-samples
    batch_size: int  # of a rank
    accum_freq: int
    counts_tokens: bool  # --naflex-num-train-image-tokens sets the size of an epoch
    workers: int
    resampled: bool  # --dataset-resampled
    caption: str  # extension of the captions in shards; "" if the shards cannot be checked
    slices: int | None  # --superclip-slices
    config: Config | None  # of --superclip
    rank: int
    world_size: int

    @property
    def is_table(self) -> bool:
        return is_table(self.train_data, self.dataset_type)

    @functools.cached_property
    def kind(self) -> str:
        return kind(self.train_data or "", self.dataset_type, "--train-data")

    @functools.cached_property
    def has_empty_captions(self) -> bool:
        """Whether the training data is a table in which captions are missing."""
        return self.is_table and has_empty_captions(self.train_data, self.columns)

    @property
    def max_decoded(self) -> int:
        """The number of images of a table that this rank decodes."""
        return MAX_DECODED if self.rank == 0 else 0

    def check(self) -> list[str]:
        """Returns warnings about the data; InputError if OpenCLIP cannot train or evaluate on it."""
        warnings = self._check_training() if self.train_data or self.dataset_type == "synthetic" else []
        if not self.val_data or self.dataset_type == "synthetic":
            return warnings
        if kind(self.val_data, self.dataset_type, "--val-data") == "table":
            return warnings + check_table(self.val_data, self.columns, Config(), 1, 1, "--val-data", self.max_decoded)
        if not self.caption:
            return warnings
        return warnings + inspect(self.val_data, "--val-data", caption=self.caption, most=NUM_LOOKED_FOR).warnings

    def _check_training(self) -> list[str]:
        check(RULES, self)
        config = self.config or Config()
        if self.kind == "table":
            of_a_rank = {"accum_freq": self.accum_freq, "max_decoded": self.max_decoded}
            return check_table(self.train_data, self.columns, config, self.batch_size, self.world_size, **of_a_rank)
        if self.kind == "synthetic":
            return []
        self._check_workers()
        shards = expand(self.train_data, "--train-data")
        self._check_split(len(shards), total_samples(shards))
        if not self.caption:
            return []
        long_caption = config.long_caption_key
        return inspect(
            self.train_data, "--train-data", long_caption, caption=self.caption, most=NUM_LOOKED_FOR
        ).warnings

    def _check_split(self, num_shards: int, total: int | None) -> None:
        """Raises InputError if the shards are too few for the ranks, or without a number of samples of an epoch.

        `total` is the number of samples in a file beside the shards, if there is one.
        """
        slices = self.slices or 1
        if not self.resampled:
            Split(
                num_shards, self.world_size, self.workers, slices, self.num_samples, self.batch_size,
                flag="--train-data", slices_flag="--superclip-slices ",
            ).check()  # fmt: skip
        batch = self.batch_size * self.world_size
        workers = max(1, self.workers)
        batches = math.ceil(math.ceil((self.num_samples or total or 0) / batch) / workers) * workers
        if 0 < batches < self.accum_freq:
            raise InputError(
                f"--accum-freq is {self.accum_freq}, and a rank has {batches} batches in an epoch: expected {batches} "
                "or less, or a larger --train-num-samples"
            )
        if self.slices is None:
            if self.num_samples is None and total is None and not self.counts_tokens:
                raise InputError(
                    "--train-num-samples is not given, and no sizes.json beside all of the shards lists them: expected "
                    "the samples per epoch"
                )
        elif self.num_samples is None or (total and more_than_a_slice(self.num_samples, total, slices, batch)):
            given = "is not given" if self.num_samples is None else f"is {self.num_samples:,}"
            of_total = f", {math.ceil(total / slices):,} of {total:,}" if total else ""
            raise InputError(
                f"--train-num-samples {given}; expected the samples of one of the {slices} slices{of_total}"
            )

    def _check_workers(self) -> None:
        """Makes data-loading workers start by fork, because OpenCLIP's WebDataset cannot be pickled."""
        method = multiprocessing.get_start_method(allow_none=True)
        if self.workers < 1 or method == "fork":
            return
        if method is None and "fork" in multiprocessing.get_all_start_methods():
            multiprocessing.set_start_method("fork")
        else:
            raise InputError(
                f"--workers is {self.workers}, and Python starts processes by {method or 'spawn'}, which cannot send "
                "OpenCLIP's WebDataset to them: give --workers 0, or call multiprocessing.set_start_method('fork')"
            )
