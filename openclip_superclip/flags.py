"""The flags of `--superclip` and of slices, each with its default, help and check."""

import argparse
import contextlib
import dataclasses
import math
import os

from .errors import InputError

HEAD_INPUTS = ("patches", "pooled")


def _flag(flag: str, default, help: str, choices: tuple[str, ...] = (), **argparse_options):
    """Declares a flag; `choices` are shown unless there is a metavar."""
    if choices and "metavar" not in argparse_options:
        argparse_options["metavar"] = f"{{{','.join(choices)}}}"
    metadata = {"flag": flag, "help": help, "choices": choices, "argparse": argparse_options}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of SuperCLIP. Raises InputError, naming the flag, for an invalid value."""

    weight: float = _flag(
        "--superclip-weight",
        1.0,
        "λ, the weight of the class loss; the paper recommends 1 or more",
        type=float,
    )
    idf: str = _flag(
        "--superclip-idf",
        "online",
        "weight words by their inverse document frequency: in the captions seen so far, in a "
        "whole data set (a file of superclip frequencies), or not at all",
        metavar="{online,off,FILE}",
    )
    special_tokens: bool = _flag(
        "--superclip-special-tokens",
        default=False,
        help="count start, end and padding tokens as words, like the authors' code",
        action="store_true",
    )
    head_warmup: int = _flag(
        "--superclip-head-warmup",
        0,
        "for this many samples, the class loss trains only a new head, not the vision tower",
        type=int,
    )
    head_lr: float | None = _flag(
        "--superclip-head-lr",
        None,
        "peak learning rate of the class head, which has the warm-up and schedule of --lr; AdamW "
        "multiplies --wd by it (default: --lr)",
        type=float,
        metavar="LR",
    )
    head_input: str = _flag(
        "--superclip-head-input",
        "patches",
        "what the class head reads: the mean patch token, or the pooled vector before the "
        "projection",
        HEAD_INPUTS,
    )
    captions: str = _flag(
        "--superclip-captions",
        "short",
        "which caption to train on: the short one (OpenCLIP's), the long one, the short one with "
        "probability P and the long one otherwise, or the short one for the contrastive loss and "
        "the long one for the class loss",
        metavar="{short,long,mixed:P,dual}",
    )
    long_caption: str = _flag(
        "--superclip-long-caption",
        "",
        "the location of a sample's long caption: another member (long.txt), a field of its "
        "JSON (json:re_caption, json:a.b), or a column of the table",
        metavar="KEY",
    )
    missing_long: str = _flag(
        "--superclip-missing-long",
        "use-short",
        "how to handle a sample without a long caption: use its short one, skip it, or end the run",
        ("use-short", "skip", "error"),
    )
    long_context: int = _flag(
        "--superclip-long-context",
        0,
        "number of tokens that dual's class loss reads; 0 is the text tower's context length",
        type=int,
    )

    @property
    def short_probability(self) -> float | None:
        """The probability of the short caption; None for "dual", which uses both, and for
        invalid captions."""
        if self.captions in ("short", "long"):
            return float(self.captions == "short")
        mode, _, probability = self.captions.partition(":")
        with contextlib.suppress(ValueError):
            return float(probability) if mode == "mixed" else None

    @property
    def long_caption_key(self) -> str:
        """The key of the long caption; "" if it is not used."""
        return self.long_caption if self.captions != "short" else ""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            choices = field.metadata["choices"]
            if choices and value not in choices:
                flag = field.metadata["flag"]
                raise InputError(f"{flag} is '{value}'; expected one of {', '.join(choices)}")
        if not 0 <= self.weight < math.inf:
            raise InputError(
                f"--superclip-weight is {self.weight}; expected a finite number, 0 or more"
            )
        if is_idf_file(self.idf) and not os.path.isfile(self.idf):
            raise InputError(
                f"--superclip-idf is '{self.idf}'; expected online, off or a file of superclip "
                "frequencies"
            )
        if self.head_warmup < 0:
            raise InputError(
                f"--superclip-head-warmup is {self.head_warmup}; expected 0 or more samples"
            )
        if self.head_lr is not None and not 0 < self.head_lr < math.inf:
            raise InputError(
                f"--superclip-head-lr is {self.head_lr}; expected a finite number above 0"
            )
        if self.head_lr is not None and self.weight == 0:
            raise InputError(
                "--superclip-head-lr has no effect with --superclip-weight 0, which trains no head"
            )
        if self.special_tokens and is_idf_file(self.idf):
            raise InputError(
                "--superclip-special-tokens cannot be used with a file for --superclip-idf, which "
                "does not count those tokens"
            )
        self._check_captions()

    def _check_captions(self) -> None:
        probability = self.short_probability
        if self.captions != "dual" and (probability is None or not 0 <= probability <= 1):
            raise InputError(
                f"--superclip-captions is '{self.captions}'; expected short, long, dual, or "
                "mixed:P with the short caption's probability P from 0 to 1"
            )
        if self.captions != "short" and not self.long_caption:
            raise InputError(
                f"--superclip-captions {self.captions} needs --superclip-long-caption: long.txt, "
                "json:FIELD or a column"
            )
        if self.long_caption.lower().endswith(".json"):
            raise InputError(
                f"--superclip-long-caption is {self.long_caption}, a whole JSON file; expected one "
                "of its fields, json:FIELD of KEY.json"
            )
        unused = ""
        if self.missing_long != "use-short":
            unused = f"--superclip-missing-long {self.missing_long}"
        if self.long_caption:
            unused = f"--superclip-long-caption {self.long_caption}"
        if self.captions == "short" and unused:
            raise InputError(
                f"{unused} has no effect with --superclip-captions short: add --superclip-captions "
                "long, mixed:P or dual, or leave it out"
            )
        if self.long_context and (self.long_context < 3 or self.captions != "dual"):
            raise InputError(
                f"--superclip-long-context is {self.long_context}; expected 3 or more, and only "
                "with --superclip-captions dual"
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Options of the training data, with or without the class loss.

    Raises InputError like Config."""

    slices: int | None = _flag(
        "--superclip-slices",
        None,
        "split each pass over the shards of a WebDataset into K epochs with a checkpoint each, "
        "which a resumed run continues exactly. --train-num-samples is then the size of one "
        "slice, and --epochs K times the number of passes. Also works without --superclip",
        type=int,
        metavar="K",
    )
    val_fraction: float | None = _flag(
        "--val-fraction",
        None,
        "hold out this fraction of the pairs of the table --train-data for validation, or this "
        "number if it is 1 or more: no image and no caption is on both sides, and every run with "
        "the same --logs has the same split. Also works without --superclip",
        type=float,
        metavar="F",
    )
    accept_changes: bool = _flag(
        "--superclip-accept-changes",
        default=False,
        help="let --resume continue a run of --superclip-slices with other options, shards or "
        "packages, and record them",
        action="store_true",
    )

    def __post_init__(self):
        held_out = self.val_fraction
        if held_out is not None and not (0 < held_out < 1 or held_out % 1 == 0 < held_out):
            raise InputError(
                f"--val-fraction is {held_out}; expected a fraction of the pairs, above 0 and "
                "below 1, or a number of pairs"
            )
        if self.accept_changes and self.slices is None:
            raise InputError(
                "--superclip-accept-changes has no effect without --superclip-slices: other runs "
                "are not compared"
            )
        if self.slices is not None and self.slices < 1:
            raise InputError(
                f"--superclip-slices is {self.slices}; expected 1 or more slices of a pass"
            )


