"""superclip audit: scores the pairs of a data set, word by word, and selects the best ones."""

import argparse
import os
from pathlib import Path

from ..environment import check_device
from ..errors import InputError, Parser, at_least
from ..lab.audit import SORTED_BY
from .options import add_columns, columns_of


def main(argv: list[str]) -> int:
    options = _parse(argv)
    from ..lab.audit.audit import Audit, check_is_free
    from ..lab.audit.reading import open_data
    from ..lab.words.tagger import read_model

    data = open_data(options.data, columns_of(options, options.data))
    check_is_free(options.out)
    device, model = check_device(options.device), read_model(options.model)
    audit = Audit(
        data,
        model,
        options.out,
        options.by,
        options.architecture,
        device,
        options.batch_size,
        options.threads,
    )
    audit.score()
    print(audit.finish(options.worst, options.keep))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="superclip audit",
        description="Scores how well the image of each pair of a data set supports its "
        "caption: class loss, support of "
        "each word, likely words that the caption lacks, and the CLIP score of the same model. "
        "Writes one line of JSON "
        "per pair and a page of the worst pairs. If a call is interrupted, the same command "
        "continues it.",
        epilog="example: superclip audit pairs.csv --model logs/superclip --out audit --keep 0.8",
    )
    add = parser.add_argument
    add(
        "data",
        metavar="DATA",
        help="a table (.csv, .tsv) or a brace pattern of shards, in quotes, as for training",
    )
    add(
        "--model",
        type=Path,
        required=True,
        help="the folder of a run, a training checkpoint, or a folder of superclip export "
        "--with-head or of superclip import; without a class head there is only the CLIP score",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add_columns(parser)
    add(
        "--by",
        choices=SORTED_BY,
        default="",
        help="order of the pairs, for --keep and the page; both: the mean of the ranks by "
        "support and by CLIP score (default: both; clip-score without a head)",
    )
    about = "write the best pairs: DIR/kept.csv for a table, shards in DIR/kept for shards"
    add("--keep", type=float, metavar="FRACTION", help=about)
    add(
        "--worst",
        type=int,
        default=60,
        metavar="N",
        help="pairs on the page (default: %(default)s)",
    )
    add(
        "--architecture",
        help="the name of the OpenCLIP model, if it is not recorded with the weights",
    )
    add("--device", help="device of the model (default: cuda if there is a GPU)")
    add(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="images per batch (default: %(default)s)",
    )
    about = "number of threads that read images (default: one per core, at most 8)"
    add("--threads", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help=about)
    options = parser.parse_args(argv)
    at_least(options, batch_size=1, threads=1, worst=1)
    if options.keep is not None and not 0 < options.keep < 1:
        raise InputError(
            f"--keep is {options.keep}; expected a fraction above 0 and below 1, such as 0.8"
        )
    return options
