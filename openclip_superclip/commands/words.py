"""superclip words: the words that the class head sees in images, and where; and when a run learned them."""

import argparse
import json
import sys
from pathlib import Path

from ..environment import progress_file, require
from ..errors import InputError, reason
from ..files import make_folder
from ..rules import Rule, at_least, check

SKIPPED = 3  # exit code if some images could not be read
STOPPED = 130  # by Ctrl-C
ALONE = ("serve", "model", "architecture", "words", "top", "heatmap", "device")  # of no use with --course


def _useless(options: argparse.Namespace, names: tuple[str, ...]) -> str:
    """Returns the first given option of those names, as a flag."""
    given = (name for name in names if getattr(options, name) not in (None, False))
    return next((f"--{name}" for name in given), "")


RULES = [
    Rule(
        "--host and --port do nothing without --serve: add --serve, or leave them out",
        lambda given: not given.serve and (given.host is not None or given.port is not None),
    ),
    Rule(
        "--course has {found} runs; expected one, or two to compare",
        lambda given: len(given.course or ()) > 2 and len(given.course),
    ),
    Rule(
        "--course shows a run, not images: leave {found} out",
        lambda given: given.course and given.images and given.images[0],
    ),
    Rule("{found} does nothing with --course: leave it out", lambda given: given.course and _useless(given, ALONE)),
    Rule(
        "--serve gets its images from the browser: leave {found} out",
        lambda given: given.serve and given.images and given.images[0],
    ),
    Rule(
        "{found} does nothing with --serve: leave it out",
        lambda given: given.serve and _useless(given, ("heatmap", "json", "out")),
    ),
    Rule(
        "IMAGE is missing: expected images or folders of them, --course RUN or --serve",
        lambda given: not (given.images or given.course or given.serve),
    ),
    Rule(
        "--model is missing: expected the folder of a run or of superclip export --with-head, or a checkpoint",
        lambda given: not given.course and given.model is None,
    ),
]


