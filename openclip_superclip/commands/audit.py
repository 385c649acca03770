"""superclip audit: scores the pairs of a data set, word by word, and keeps the best ones."""

import argparse
import os
import re
import sys
from pathlib import Path

from ..audit import SORTED_BY
from ..errors import InputError
from ..rules import at_least
from ..runs.run import Settings
from .options import add_columns, columns_of

STOPPED = 130  # by Ctrl-C


def main(argv: list[str]) -> int:
    """Scores the pairs, writes the page and the kept pairs, prints the summary, and returns the exit code."""
    argv = argv[1:] if argv[:1] == ["--"] else argv  # torchrun needs it, and passes it on
    options = _parse(argv)
    from ..evaluation.features import EvaluationRanks

    ranks = EvaluationRanks()
    try:
        summary = _audit(options, ranks)
    except KeyboardInterrupt:
        print("stopped: the same command resumes", file=sys.stderr)
        return STOPPED
    if summary:
        print(summary)
    ranks.end()
    return 0


def _audit(options: argparse.Namespace, ranks) -> str:
    """Returns the summary, "" on all ranks but the first."""
    from ..audit.audit import Audit, Options
    from ..audit.pairs import Part

    part = Part(*options.part) if options.part else None
    if ranks.world_size > 1:
        part = Part(ranks.rank + 1, ranks.world_size)
    settings = Options(options.architecture, options.device, options.batch_size, options.threads)
    audit = Audit(
        options.data, columns_of(options, options.data), options.model, options.out, options.by, part, options.keep,
        options.write_shards, settings,
    )  # fmt: skip
    failed = None
    try:
        earlier = audit.score()
    except Exception as error:
        if ranks.world_size == 1:
            raise
        failed = error
    ranks.raise_together(failed)
    if earlier and ranks.is_first:
        print(f"{earlier:,} pairs were scored before", file=sys.stderr)
    if options.part:
        number, of = options.part
        file = audit.folder.file_of(part)
        if not file.exists():
            return f"part {number}/{of} is scored and joined with the others: {audit.folder.scores}"
        return f"part {number}/{of} is scored: {file}; without --part the command joins the parts"
    if not ranks.is_first:
        return ""
    return audit.finish(options.worst, options.unreadable_max)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip audit",
        description="Scores how well the image of each pair of a data set supports its caption: class loss, support of "
        "each word, words that the caption lacks, and CLIP score of the same model. Writes one line of JSON per pair "
        "and a page of the worst pairs. The same command resumes an interrupted call.",
        epilog="example: superclip audit pairs.csv --model logs/superclip --out audit --keep 0.8",
    )
    parser.add_argument(
        "data", metavar="DATA",
        help="a table (.csv, .tsv), a folder with a .txt or .json beside each image, or a brace pattern of shards, "
        "in quotes",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=Path, required=True,
        help="a run's folder, a training checkpoint, or a folder of superclip export --with-head or of superclip "
        "import; without a class head there is only the CLIP score",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add_columns(parser, of_json=True)
    parser.add_argument(
        "--by", choices=SORTED_BY,
        help="order of the pairs, for --keep and the page; both: the mean of the ranks by support and by CLIP score "
        "(default: both; clip-score without a head)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=float, metavar="FRACTION",
        help="keep the best pairs: kept.txt, for tables and folders kept.csv",
    )  # fmt: skip
    parser.add_argument(
        "--write-shards",
        action="store_true",
        help="with --keep, for shards: the kept samples, in DIR/kept",
    )
    parser.add_argument("--worst", type=int, default=60, metavar="N", help="pairs on the page (default: %(default)s)")
    parser.add_argument(
        "--part", metavar="I/N",
        help="score one of N parts, on one of several machines; without it the same command joins the parts",
    )  # fmt: skip
    parser.add_argument("--architecture", help="the OpenCLIP model's name, if nothing beside the checkpoint records it")
    parser.add_argument("--device", help="(default: cuda if there is a GPU)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=min(8, os.cpu_count() or 1), metavar="N",
        help="number of threads that read images (default: one per core, at most 8)",
    )  # fmt: skip
    parser.add_argument(
        "--unreadable-max", type=float, default=Settings.unreadable_max, metavar="FRACTION",
        help="if more of the pairs or shards cannot be read, the exit code is 1 (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    at_least(options, batch_size=1, threads=1, worst=1)
    if options.keep is not None and not 0 < options.keep < 1:
        raise InputError(f"--keep is {options.keep}; expected a fraction above 0 and below 1, such as 0.8")
    if options.write_shards and options.keep is None:
        raise InputError("--write-shards writes what --keep keeps; expected --keep, too")
    if not 0 <= options.unreadable_max <= 1:
        raise InputError(f"--unreadable-max is {options.unreadable_max}; expected a fraction from 0 to 1")
    options.part = _part(options)
    return options


def _part(options: argparse.Namespace) -> tuple[int, int] | None:
    if options.part is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", options.part)
    number, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= of:
        raise InputError(f"--part is {options.part}; expected such as 3/16, from 1/16 to 16/16")
    if options.keep is not None:
        raise InputError("--keep needs all parts: leave out --part to join them, or --keep")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("--part: torchrun's processes share the data already: leave --part out")
    return number, of
