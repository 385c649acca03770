"""The flags of `--superclip`: each is declared here, once, with its default, its help and its check."""

import argparse
import dataclasses
import math

from .errors import InputError


def _flag(flag: str, default, help: str, **argparse_options):
    return dataclasses.field(default=default, metadata={"flag": flag, "help": help, **argparse_options})


@dataclasses.dataclass(frozen=True)
class Config:
    """How SuperCLIP trains. Raises InputError, naming the flag, for a value that cannot be."""

    weight: float = _flag(
        "--superclip-weight", 1.0, "λ, what multiplies the class loss; the paper recommends 1 or more", type=float
    )
    idf: str = _flag(
        "--superclip-idf",
        "online",
        "weights of the words: their inverse document frequency in the captions seen so far, or none",
        metavar="{online,off}",
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

    def __post_init__(self):
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"--superclip-weight is {self.weight}; expected a finite number, 0 or more")
        if self.idf not in ("online", "off"):
            raise InputError(f"--superclip-idf is '{self.idf}'; expected online or off")
        if self.head_warmup < 0:
            raise InputError(f"--superclip-head-warmup is {self.head_warmup}; expected 0 or more samples")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds a group with --superclip and its options. A flag that is not given leaves no attribute behind."""
    group = parser.add_argument_group("SuperCLIP", "a class loss on the mean patch token, beside the contrastive loss")
    group.add_argument(
        "--superclip", action="store_true", default=argparse.SUPPRESS, help="train with the SuperCLIP class loss"
    )
    for field in dataclasses.fields(Config):
        options = dict(field.metadata)
        shown = "" if field.default is False else f" (default: {field.default})"
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
    given = {f: options[_attribute(f)] for f in dataclasses.fields(Config) if _attribute(f) in options}
    if not options.get("superclip", False):
        if given:
            flag = next(iter(given)).metadata["flag"]
            raise InputError(f"{flag} does nothing without --superclip: add --superclip, or leave {flag} out")
        return None
    return Config(**{field.name: value for field, value in given.items()})


def options_of(config: Config) -> dict:
    """Returns every option of `config` under its name on the parsed command line, defaults included."""
    return {_attribute(field): getattr(config, field.name) for field in dataclasses.fields(Config)}


def _attribute(field: dataclasses.Field) -> str:
    return f"superclip_{field.name}"