def main(argv: list[str]) -> int:
    """Prints or writes the words of each image; returns the exit code, 3 if images were skipped."""
    options = _parse(argv)
    if options.course:
        return _course(options)
    if options.serve:
        return _serve(options)
    from ..words.tag_images import find_images

    paths = find_images(options.images)
    if options.heatmap:
        require("--heatmap", "report", "matplotlib")
    writes_folder = options.out is not None or any(path.is_dir() for path in options.images)
    readable: list[bool] = []  # of each image that is done
    try:
        (_write if writes_folder else _print)(options, paths, readable)
    except KeyboardInterrupt:
        resume = ": the same command resumes" if writes_folder else ""
        print(f"\nstopped after {len(readable):,} of {len(paths):,}{resume}", file=sys.stderr)
        return STOPPED
    if not any(readable):
        raise InputError(f"none of the {len(paths):,} images could be read")
    return 0 if all(readable) else SKIPPED


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip words",
        description="Names the words that the class head sees in images. A word's score is its fraction of the caption "
        "that the head predicts, weighted by IDF: the distribution that it was trained to predict.",
        epilog="example: superclip words images/ --model logs/superclip --heatmap",
    )
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="files, and folders of them")
    parser.add_argument(
        "--model", type=Path,
        help="with a class head: the folder of a run, a training checkpoint, or a folder of superclip export "
        "--with-head or of superclip import",
    )  # fmt: skip
    parser.add_argument(
        "--course", nargs="+", type=Path, metavar="RUN",
        help="instead: when each word was learned, for one run or two side by side, from the folders of runs with "
        "--superclip, without a model (--out, default word_course: word_course.csv, .json and .png)",
    )  # fmt: skip
    parser.add_argument(
        "--serve", action="store_true",
        help="instead: a page for the browser; drop an image to see its words and where they are, or type a word",
    )  # fmt: skip
    parser.add_argument("--host", help="address of --serve; 0.0.0.0 is the whole network (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port of --serve; 0 means any free one (default: 8000)")
    parser.add_argument("--architecture", help="the OpenCLIP model's name, if nothing beside the checkpoint records it")
    parser.add_argument(
        "--words", help="only these words and phrases, separated by commas, or a file with one per line"
    )
    parser.add_argument(
        "--top", type=int, metavar="K", help="the K highest words of an image (default: 10, or all of --words)"
    )
    parser.add_argument(
        "--heatmap", action="store_true", help="draw where each word is seen, one PNG per image in --out"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per image instead of tables")
    parser.add_argument(
        "--out", type=Path,
        help="folder for index.html, words.jsonl and heat maps (default: words, for folders and heat maps; otherwise "
        "nothing is written); the same command resumes a call that was stopped",
    )  # fmt: skip
    parser.add_argument("--device", help="(default: cuda if there is a GPU)")
    options = parser.parse_args(argv)
    at_least(options, top=1, port=0)
    check(RULES, options)
    return options


def _course(options: argparse.Namespace) -> int:
    """Prints and writes when the runs learned their words; returns the exit code."""
    require("--course", "report", "matplotlib")
    from ..words.learning import NAME, course_record, course_text, read_word_courses, write_word_courses

    out = options.out or Path(NAME)
    courses = read_word_courses(options.course)
    make_folder(out, "--out")
    try:
        write_word_courses(out, courses)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({reason(error)})") from error
    for course in courses:
        if course.warning:
            print(f"warning: {course.warning}", file=sys.stderr)
        print(json.dumps(course_record(course)) if options.json else course_text(course))
    if not options.json:
        print(f"see also {out}/{NAME}.csv, .json and .png")
    return 0


def _serve(options: argparse.Namespace) -> int:
    """Answers browsers until Ctrl-C; returns the exit code."""
    require("--serve", "serve", "starlette", "uvicorn", "matplotlib")
    from ..words.server import LOOPBACK, bind, loopback_names, serve, shown_host, words_app

    host = options.host or LOOPBACK
    listening = bind(host, 8000 if options.port is None else options.port)
    names = loopback_names(host, listening)
    app = words_app(_tagger(options, None), options.model.resolve().name, names)
    if names is None:
        print(f"warning: --host {host}: everyone who reaches this machine can use the page", file=sys.stderr)
    address = f"http://{shown_host(host)}:{listening.getsockname()[1]}/"
    print(f"{address} shows the words of images; Ctrl-C stops it", flush=True)
    serve(app, listening)
    return 0


def _tagger(options: argparse.Namespace, out: Path | None):
    """Returns the tagger and makes the folder for results, which does not stay if the model is refused."""
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


def _print(options: argparse.Namespace, paths: list[Path], readable: list[bool]) -> None:
    """Prints each image's table or line of JSON, and adds to `readable` whether it could be read."""
    from ..words.tag_images import tag_images

    heatmaps = Path("words") if options.heatmap else None
    for tagged in tag_images(paths, _tagger(options, heatmaps), heatmaps, {}):
        readable.append(tagged.words is not None)
        print(json.dumps(tagged.record()) if options.json else tagged.table(), flush=True)


def _write(options: argparse.Namespace, paths: list[Path], readable: list[bool]) -> None:
    """Writes the folder, and adds to `readable` whether each image could be read."""
    from tqdm import tqdm

    from ..words.tag_images import unfinished_words, write_words_folder

    out = options.out or Path("words")
    tagger, skipped = _tagger(options, out), []

    def show(tagged) -> None:
        if options.json:
            print(json.dumps(tagged.record()), flush=True)
        elif tagged.words is None:
            skipped.append(tagged.table())
        readable.append(tagged.words is not None)
        progress.update()

    try:
        unfinished = unfinished_words(out, options.model, options.words, tagger, paths, options.heatmap)
        if unfinished.earlier:
            print(f"{len(unfinished.earlier):,} images were tagged before", file=sys.stderr)
        with tqdm(total=len(paths), unit=" images", file=progress_file()) as progress:
            write_words_folder(out, paths, tagger, str(options.model), options.heatmap, unfinished, show)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written ({reason(error)})") from error
    if not options.json:
        print(*skipped, sep="\n", end="\n" if skipped else "")
        print(f"{sum(readable):,} images, {len(skipped):,} skipped: {out}/index.html, {out}/words.jsonl")
