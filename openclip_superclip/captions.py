"""Looks for captions in the training data before anything is loaded."""

import itertools
import os
import tarfile

import braceexpand

from .errors import InputError

NUM_LOOKED_AT = 1000  # samples: enough to tell a wrong column or member from a data set with holes
NUM_SHARDS = 3  # OpenCLIP skips a shard that is missing or broken, so one alone proves nothing


def check_captions(train_data: str, dataset_type: str, csv_separator: str, csv_caption_key: str) -> None:
    """Raises InputError where the head of the training data holds no caption at all.

    Looks at the first rows of a table or at the first local shards; URLs and pipes are left to OpenCLIP.
    """
    pattern = train_data.split("::")[0]
    if "://" in pattern or pattern.startswith("pipe:"):
        return
    existing = filter(os.path.exists, braceexpand.braceexpand(pattern))
    paths = list(itertools.islice(existing, NUM_SHARDS))
    if not paths:
        raise InputError(f"--train-data: there is no file {pattern}")
    if dataset_type == "csv" or (dataset_type == "auto" and pattern.endswith((".csv", ".tsv"))):
        _check_table(paths[0], csv_separator, csv_caption_key)
        return
    for path in paths:
        try:
            return _check_shard(path)
        except InputError as error:
            last = error
    raise last


def _check_table(path: str, separator: str, key: str) -> None:
    import pandas as pd  # as OpenCLIP reads it: any separator, encoding and compression that pandas knows

    try:
        rows = pd.read_csv(path, sep=separator, nrows=NUM_LOOKED_AT)
    except (OSError, ValueError) as error:
        raise InputError(f"--train-data: {path} is not a readable table ({_one_line(error)})") from error
    if key not in rows:
        raise InputError(f"--csv-caption-key: {path} has no column '{key}'; its columns are {', '.join(rows)}")
    if not rows[key].dropna().astype(str).str.strip().any():
        raise InputError(f"--train-data: the column '{key}' of {path} holds no caption in its first rows")


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
