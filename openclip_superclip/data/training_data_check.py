"""Looks for captions in the training data before anything is loaded."""

import contextlib
import itertools
import os
import tarfile

import braceexpand

from ..errors import InputError

NUM_LOOKED_AT = 1000  # samples: enough to tell a wrong column or member from a data set with holes
NUM_SHARDS = 3  # OpenCLIP skips a shard that is missing or broken, so one alone proves nothing


def is_table(train_data: str, dataset_type: str) -> bool:
    """Returns whether OpenCLIP reads the training data as a table."""
    return dataset_type == "csv" or (dataset_type == "auto" and train_data.endswith((".csv", ".tsv")))


def check_captions(
    train_data: str, dataset_type: str, csv_separator: str, csv_caption_key: str, long_caption: str = ""
) -> None:
    """Raises InputError where the head of the training data holds no caption at all, or no long one if it should.

    Looks at the first rows of a table or at the first local shards; URLs and pipes are left to OpenCLIP.
    """
    pattern = train_data.split("::")[0]
    if "://" in pattern or pattern.startswith("pipe:"):
        return
    try:
        paths = list(itertools.islice(filter(os.path.exists, braceexpand.braceexpand(pattern)), NUM_SHARDS))
    except braceexpand.UnbalancedBracesError as error:
        raise InputError(
            f"--train-data: {pattern} has unbalanced braces; expected such as 'x/{{00..41}}.tar'"
        ) from error
    if not paths:
        raise InputError(f"--train-data: there is no file {pattern}")
    if is_table(pattern, dataset_type):
        _check_table(paths[0], csv_separator, csv_caption_key, long_caption)
        return
    for path in paths:
        try:
            _check_shard(path)
            return _check_long_captions(path, long_caption) if long_caption else None
        except InputError as error:
            last = error
    raise last


def _check_table(path: str, separator: str, key: str, long_caption: str) -> None:
    import pandas as pd  # as OpenCLIP reads it: any separator, encoding and compression that pandas knows

    from . import caption_tokens as captions

    try:
        rows = pd.read_csv(path, sep=separator, nrows=NUM_LOOKED_AT)
    except (OSError, ValueError) as error:
        raise InputError(f"--train-data: {path} is not a readable table ({_one_line(error)})") from error
    if key not in rows:
        raise InputError(f"--csv-caption-key: {path} has no column '{key}'; its columns are {', '.join(rows)}")
    if not rows[key].dropna().astype(str).str.strip().any():
        raise InputError(f"--train-data: the column '{key}' of {path} holds no caption in its first rows")
    if long_caption and not any(captions.long_caption(row, long_caption) for row in rows.to_dict("records")):
        raise InputError(
            f"--superclip-long-caption: the first rows of {path} hold no '{long_caption}'; its columns are "
            + ", ".join(rows)
        )


def _check_shard(path: str) -> None:
    members = set()
    try:
        with tarfile.open(path) as shard:
            for member in itertools.islice(shard, 4 * NUM_LOOKED_AT):
                extension = member.name.rpartition("/")[2].partition(".")[2].lower()
                if extension == "txt" and member.size > 0:
                    return
                members.add(extension)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"--train-data: {path} is not a readable tar file ({_one_line(error)})") from error
    found = ", ".join(f".{extension}" for extension in sorted(members)) or "nothing"
    raise InputError(f"--train-data: {path} holds no captions: expected members that end in .txt, found {found}")


def _check_long_captions(path: str, place: str) -> None:
    from .caption_tokens import long_caption
    from .shard_reader import read_captions

    members = {}
    for sample in itertools.islice(read_captions(path, place), NUM_LOOKED_AT):
        with contextlib.suppress(ValueError):  # one that cannot be read: OpenCLIP skips it
            if long_caption(sample, place):
                return
        members |= sample
    found = ", ".join(name for name in members if not name.startswith("__"))
    raise InputError(f"--superclip-long-caption: the samples of {path} hold no '{place}'; their members are {found}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
