"""superclip words: lists the words that a class head finds in images, and shows when a run
learned them."""

import json
from argparse import Namespace
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError, Parser, at_least, no_effect
from ..extras import require
from ..files import check_results, make_folder
from .shared_options import add_count, add_model_options, add_switch

SKIPPED = 3  # exit code if some images could not be read


def main(argv: list[str]) -> int:
    """Runs the command and returns its exit code, which is SKIPPED if some images could not be
    read."""
    options = _parse(argv)
    if options.course:
        return _course(options)
    if not options.serve:
        return _tag(options)
    no_effect(options, "--serve", "heatmap", "json", "out")
    require("--serve", "serve")
    import uvicorn

    from ..words.server import MAX_REQUESTS, words_app

    port = 8000 if options.port is None else options.port
    app = words_app(_tagger(options), options.model.resolve().name)
    uvicorn.run(app, port=port, access_log=False, limit_concurrency=MAX_REQUESTS)
    return 0


def _parse(argv: list[str]) -> Namespace:
    parser = Parser(
        "words",
        "Lists the words that the class head finds in images. The score of a word is its "
        "probability: the head was trained to predict the words of the caption, weighted by IDF.",
        "images/ --model logs/superclip --heatmap",
    )
    add = parser.option
    add("images", "files, and folders of them", nargs="*", type=Path, metavar="IMAGE")
    add(
        "--model",
        "a model with a class head: the folder of a run, a training checkpoint, or a folder "
        "of superclip export --with-head",
        type=Path,
    )
    add(
        "--course",
        "show when each word was learned, for one run or several side by side, given as folders "
        "of runs with --superclip; needs no --model (--out, default word_course: word_course.csv, "
        ".json and .png)",
        nargs="+",
        type=Path,
        metavar="RUN",
    )
    add_switch(
        parser,
        "--serve",
        "serve a web page: drop an image to see its words and their locations, or type a word",
    )
    add("--port", "port of --serve (default: 8000); 0 means any free one", type=int)
    add_model_options(parser)
    add("--words", "words and phrases to show, separated by commas, or a file with one per line")
    add_count(
        parser, "--top", "the N most likely words of an image (default: 10, or all of --words)"
    )
    add_switch(parser, "--heatmap", "draw a heat map of each word, one PNG per image in --out")
    add_switch(parser, "--json", "print one line of JSON per image instead of tables")
    add(
        "--out",
        "folder for index.html, words.jsonl and heat maps (default: words, for folders and "
        "heat maps; otherwise nothing is written)",
        type=Path,
    )
    options = parser.parse_args(argv)
    at_least(options, top=1)
    if not 0 <= (options.port or 0) < 2**16:
        raise InputError(f"--port is {options.port}; expected 0 to 65535")
    actions = [bool(options.images), options.serve, options.course is not None]
    if actions.count(True) != 1:
        raise InputError("expected one of IMAGE, --serve and --course")
    if not options.course and options.model is None:
        expected = "the folder of a run or of superclip export --with-head, or a checkpoint"
        raise InputError(f"--model is missing: expected {expected}")
    return options


def _course(options: Namespace) -> int:
    """Prints and writes when the runs learned their words. Returns the exit code."""
    unused = ("model", "architecture", "words", "top", "heatmap", "json", "device", "port")
    no_effect(options, "--course", *unused)
    require("--course", "report", "matplotlib")
    from ..checkpoints.epoch_words import find_course
    from ..rendering import run_names
    from ..words.word_course import MARK, NAME, course_text, word_course, write_word_courses

    out = options.out or Path(NAME)
    check_results(out, [f"{NAME}{suffix}" for suffix in (".json", ".csv", ".png")], MARK)
    runs = zip(run_names(options.course), options.course, strict=True)
    courses = [word_course(name, find_course(run)) for name, run in runs]
    make_folder(out)
    write_word_courses(out, courses)
    for course in courses:
        print(course_text(course))
    print(f"see also {out}/{NAME}.csv, .json and .png")
    return 0


def _tagger(options: Namespace):
    """Returns a tagger with the model of --model and the words of --words."""
    from ..words.lexicon import chosen_lexicon
    from ..words.open_checkpoint import open_with_head
    from ..words.tagger import Tagger

    opened = open_with_head(options.model, options.architecture, options.device)
    if opened.model.class_head.reads == "pooled" and options.heatmap:
        raise InputError(
            f"--heatmap: the class head of {options.model} reads the pooled vector, not "
            "patches: leave the flag out, or train with --superclip-head-input both or patches"
        )
    chosen = None
    if options.words is not None:
        chosen = chosen_lexicon(options.words, opened.tokenizer, len(opened.token_weights))
    return Tagger(opened, chosen, options.top)


def _tag(options: Namespace) -> int:
    """Prints the words of each image, or writes them to a folder. Returns the exit code."""
    from ..words.tag_images import FILES, MARK, find_images, tag_images, write_folder

    no_effect(options, "IMAGE", "port")
    paths = find_images(options.images)
    out = options.out or Path("words")
    writes_folder = options.out is not None or any(path.is_dir() for path in options.images)
    if writes_folder:
        check_results(out, FILES, MARK)
    if options.heatmap:
        require("--heatmap", "report", "matplotlib")
    tagger = _tagger(options)
    if writes_folder or options.heatmap:
        make_folder(out)
    tagged = tag_images(paths, tagger, out if options.heatmap else None)
    if writes_folder:
        tagged = tqdm(
            write_folder(out, tagged, options.model), total=len(paths), unit=" images", disable=None
        )
    num_skipped = 0
    for image in tagged:
        num_skipped += image.words is None
        if options.json:
            tqdm.write(json.dumps(image.record()))
        elif not writes_folder or image.words is None:
            tqdm.write(image.table())
    if num_skipped == len(paths):
        raise InputError(f"none of the {len(paths):,} images could be read")
    if writes_folder and not options.json:
        print(
            f"{len(paths) - num_skipped:,} images, {num_skipped:,} skipped: {out}/index.html, "
            f"{out}/words.jsonl"
        )
    return SKIPPED if num_skipped else 0
