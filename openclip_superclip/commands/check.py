"""superclip check: reads all shards, or all images of a table, before anything is trained on
them."""

from ..data.data_check import check_data
from ..data.tables import detect_columns, kind
from ..data.tar_shards import expand, is_remote
from ..errors import InputError, Parser, to_stdout
from ..flags import Config
from ..plans.plan_text import data_rows, lines_of
from .shared_options import add_columns


def main(argv: list[str]) -> int:
    """Prints what the data contain, and returns the exit code, 1 if training cannot read a shard or
    an image."""
    parser = Parser(
        "check",
        "Reads all shards of a data set, or all images of a table, as training reads them, and "
        "lists what it could not read. The exit code is 1 if there is any.",
        "pairs.csv",
    )
    parser.option(
        "data",
        "the value of --train-data: 'shards/{00000..41455}.tar', several joined by ::, or a .csv",
        metavar="DATA",
    )
    add_columns(parser)
    parser.option(
        "--long-caption",
        "also count the samples without this: long.txt, json:a.b, a column",
        default="",
        metavar="KEY",
    )
    options = parser.parse_args(argv)
    data_kind = kind(options.data) or "shards"
    names = [options.data] if data_kind == "table" else expand(options.data, "DATA")
    remote = next(filter(is_remote, names), None)
    if remote is not None:
        raise InputError(f"DATA: {remote} is not on this machine; expected files")
    chosen = (options.csv_separator, options.csv_img_key, options.csv_caption_key)
    columns = detect_columns(options.data, *chosen, "DATA") if data_kind == "table" else None
    long = options.long_caption
    config = Config(captions="long", long_caption=long) if long else Config()
    check = check_data(options.data, "DATA", data_kind, columns, config, full=True)
    to_stdout("\n".join(lines_of(data_rows(options.data, check))))
    return 1 if check.bad else 0
