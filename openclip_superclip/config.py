"""The flags of `--superclip` and of slices: each is declared here, once, with its default, its help and its check."""

import argparse
import dataclasses
import math
import os

from .errors import InputError

PLACEBOS = ("off", "shuffled-captions", "detached-head", "constant-target", "second-contrastive", "class-loss-only")


HEAD_INPUTS = ("patches", "pooled", "both")


RECORDED_ALONE = ("word_course",)  # fields on which the weights do not depend


def _flag(flag: str, default, help: str, **argparse_options):
    return dataclasses.field(default=default, metadata={"flag": flag, "help": help, **argparse_options})


@dataclasses.dataclass(frozen=True)
class Config:
    """How SuperCLIP trains. Raises InputError, naming the flag, for an impossible value."""

    weight: float = _flag(
        "--superclip-weight", 1.0, "λ, what multiplies the class loss; the paper recommends 1 or more", type=float
    )
    idf: str = _flag(
        "--superclip-idf",
        "online",
        "weights of the words: their inverse document frequency in the captions seen so far, or over a whole data set "
        "(a file of superclip frequencies), or none",
        metavar="{online,off,FILE}",
    )
    special_tokens: bool = _flag(
        "--superclip-special-tokens",
        False,
        "count start, end and padding tokens as words, as the authors' code does",
        action="store_true",
    )
    head_warmup: int = _flag(
        "--superclip-head-warmup",
        0,
        "samples during which a fresh head learns alone: the class loss does not reach the vision tower in steps that "
        "end within them",
        type=int,
    )

    head_input: str = _flag(
        "--superclip-head-input",
        "patches",
        "what the class head reads: the mean patch token, the pooled vector before the projection, or their sum",
        metavar="{patches,pooled,both}",
    )
    captions: str = _flag(
        "--superclip-captions",
        "short",
        "which caption trains: the short one (OpenCLIP's), the long one, the short one with probability P and the long "
        "one otherwise, or the short one for the contrastive loss and the long one for the class loss",
        metavar="{short,long,mixed:P,dual}",
    )
    long_caption: str = _flag(
        "--superclip-long-caption",
        "",
        "where a sample's long caption is: another member (long.txt), a field of its JSON (json:re_caption, json:a.b), "
        "or a column of the table",
        metavar="KEY",
    )
    missing_long: str = _flag(
        "--superclip-missing-long",
        "use-short",
        "what becomes of a sample without a long caption: its short one stands in, it is left out, or the run ends",
        metavar="{use-short,skip,error}",
    )
    long_context: int = _flag(
        "--superclip-long-context",
        0,
        "tokens of the long caption that dual's class loss reads; 0 is the text tower's context length",
        type=int,
    )
    placebo: str = _flag(
        "--superclip-placebo",
        "off",
        f"a control for studies ({', '.join(PLACEBOS)}): the class loss has the captions of other images, no gradient "
        "below its head, or the same target for all (the words' weighted frequencies); it is replaced by a second "
        "contrastive loss on what the head reads; or the image tower learns from it alone",
        metavar="CONTROL",
    )
    word_course: str = _flag(
        "--superclip-word-course",
        "on",
        "record after each epoch how well each word is known, in words/epoch_N.safetensors beside the checkpoints, "
        "which superclip words --course and superclip report read",
        metavar="{on,off}",
    )

    @property
    def short_share(self) -> float | None:
        """The probability of the short caption; None for dual, which takes both."""
        return short_share(self.captions)

    def __post_init__(self):
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"--superclip-weight is {self.weight}; expected a finite number, 0 or more")
        if is_idf_file(self.idf) and not os.path.isfile(self.idf):
            raise InputError(
                f"--superclip-idf is '{self.idf}'; expected online, off or a file that superclip frequencies wrote"
            )
        if self.head_warmup < 0:
            raise InputError(f"--superclip-head-warmup is {self.head_warmup}; expected 0 or more samples")
        if self.special_tokens and is_idf_file(self.idf):
            raise InputError(
                "--superclip-special-tokens cannot go with a file for --superclip-idf: it does not count those tokens"
            )
        if self.head_input not in HEAD_INPUTS:
            raise InputError(f"--superclip-head-input is '{self.head_input}'; expected one of {', '.join(HEAD_INPUTS)}")
        if self.placebo not in PLACEBOS:
            raise InputError(f"--superclip-placebo is '{self.placebo}'; expected one of {', '.join(PLACEBOS)}")
        if self.word_course not in ("on", "off"):
            raise InputError(f"--superclip-word-course is '{self.word_course}'; expected on or off")
        self._check_captions()

    def _check_captions(self) -> None:
        if self.captions not in ("short", "long", "dual"):
            share = self.short_share
            if share is None or not 0 <= share <= 1:
                raise InputError(
                    f"--superclip-captions is '{self.captions}'; expected short, long, dual, or mixed:P with the short "
                    "caption's probability P from 0 to 1"
                )
        if self.captions != "short" and not self.long_caption:
            raise InputError(
                f"--superclip-captions {self.captions} needs --superclip-long-caption: long.txt, json:FIELD or a column"
            )
        if self.missing_long not in ("use-short", "skip", "error"):
            raise InputError(f"--superclip-missing-long is '{self.missing_long}'; expected use-short, skip or error")
        if self.captions == "short":
            for flag, value in (
                ("--superclip-long-caption", self.long_caption),
                ("--superclip-missing-long", self.missing_long.removeprefix("use-short")),
            ):
                if value:
                    raise InputError(
                        f"{flag} {value} does nothing with --superclip-captions short: add --superclip-captions long, "
                        f"mixed:P or dual, or leave {flag} out"
                    )
        if self.long_context and (self.long_context < 3 or self.captions != "dual"):
            raise InputError(
                f"--superclip-long-context is {self.long_context}; expected 3 tokens or more, and "
                "--superclip-captions dual: no text tower reads that caption"
            )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How training passes over its data, with the class loss or without. Raises InputError as Config does."""

    slices: int | None = _flag(
        "--superclip-slices",
        None,
        "cut each pass over the shards of a WebDataset into K epochs, which read every K-th shard of the pass's own "
        "order: a checkpoint each, and a resumed run continues as if it had never stopped. --train-num-samples is then "
        "that of one slice, --epochs K times the passes. Works without --superclip too",
        type=int,
        metavar="K",
    )
    accept_changes: bool = _flag(
        "--superclip-accept-changes",
        False,
        "--resume a run of --superclip-slices with other options, shards or packages than it began with, and note them",
        action="store_true",
    )

    def __post_init__(self):
        if self.accept_changes and self.slices is None:
            raise InputError(
                "--superclip-accept-changes does nothing without --superclip-slices: runs without it are not compared"
            )
        if self.slices is not None and self.slices < 1:
            raise InputError(f"--superclip-slices is {self.slices}; expected 1 or more slices of a pass")


def is_idf_file(idf: str) -> bool:
    """Returns whether --superclip-idf names a file, of `superclip frequencies`."""
    return idf not in ("online", "off")


def short_share(captions: str) -> float | None:
    """Returns the probability of the short caption: P of "mixed:P"; None for "dual", and where there is none."""
    if captions in ("short", "long"):
        return float(captions == "short")
    mode, _, share = captions.partition(":")
    try:
        return float(share) if mode == "mixed" else None
    except ValueError:
        return None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds a group with --superclip and its options, and an example below the help.

    A flag that is not given leaves no attribute behind.
    """
    parser.epilog = "example: superclip train --model RN50 --train-data pairs.csv --superclip"
    group = parser.add_argument_group("SuperCLIP", "a class loss on the mean patch token, beside the contrastive loss")
    group.add_argument(
        "--superclip", action="store_true", default=argparse.SUPPRESS, help="train with the SuperCLIP class loss"
    )
    for field in (*dataclasses.fields(Config), *dataclasses.fields(DataConfig)):
        options = dict(field.metadata)
        shown = "" if field.default is False or field.default in ("", None) else f" (default: {field.default})"
        group.add_argument(
            options.pop("flag"),
            dest=_attribute(field),
            default=argparse.SUPPRESS,
            help=options.pop("help").replace("%", "%%") + shown,
            **options,
        )


def config_from(options: dict) -> Config | None:
    """Returns the Config of a parsed command line, given as a dict, or None without --superclip.

    Raises InputError for an option of SuperCLIP without --superclip.
    """
    given = _given(Config, options)
    if not options.get("superclip", False):
        if given:
            flag = next(iter(given)).metadata["flag"]
            raise InputError(f"{flag} does nothing without --superclip: add --superclip, or leave {flag} out")
        return None
    return Config(**{field.name: value for field, value in given.items()})


def data_config_from(options: dict) -> DataConfig:
    """Returns the DataConfig of a parsed command line, given as a dict."""
    return DataConfig(**{field.name: value for field, value in _given(DataConfig, options).items()})


def options_of(config: Config) -> dict:
    """Returns every option of `config` under its name on the parsed command line, defaults included."""
    return {_attribute(field): getattr(config, field.name) for field in dataclasses.fields(Config)}


def _given(config_class: type, options: dict) -> dict[dataclasses.Field, object]:
    return {f: options[_attribute(f)] for f in dataclasses.fields(config_class) if _attribute(f) in options}


def _attribute(field: dataclasses.Field) -> str:
    return f"superclip_{field.name}"
