"""superclip words: names the words that a class head sees in images, and shows when a run learned them."""

import argparse
import json
import sys
from pathlib import Path

from ..environment import progress_file, require
from ..errors import InputError
from ..files import make_folder
from ..rules import Rule, at_least, check

SKIPPED = 3  # exit code if some images could not be read
USELESS = {  # options that have no effect in another mode
    "course": ("images", "serve", "model", "architecture", "words", "top", "heatmap", "device", "host", "port"),
    "serve": ("images", "heatmap", "json", "out"),
}


def _useless(given: argparse.Namespace) -> str:
    """Returns a message about the first option that has no effect, or "" if there is none."""
    for mode, names in USELESS.items():
        name = next((name for name in names if getattr(given, name) not in (None, False, [])), None)
        if getattr(given, mode) and name:
            return f"{given.images[0] if name == 'images' else f'--{name}'} does nothing with --{mode}"
    needs_serve = given.host is not None or given.port is not None
    return "--host and --port do nothing without --serve" if needs_serve and not given.serve else ""


RULES = [
    Rule(
        "--course has {found} runs; expected one, or two to compare",
        lambda given: len(given.course or ()) > 2 and len(given.course),
    ),
    Rule("{found}: leave it out", _useless),
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
    """Runs the command and returns its exit code, which is SKIPPED if some images could not be read."""
    options = _parse(argv)
    if options.course:
        return _course(options)
    if options.serve:
        return _serve(options)
    return _tag(options)


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
    at_least(options, top=1)
    check(RULES, options)
    return options


def _course(options: argparse.Namespace) -> int:
    """Prints and writes when the runs learned their words. Returns the exit code."""
    require("--course", "report", "matplotlib")
    from ..words.learning import NAME, course_record, course_text, read_word_courses, write_word_courses

    out = options.out or Path(NAME)
    courses = read_word_courses(options.course)
    make_folder(out, "--out")
    write_word_courses(out, courses)
    for course in courses:
        if course.warning:
            print(f"warning: {course.warning}", file=sys.stderr)
        print(json.dumps(course_record(course)) if options.json else course_text(course))
    if not options.json:
        print(f"see also {out}/{NAME}.csv, .json and .png")
    return 0


def _serve(options: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C. Returns the exit code."""
    require("--serve", "serve", "starlette", "uvicorn", "matplotlib")
    from ..words.server import LOOPBACK, bind, loopback_names, serve, shown_host, words_app

    host = options.host or LOOPBACK
    listening = bind(host, 8000 if options.port is None else options.port)
    names = loopback_names(host, listening)
    app = words_app(_tagger(options), options.model.resolve().name, names)
    if names is None:
        print(f"warning: --host {host}: everyone who reaches this machine can use the page", file=sys.stderr)
    address = f"http://{shown_host(host)}:{listening.getsockname()[1]}/"
    print(f"{address} shows the words of images; Ctrl-C stops it", flush=True)
    serve(app, listening)
    return 0


def _tagger(options: argparse.Namespace):
    """Returns a tagger with the model of --model and the words of --words."""
    from ..words.lexicon import chosen_lexicon
    from ..words.tagger import Tagger, open_with_head

    opened = open_with_head(options.model, options.architecture, options.device)
    if opened.model.class_head.reads == "pooled" and options.heatmap:
        raise InputError(
            f"--heatmap: the class head of {options.model} reads the pooled vector, which has no places: leave the "
            "flag out, or train with --superclip-head-input both or patches"
        )
    chosen = None
    if options.words is not None:
        chosen = chosen_lexicon(options.words, opened.tokenizer, len(opened.token_weights))
    return Tagger(opened, chosen, options.top)


def _tag(options: argparse.Namespace) -> int:
    """Prints the words of each image, or writes them to a folder. Returns the exit code."""
    from tqdm import tqdm

    from ..words.tag_images import WordsFolder, find_images, tag_images

    paths, out = find_images(options.images), options.out or Path("words")
    writes_folder = options.out is not None or any(path.is_dir() for path in options.images)
    if options.heatmap:
        require("--heatmap", "report", "matplotlib")
    tagger = _tagger(options)
    if writes_folder or options.heatmap:
        make_folder(out, "--out")
    if writes_folder:
        folder = WordsFolder(out, paths, tagger, options.model, options.heatmap)
        if folder.earlier:
            print(f"{len(folder.earlier):,} images were tagged before", file=sys.stderr)
        tagged = tqdm(folder.write(), total=len(paths), unit=" images", file=progress_file())
    else:
        tagged = tag_images(paths, tagger, out if options.heatmap else None)
    num_skipped = 0
    for one in tagged:
        num_skipped += one.words is None
        if options.json:
            tqdm.write(json.dumps(one.record()))
        elif not writes_folder or one.words is None:
            tqdm.write(one.table())
    if num_skipped == len(paths):
        raise InputError(f"none of the {len(paths):,} images could be read")
    if writes_folder and not options.json:
        print(f"{len(paths) - num_skipped:,} images, {num_skipped:,} skipped: {out}/index.html, {out}/words.jsonl")
    return SKIPPED if num_skipped else 0
