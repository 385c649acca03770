"""superclip words: the words that the class head sees in pictures, and where."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from ..optional_dependencies import check_matplotlib

SKIPPED = 3  # exit code where some of the pictures could not be read


def main(argv: list[str]) -> int:
    """Prints the words of each picture, or writes them all; returns the exit code, 3 where pictures were skipped."""
    options = _parse(argv)
    from ..tagging.picture_files import find_pictures

    paths = find_pictures(options.images)
    if options.heatmap:
        check_matplotlib("--heatmap")
    writes_sheet = options.out is not None or any(path.is_dir() for path in options.images)
    options.out = options.out or Path("words")
    if writes_sheet or options.heatmap:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out: {options.out} cannot be written ({error.strerror})") from error
    num_skipped = _write_sheet(options, paths) if writes_sheet else _print(options, paths)
    if num_skipped == len(paths):
        raise InputError(f"none of the {len(paths):,} pictures could be read")
    return SKIPPED if num_skipped else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip words",
        description="Says which words the class head sees in pictures. A score is the word's share of the caption that "
        "the head expects, rare words weighing most: the IDF-weighted distribution that it was trained to predict.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files, and folders of them")
    parser.add_argument(
        "--model", type=Path, required=True,
        help="with a class head: a folder of superclip export --with-head or of superclip import, or a training "
        "checkpoint",
    )  # fmt: skip
    parser.add_argument("--architecture", help="the OpenCLIP model's name, where nothing beside the checkpoint says it")
    parser.add_argument(
        "--words", help="look for these alone: words and phrases with commas between them, or a file with one a line"
    )
    parser.add_argument(
        "--top", type=int, default=10, metavar="K", help="the K highest of a picture (default: %(default)s)"
    )
    parser.add_argument("--heatmap", action="store_true", help="draw where each word is seen, a PNG a picture in --out")
    parser.add_argument("--json", action="store_true", help="print a line of JSON a picture, no tables")
    parser.add_argument(
        "--out", type=Path,
        help="folder for index.html, words.jsonl and heat maps (default: words, where a folder is given or heat maps "
        "are drawn; otherwise nothing is written)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    options = parser.parse_args(argv)
    if options.top < 1:
        raise InputError(f"--top is {options.top}; expected 1 or more")
    return options


def _results(options: argparse.Namespace, paths: list[Path]) -> Iterator:
    from ..tagging.tagged_picture import tag_pictures
    from ..tagging.tagger import Tagger
    from ..tagging.tagging_model import open_with_head

    opened = open_with_head(options.model, options.architecture, options.device)
    tagger = Tagger(opened, options.words, options.top)
    return tag_pictures(paths, tagger, options.out if options.heatmap else None, opened.preprocess_cfg)


def _print(options: argparse.Namespace, paths: list[Path]) -> int:
    """Prints each picture's table or line of JSON and returns how many could not be read."""
    num_skipped = 0
    for result in _results(options, paths):
        num_skipped += result.words is None
        print(result.json() if options.json else result.table())
    return num_skipped


def _write_sheet(options: argparse.Namespace, paths: list[Path]) -> int:
    """Writes the contact sheet and the lines of JSON, and returns how many pictures could not be read."""
    from tqdm import tqdm

    from ..atomic_files import whole_file
    from ..tagging.contact_sheet import ContactSheet

    results, skipped = _results(options, paths), []
    with whole_file(options.out / "words.jsonl") as lines, whole_file(options.out / "index.html") as page:
        sheet = ContactSheet(page, f"The words of {len(paths):,} pictures", str(options.model), options.heatmap)
        for result in tqdm(results, total=len(paths), unit=" pictures"):
            lines.write(f"{result.json()}\n".encode())
            sheet.add(result)
            if options.json:
                print(result.json())
            if result.words is None:
                skipped.append(result)
        sheet.close()
    if not options.json:
        for result in skipped:
            print(result.table())
        num_seen = len(paths) - len(skipped)
        print(f"{num_seen:,} pictures, {len(skipped):,} skipped: {options.out}/index.html, {options.out}/words.jsonl")
    return len(skipped)
