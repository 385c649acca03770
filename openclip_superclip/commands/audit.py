"""superclip audit: scores the pairs of a data set, word by word, and selects the best ones."""

import argparse
import os
from pathlib import Path

from ..audit import SORTED_BY
from ..environment import check_device
from ..errors import InputError, Parser, at_least
from .shared_options import (
    add_columns,
    add_folder,
    add_model_options,
    add_number,
    columns_of,
    from_options,
)


def main(argv: list[str]) -> int:
    options = _parse(argv)
    from ..audit.audit import Audit
    from ..audit.reading import open_data

    data = open_data(options.data, columns_of(options, options.data))
    audit = from_options(Audit, options, data=data, device=check_device(options.device))
    audit.score()
    print(audit.finish(options.worst, options.keep))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        "audit",
        "Scores how well the image of each pair of a data set supports its caption: "
        "class loss, support of each word, likely words that the caption lacks, and the CLIP score "
        "of the same model. Writes one line of JSON per pair and a page of the worst pairs. If a "
        "call is interrupted, the same command continues it.",
        "pairs.csv --model logs/superclip --out audit --keep 0.8",
    )
    add = parser.option
    add(
        "data",
        "a table (.csv, .tsv) or a brace pattern of shards, in quotes, as for training",
        metavar="DATA",
    )
    add(
        "--model",
        "the folder of a run, a training checkpoint, or a folder of superclip export "
        "--with-head; without a class head there is only the CLIP score",
        type=Path,
        required=True,
    )
    add_folder(parser, "--out", "folder for the results", required=True)
    add_columns(parser)
    add(
        "--by",
        "order of the pairs, for --keep and the page; both: the mean of the ranks by support "
        "and by CLIP score (default: both; clip-score without a head)",
        choices=SORTED_BY,
        default="",
    )
    add(
        "--keep",
        "write the best pairs: DIR/kept.csv for a table, shards in DIR/kept for shards",
        type=float,
        metavar="FRACTION",
    )
    add_number(parser, "--worst", 60, "pairs on the page", metavar="N")
    add_model_options(parser)
    add_number(parser, "--batch-size", 64, "images per batch", metavar="N")
    add(
        "--threads",
        "number of threads that read images (default: one per core, at most 8)",
        type=int,
        default=min(8, os.cpu_count() or 1),
        metavar="N",
    )
    options = parser.parse_args(argv)
    at_least(options, batch_size=1, threads=1, worst=1)
    if options.keep is not None and not 0 < options.keep < 1:
        raise InputError(
            f"--keep is {options.keep}; expected a fraction above 0 and below 1, such as 0.8"
        )
    return options
