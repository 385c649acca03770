"""superclip frequencies: counts the captions of a data set that contain each token, for
--superclip-idf FILE."""

import argparse
from pathlib import Path

from ..data.frequencies import COMMAND
from ..data.tables import detect_columns, is_table
from ..errors import InputError, Parser, at_least, no_effect, to_stderr, to_stdout
from ..files import check_out, make_folder
from .shared_options import add_columns, add_count, add_number, add_output, from_options


def main(argv: list[str]) -> int:
    options = _parse(argv)
    import torch

    from ..checkpoints.architecture import read_architecture
    from ..data.frequencies import CaptionCounter, unreadable_text
    from ..data.tar_shards import expand
    from ..flags import Config

    torch.set_num_threads(1)  # the forked workers must not inherit its thread pool
    model = read_architecture(options.tokenizer_of, flag="--tokenizer-of")
    model = model.with_options({"force_context_length": options.context})
    tokenizer = model.tokenizer()
    columns = None
    shards = [options.data]
    chosen = (options.csv_separator, options.csv_img_key, options.csv_caption_key)
    if is_table(options.data):
        no_effect(options, options.data, "text_key")
        columns = detect_columns(options.data, *chosen, "DATA")
        if None in chosen:
            to_stderr(f"superclip: {options.data}: {columns.description}")
    else:
        no_effect(options, options.data, "csv_separator", "csv_img_key", "csv_caption_key")
        shards = sorted(expand(options.data, "DATA"))
    try:
        config = from_options(Config, options)
        member = options.text_key or "txt"
        counter = CaptionCounter(config, tokenizer, options.seed, columns, member)
        make_folder(options.out.parent)
        frequencies, unreadable = counter.count(shards, options.workers)
    except InputError as error:  # which names the flags of training
        raise InputError(str(error).replace("--superclip-", "--")) from error
    frequencies.write(options.out)
    source = options.data if columns else f"{len(shards):,} shards"
    if unreadable:
        source = f"{len(shards) - len(unreadable):,} of {source}"
    to_stdout(
        f"{options.out}: {frequencies.num_captions:,} captions of {source}, {frequencies.tokenizer}"
    )
    _, num_missing = counter.reader.counts.so_far()
    if num_missing:
        to_stdout(f"without a long caption: {num_missing:,} (--missing-long {config.missing_long})")
    if unreadable:
        to_stdout(unreadable_text(unreadable, len(shards)))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        "frequencies",
        "Counts the captions with each token, in one pass over WebDataset shards or a "
        "table, without reading images. --superclip-idf FILE then weights words by the whole data "
        "set from the first step on.",
        "'x/{0..9}.tar' --tokenizer-of ViT-B-16 --out df.safetensors",
    )
    add = parser.option
    add(
        "data",
        "the value of --train-data: 'shards/{00000..41455}.tar', several joined by ::, or a .csv",
        metavar="DATA",
    )
    add_columns(parser)
    add("--text-key", "member with captions (default: txt)", metavar="KEY")
    add("--tokenizer-of", "the model to train", metavar="MODEL", required=True)
    add(
        "--captions",
        "captions of the class loss: short, long, dual or mixed:P (default: %(default)s)",
        default="short",
    )
    add(
        "--long-caption",
        "location of the long caption: long.txt, json:a.b, a column",
        default="",
        metavar="KEY",
    )
    add(
        "--missing-long",
        "which caption counts for a sample without a long one: use-short, skip (none) or error "
        "(default: %(default)s)",
        default="use-short",
    )
    add_count(
        parser, "--context", "number of tokens per caption to read (default: the text tower's)"
    )
    add_number(parser, "--seed", 0, "seed of mixed:P")
    add_number(parser, "--workers", 1, "processes that count shards")
    add_output(parser, "the file to write", "file of counts")
    options = parser.parse_args(argv)
    at_least(options, workers=1, context=3)
    check_out(options.out, [Path(options.data)], COMMAND, overwrite=options.overwrite)
    return options
