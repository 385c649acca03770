"""Which captions a file of word frequencies counts, and whether a run's class loss is given those."""

from typing import NamedTuple

from ..config import Config, short_share
from ..errors import InputError


def counted_captions(config: Config, context_length: int) -> str:
    """Returns what the class loss is given, as a file of counts tells it: `mixed:0.8 json:re_caption, 77 tokens`."""
    place = config.long_caption if config.captions != "short" else ""
    return f"{_mode(config)} {place}".strip() + f", {config.long_context or context_length} tokens"


def check_counted_captions(
    counted: str, config: Config, context_length: int, *, what: str, command: str, table: bool
) -> None:
    """Raises InputError where the captions `counted`, or how many of their tokens, are not those of a run.

    Args:
        counted: as the file describes them.
        config: of the run; `context_length` is its text tower's.
        command: that counts the run's captions, to which their flags are added.
        table: whether the run reads a table: its columns have other names than the members of the counted shards.
    """
    given = counted_captions(config, context_length)
    there, wanted = _parts(counted), _parts(given)
    if table:
        there, wanted = there._replace(place=""), wanted._replace(place="")
    if there == wanted or there.tokens is None:
        return
    flags = "" if wanted.share == 1 else f" --captions {_mode(config)} --long-caption {config.long_caption}"
    raise InputError(
        f"{what} counts the captions '{counted}', and the class loss is given '{given}': count those with "
        f"{command}{flags} --context {wanted.tokens} --out FILE, or train on the captions that were counted"
    )


class _Captions(NamedTuple):
    share: float | None  # of short captions
    place: str  # of the long ones
    tokens: int | None  # None in a description that does not tell


def _parts(captions: str) -> _Captions:
    """Returns what a description of captions says, equal where it means the same."""
    described, _, tokens = captions.removesuffix(" tokens").rpartition(", ")
    mode, _, place = described.partition(" ")
    share = short_share(mode)
    if share == 1:
        place = ""
    elif not place.startswith("json:"):
        place = place.lower().lstrip(".")
    return _Captions(share, place, int(tokens) if tokens.isdecimal() else None)


def _mode(config: Config) -> str:
    return "long" if config.captions == "dual" else config.captions