def is_idf_file(idf: str) -> bool:
    """Returns whether --superclip-idf names a file of `superclip frequencies`."""
    return idf not in ("online", "off")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds a group with --superclip and its options, and an example; a flag that is not given
    sets no attribute."""
    parser.epilog = (
        "example: superclip train --model RN50 --train-data "
        "'shards/{000000..000009}.tar' --superclip"
    )
    group = parser.add_argument_group(
        "SuperCLIP", "a class loss on the mean patch token, beside the contrastive loss"
    )
    group.add_argument(
        "--superclip",
        action="store_true",
        default=argparse.SUPPRESS,
        help="train with the SuperCLIP class loss",
    )
    for field in (*dataclasses.fields(Config), *dataclasses.fields(DataConfig)):
        shown = (
            ""
            if field.default is False or field.default in ("", None)
            else f" (default: {field.default})"
        )
        group.add_argument(
            field.metadata["flag"],
            dest=f"superclip_{field.name}",
            default=argparse.SUPPRESS,
            help=field.metadata["help"].replace("%", "%%") + shown,
            **field.metadata["argparse"],
        )


def config_from(options: dict) -> Config | None:
    """Returns the Config of a parsed command line, or None without --superclip; InputError for
    its options then."""
    given = given_options(Config, options)
    if not options.get("superclip"):
        if given:
            flag = f"--superclip-{next(iter(given)).replace('_', '-')}"
            raise InputError(
                f"{flag} has no effect without --superclip: add --superclip, or leave {flag} out"
            )
        return None
    return Config(**given)


def is_given(options: dict) -> bool:
    """Returns whether a parsed command line has a flag of ours that changes training; without one,
    it is stock OpenCLIP's."""
    names = ("superclip", "superclip_slices", "superclip_val_fraction")
    return any(options.get(name) not in (None, False) for name in names)


def options_of(config: Config) -> dict:
    """Returns every option of `config` under its name on the parsed command line, defaults
    included."""
    return {f"superclip_{name}": value for name, value in vars(config).items()}


def given_options(config_class: type, options: dict) -> dict[str, object]:
    """Returns the fields of a class of options that are on the parsed command line."""
    names = {field.name: f"superclip_{field.name}" for field in dataclasses.fields(config_class)}
    return {name: options[option] for name, option in names.items() if option in options}
