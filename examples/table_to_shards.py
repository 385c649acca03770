"""Writes the pairs of a table as WebDataset shards for training and for validation."""

import argparse
import csv
import hashlib
import io
import json
import random
from collections import Counter
from pathlib import Path

from PIL import Image
from webdataset import ShardWriter

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="such as pairs.csv")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--val-fraction", type=float, default=0.1)
    parser.add_argument("--shard-size", type=int, help="pairs (default: for 32 shards)")
    options = parser.parse_args()
    with options.table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"filepath", "title"} <= rows[0].keys():
        parser.error(f"{options.table} has no rows with the columns filepath and title")
    if options.out.exists():
        parser.error(f"{options.out} exists; expected a new folder")
    random.Random(0).shuffle(rows)  # similar rows are often next to each other
    size = options.shard_size or min(10_000, max(16, len(rows) // 32))
    writers = {}
    for split in ("train", "val"):
        (options.out / split).mkdir(parents=True)
        writers[split] = ShardWriter(str(options.out / split / "%06d.tar"), size, verbose=0)
    sizes = {split: Counter() for split in writers}
    for number, row in enumerate(rows):
        try:
            content = Path(row["filepath"]).read_bytes()
            with Image.open(io.BytesIO(content), formats=list(EXTENSIONS)) as image:
                image.load()
            if None in row:
                raise ValueError("more cells than columns: put the caption in quotes")
            if not (row["title"] or "").strip():
                raise ValueError("no title")
        except (OSError, ValueError, SyntaxError) as error:
            print(f"left out: {row['filepath']}: {error}")
            continue
        is_train = hashlib.sha256(content).digest()[0] >= 256 * options.val_fraction
        split = "train" if is_train else "val"
        extension = EXTENSIONS.get(image.format, "jpg")  # phones write JPEG as MPO
        members = {extension: content, "txt": row["title"]}
        writers[split].write({"__key__": f"{number:09}", **members})
        sizes[split][Path(writers[split].fname).name] += 1
    for split, writer in writers.items():
        writer.close()
        (options.out / split / "sizes.json").write_text(json.dumps(sizes[split]))
        print(f"{split}: {sizes[split].total():,} of {len(rows):,} pairs")


main()
