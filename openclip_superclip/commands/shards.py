"""superclip shards: writes images and captions as WebDataset shards."""

import argparse
import os
import shlex
from pathlib import Path

from ..errors import InputError, Parser, at_least, no_effect
from .shared_options import add_columns, add_count, add_folder, add_number, columns_of


def main(argv: list[str]) -> int:
    """Writes the shards, and prints what was written and the commands that use it; returns the
    exit code."""
    options = _parse(argv)
    from ..data.conversion import reasons, write_pair_shards
    from ..data.images import counts_text
    from ..data.pairs import Keys, read_pairs

    out = options.out
    keys = Keys(columns_of(options, options.source, "SOURCE"), options.label_key, options.long_key)
    written = write_pair_shards(
        read_pairs(options.source, keys, options.images),
        out,
        val_share=options.val_share,
        shard_size=options.shard_size,
        seed=options.seed,
        jobs=options.jobs,
    )
    for split, pattern in written.patterns.items():
        print(f"{split}: {written.sizes[split]:,} pairs in {pattern}")
    if written.converted:
        changes = "upright, with 8 bits per channel, transparent pixels on white"
        print(f"converted images ({changes}): {counts_text(written.converted)}")
    if written.left_out:
        print(f"left out: {reasons(written.left_out)}; {out}/left_out.csv lists all")
    if "val" in written.patterns:
        evaluation = ["--data", f"{out}/evaluation", "--datasets", *written.data_sets]
        print(shlex.join(["superclip", "evaluate", "MODEL", *evaluation]))
        data = ["--data", written.patterns["train"], "--val-data", written.patterns["val"]]
        size = written.sizes["train"]
        command = ["superclip", "study", "own_data", *data, "--set", f"data_samples={size}"]
        if size < 64:  # own_data's batch size
            command += ["--set", f"global_batch_size={max(1, size // 4)}"]
        print(shlex.join(command))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        "shards",
        "Converts images and captions to WebDataset shards: a training and a "
        "validation split, each with sizes.json, and data sets for superclip evaluate. Images "
        "that OpenCLIP would read rotated, nearly white or with hidden colours are converted. "
        "Pairs that cannot be read are listed and left out.",
        "pairs.csv shards",
    )
    add = parser.option
    add(
        "source",
        "a table (.csv, .tsv), a folder with a .txt or .json beside each image, or COCO's "
        "captions (.json)",
        metavar="SOURCE",
    )
    add("out", "a new folder for the shards", type=Path, metavar="OUT")
    add_columns(parser, captions=", or field of each .json")
    add(
        "--label-key",
        "column or field with a class, for zero-shot and linear probe",
        default="",
        metavar="KEY",
    )
    add(
        "--long-key",
        "column or field with a longer caption, which becomes long.txt",
        default="",
        metavar="KEY",
    )
    add_folder(parser, "--images", "folder of COCO's images (default: the JSON's)")
    add_number(
        parser,
        "--val-share",
        0.1,
        "fraction of the pairs for validation; no image and no caption is in both splits",
        metavar="FRACTION",
    )
    add_count(parser, "--shard-size", "pairs per shard (default: 16 to 10,000, for 32 shards)")
    add_number(parser, "--seed", 0, "seed of the order", metavar="N")
    add(
        "--jobs",
        "processes (default: one per core)",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
    )
    options = parser.parse_args(argv)
    if not 0 <= options.val_share < 1:
        raise InputError(
            f"--val-share is {options.val_share}; expected a fraction from 0 to below 1"
        )
    at_least(options, shard_size=1, jobs=1)
    if not options.source.endswith(".json"):
        no_effect(options, options.source, "images")
    return options
