"""superclip words: the words that the class head sees in pictures, and where; and when a run learned them."""

import argparse
import json
import sys
from pathlib import Path

from ..environment import progress_file, require
from ..errors import InputError
from ..files import make_folder
from ..rules import at_least

SKIPPED = 3  # exit code where some of the pictures could not be read


STOPPED = 130  # by Ctrl-C


def main(argv: list[str]) -> int:
    """Prints the words of each picture, or writes them all; returns the exit code, 3 where pictures were skipped."""
    options = _parse(argv)
    if options.course:
        return _course(options)
    if options.serve:
        return _serve(options)
    from ..words.tag_images import find_pictures

    paths = find_pictures(options.images)
    if options.heatmap:
        require("--heatmap", "report", "matplotlib")
    writes_folder = options.out is not None or any(path.is_dir() for path in options.images)
    try:
        num_skipped = _write(options, paths) if writes_folder else _print(options, paths)
    except KeyboardInterrupt:  # before the first picture
        return STOPPED
    if num_skipped is None:
        return STOPPED
    if num_skipped == len(paths):
        raise InputError(f"none of the {len(paths):,} pictures could be read")
    return SKIPPED if num_skipped else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip words",
        description="Says which words the class head sees in pictures. A score is the word's share of the caption that "
        "the head expects, rare words weighing most: the IDF-weighted distribution that it was trained to predict.",
        epilog="example: superclip words pictures/ --model exported/ --heatmap",
    )
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="files, and folders of them")
    parser.add_argument(
        "--model", type=Path,
        help="with a class head: a folder of superclip export --with-head or of superclip import, or a training "
        "checkpoint",
    )  # fmt: skip
    parser.add_argument(
        "--course", nargs="+", type=Path, metavar="RUN",
        help="instead: when each word was learned, of one run or two side by side; of folders that --superclip has "
        "trained, without a model (--out, default word_course: word_course.csv, .json and .png)",
    )  # fmt: skip
    parser.add_argument(
        "--serve", action="store_true",
        help="instead: a page for the browser; drop a picture, see its words, and where; type a word",
    )  # fmt: skip
    parser.add_argument("--host", help="the address of --serve: 0.0.0.0 is for all the network (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="of --serve; 0 is any that is free (default: 8000)")
    parser.add_argument("--architecture", help="the OpenCLIP model's name, where nothing beside the checkpoint says it")
    parser.add_argument(
        "--words", help="look for these alone: words and phrases with commas between them, or a file with one a line"
    )
    parser.add_argument(
        "--top", type=int, metavar="K", help="the K highest words of a picture (default: 10, or all of --words)"
    )
    parser.add_argument(
        "--heatmap", action="store_true", help="draw where each word is seen, one PNG per picture in --out"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per picture, no tables")
    parser.add_argument(
        "--out", type=Path,
        help="folder for index.html, words.jsonl and heat maps (default: words, where a folder is given or heat maps "
        "are drawn; otherwise nothing is written); the same command resumes a call that was stopped",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    options = parser.parse_args(argv)
    at_least(options, top=1, port=0)
    if not options.serve and (options.host is not None or options.port is not None):
        raise InputError("--host and --port do nothing without --serve: add --serve, or leave them out")
    if options.course:
        _check_course(options)
    elif options.serve:
        _check_serve(options)
    elif not options.images:
        raise InputError("IMAGE is missing: expected pictures or folders of them, --course RUN or --serve")
    elif options.model is None:
        raise InputError("--model is missing: expected a folder of superclip export --with-head, or a checkpoint")
    return options


def _check_course(options: argparse.Namespace) -> None:
    """Raises InputError for what cannot go with --course."""
    if len(options.course) > 2:
        raise InputError(f"--course has {len(options.course)} runs; expected one, or two to stand side by side")
    if options.images:
        raise InputError(f"--course tells of a run, not of pictures: leave {options.images[0]} out")
    others = {"serve": False, "model": None, "architecture": None, "words": None, "top": None, "heatmap": False}
    for name, default in others.items():
        if getattr(options, name) != default:
            raise InputError(f"--{name} does nothing with --course: leave it out")


def _course(options: argparse.Namespace) -> int:
    """Prints and writes when the runs learned their words; returns the exit code."""
    require("--course", "report", "matplotlib")
    from ..words.learning import course_record, course_text, missing_told, read_word_courses, write_word_courses

    out = options.out or Path("word_course")
    courses = read_word_courses(options.course)
    make_folder(out, "--out")
    try:
        write_word_courses(out, courses)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({error.strerror})") from error
    for course in courses:
        if course.missing:
            print(f"warning: {missing_told(course)}", file=sys.stderr)
        print(json.dumps(course_record(course)) if options.json else course_text(course))
    if not options.json:
        print(f"{out}/word_course.csv, .json and .png hold the rest.")
    return 0


def _check_serve(options: argparse.Namespace) -> None:
    """Raises InputError for what cannot go with --serve."""
    if options.images:
        raise InputError(f"--serve is given its pictures by the browser: leave {options.images[0]} out")
    for name, default in (("heatmap", False), ("json", False), ("out", None)):
        if getattr(options, name) != default:
            raise InputError(f"--{name} does nothing with --serve: leave it out")
    if options.model is None:
        raise InputError("--model is missing: expected a folder of superclip export --with-head, or a checkpoint")


def _serve(options: argparse.Namespace) -> int:
    """Answers browsers until Ctrl-C; returns the exit code."""
    require("--serve", "serve", "starlette", "uvicorn", "matplotlib")
    from ..words.server import LOOPBACK, bind, loopback_names, serve, shown_host, words_app

    host = options.host or LOOPBACK
    listening = bind(host, 8000 if options.port is None else options.port)
    names = loopback_names(host, listening)
    app = words_app(_tagger(options, None), options.model.resolve().name, names)
    if names is None:
        print(f"warning: --host {host}: whoever reaches this machine can use the page", file=sys.stderr)
    address = f"http://{shown_host(host)}:{listening.getsockname()[1]}/"
    print(f"{address} shows the words of pictures; Ctrl-C ends it", flush=True)
    serve(app, listening)
    return 0


def _tagger(options: argparse.Namespace, out: Path | None):
    """Returns what sees words, for a folder of results that can be written, and is not left where the model is none."""
    from ..words.tagger import Tagger, open_with_head

    is_new = out is not None and not out.exists()
    if out is not None:
        make_folder(out, "--out")
    try:
        opened = open_with_head(options.model, options.architecture, options.device)
        if opened.model.class_head.reads == "pooled" and options.heatmap:
            raise InputError(
                f"--heatmap: the class head of {options.model} reads the pooled vector, which has no places: leave the "
                "flag out, or train with --superclip-head-input both or patches"
            )
        return Tagger(opened, options.words, options.top)
    except InputError:
        if is_new:
            out.rmdir()
        raise


def _print(options: argparse.Namespace, paths: list[Path]) -> int | None:
    """Prints each picture's table or line of JSON; returns how many could not be read, None where it was stopped."""
    from ..words.tag_images import tag_pictures

    heatmaps = Path("words") if options.heatmap else None
    num_seen = num_skipped = 0
    try:
        for picture in tag_pictures(paths, _tagger(options, heatmaps), heatmaps, {}):
            num_seen += 1
            num_skipped += picture.words is None
            print(picture.json() if options.json else picture.table(), flush=True)
    except KeyboardInterrupt:
        print(f"\nstopped after {num_seen:,} of {len(paths):,} pictures", file=sys.stderr)
        return None
    return num_skipped


def _write(options: argparse.Namespace, paths: list[Path]) -> int | None:
    """Writes the folder; returns how many pictures could not be read, None where it was stopped."""
    from tqdm import tqdm

    from ..words.tag_images import unfinished_words, write_words_folder

    out = options.out or Path("words")
    tagger, skipped = _tagger(options, out), []
    with tqdm(total=len(paths), unit=" pictures", file=progress_file()) as progress:

        def tell(picture) -> None:
            if options.json:
                print(picture.json(), flush=True)
            if picture.words is None:
                skipped.append(picture)
            progress.update()

        try:
            unfinished = unfinished_words(out, options.model, options.words, tagger, paths, options.heatmap)
            if unfinished.earlier:
                progress.write(f"{len(unfinished.earlier):,} pictures were tagged before", file=sys.stderr)
            write_words_folder(out, paths, tagger, str(options.model), options.heatmap, unfinished, tell)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise InputError(f"--out: {out} cannot be written ({error.strerror})") from error
        except KeyboardInterrupt:
            progress.close()
            print(f"stopped after {progress.n:,} of {len(paths):,}: the same command resumes", file=sys.stderr)
            return None
    if not options.json:
        for picture in skipped:
            print(picture.table())
        num_seen = len(paths) - len(skipped)
        print(f"{num_seen:,} pictures, {len(skipped):,} skipped: {out}/index.html, {out}/words.jsonl")
    return len(skipped)
