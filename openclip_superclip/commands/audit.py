"""superclip audit: scores the pairs of a data set, word by word, and selects the best ones."""

import argparse
import os
import re
import sys
from pathlib import Path

from ..audit import SORTED_BY
from ..rules import Rule, at_least, check
from ..runs.run import Settings
from .options import add_columns, columns_of


def _part(options: argparse.Namespace) -> tuple[int, int] | None:
    """Parses --part I/N. Returns None if it is invalid."""
    found = re.fullmatch(r"(\d+)/(\d+)", options.part or "")
    number, of = map(int, found.groups()) if found else (0, 0)
    return (number, of) if 1 <= number <= of else None


RULES = [
    Rule(
        "--part is {part}; expected such as 3/16, from 1/16 to 16/16",
        lambda given: given.part is not None and _part(given) is None,
    ),
    Rule(
        "--keep is {keep}; expected a fraction above 0 and below 1, such as 0.8",
        lambda given: given.keep is not None and not 0 < given.keep < 1,
    ),
    Rule(
        "--write-shards writes what --keep keeps; expected --keep, too",
        lambda given: given.write_shards and given.keep is None,
    ),
    Rule(
        "--unreadable-max is {unreadable_max}; expected a fraction from 0 to 1",
        lambda given: not 0 <= given.unreadable_max <= 1,
    ),
    Rule(
        "--keep needs all parts: leave out --part to join them, or --keep",
        lambda given: given.part and given.keep is not None,
    ),
    Rule(
        "--part: torchrun's processes share the data already: leave --part out",
        lambda given: given.part and int(os.environ.get("WORLD_SIZE", 1)) > 1,
    ),
]


def main(argv: list[str]) -> int:
    """Runs the audit, prints the summary, and returns the exit code."""
    argv = argv[1:] if argv[:1] == ["--"] else argv  # torchrun requires "--" and passes it on
    options = _parse(argv)
    from ..evaluation.features import EvaluationRanks

    ranks = EvaluationRanks()
    summary = _audit(options, ranks)
    if ranks.is_first:
        print(summary)
    ranks.end()
    return 0


def _audit(options: argparse.Namespace, ranks) -> str:
    """Runs the audit and returns the summary, which is only meaningful on the first rank."""
    from ..audit.audit import Audit
    from ..audit.pairs import Part, open_data
    from ..environment import check_device
    from ..words.tagger import read_model

    device, model = check_device(options.device), read_model(options.model)
    data = open_data(options.data, columns_of(options, options.data))
    part = Part(*_part(options)) if options.part else None
    if ranks.world_size > 1:
        part = Part(ranks.rank + 1, ranks.world_size)
    audit = Audit(
        data, model, options.out, options.by, part, options.keep, options.write_shards, options.architecture, device,
        options.batch_size, options.threads,
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
        return f"part {part.number}/{part.of} is scored; when all parts are, the command without --part joins them"
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
        "--by", choices=SORTED_BY, default="",
        help="order of the pairs, for --keep and the page; both: the mean of the ranks by support and by CLIP score "
        "(default: both; clip-score without a head)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=float, metavar="FRACTION",
        help="keep the best pairs: kept.txt, for tables and folders kept.csv",
    )  # fmt: skip
    parser.add_argument(
        "--write-shards", action="store_true", help="with --keep, for shards: the kept samples, in DIR/kept"
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
    check(RULES, options)
    return options
