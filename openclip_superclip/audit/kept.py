"""Copies the best pairs of an audit into a table or into shards."""

import contextlib
import io
import itertools
import operator
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas

from ..data.tables import ROWS_AT_ONCE
from ..data.tar_shards import contract, numbered_members
from ..errors import InputError
from ..files import keep_private, whole_file, whole_output, write_json
from .reading import AuditedData


def write_kept(
    out: Path, data: AuditedData, kept: np.ndarray, places: Iterable[Sequence[int]]
) -> str:
    """Writes the kept pairs to `out`, replacing those of an earlier call, and returns the table or
    pattern of shards.

    `kept` is bool [N], and `places` are (shard, sample) of each kept pair.
    """
    if data.columns is None:
        return _write_shards(out / "kept", data, places)
    table = out / f"kept{Path(data.source).suffix}"
    is_pattern = len(data.columns.separator) > 1
    separator = "\t" if is_pattern else data.columns.separator  # of the copy
    with (
        whole_file(table) as file,
        pandas.read_csv(
            data.source,
            **data.columns.pandas_options,
            dtype=str,
            keep_default_na=False,
            chunksize=ROWS_AT_ONCE,
        ) as chunks,
    ):
        keep_private(Path(file.name), Path(data.source))
        for rows in chunks:
            rows[kept[rows.index]].to_csv(
                file,
                mode="wb",
                sep=separator,
                index=False,
                header=rows.index.start == 0,
                lineterminator="\r\n",  # a cell with either of them is quoted
            )
    return f"{table}, separated by tabs" if is_pattern else str(table)


def _write_shards(out: Path, data: AuditedData, places: Iterable[Sequence[int]]) -> str:
    """Copies the kept samples unchanged into shards of the same names, and returns their brace
    pattern."""
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if path.name != "sizes.json" and path.suffix != ".tar":
            raise InputError(
                f"--keep: {out} contains {path.name}, which it would delete; move it elsewhere"
            )
    names = [os.path.basename(shard) for shard in data.files]
    if len(set(names)) < len(names):
        names = [f"{number:06}.tar" for number in range(len(names))]
    sizes = {}
    with whole_output(out, overwrite=True) as folder:
        folder.mkdir()
        for shard, group in itertools.groupby(places, operator.itemgetter(0)):
            samples = {sample for _, sample in group}
            _copy_samples(Path(data.files[shard]), folder / names[shard], samples)
            sizes[names[shard]] = len(samples)
        write_json(folder / "sizes.json", sizes)
    return contract([str(out / name) for name in sizes])


def _copy_samples(shard: Path, copy: Path, samples: set[int]) -> None:
    """Copies the samples with these numbers into a new shard."""
    copy.touch()
    keep_private(copy, shard)
    with (
        tarfile.open(shard) as source,
        tarfile.open(copy, "w", format=tarfile.GNU_FORMAT) as target,
        # damage in the last kept sample or after it
        contextlib.suppress(EOFError, tarfile.TarError),
    ):
        for number, _, _, member in numbered_members(source):
            if number in samples:
                # read completely before its header is written
                target.addfile(member, io.BytesIO(source.extractfile(member).read()))
                target.members.clear()
