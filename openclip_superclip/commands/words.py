"""superclip words: lists the words that a class head finds in images."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..errors import IN_TEXT, InputError, Parser, at_least, listed, printable, to_stdout
from ..extras import require
from ..files import atomic_output, check_out, write_record
from .shared_options import add_count, add_model_options, add_switch, expanded_path

if TYPE_CHECKING:
    from ..words.tagger import Tagger

SKIPPED = 3  # exit code if some images could not be read


def main(argv: list[str]) -> int:
    """Prints the words of each image, or writes them to a folder. Returns the exit code, which is
    SKIPPED if some images could not be read."""
    from ..words.tag_images import COMMAND, find_images

    options = _parse(argv)
    paths = find_images(options.images)
    out = options.out
    if out is None and (options.heatmap or any(path.is_dir() for path in options.images)):
        out = Path("words")
    if out is not None:
        check_out(out, paths, COMMAND, overwrite=options.overwrite, folder=True)
    if options.heatmap:
        require("--heatmap", "report", "matplotlib")
    tagger = _tagger(options)
    if out is None:
        return _tag(options, paths, tagger)
    with atomic_output(out, overwrite=options.overwrite) as folder:
        folder.mkdir()
        code = _tag(options, paths, tagger, folder, out)
        write_record(folder, COMMAND)
    return code


def _tag(
    options: Namespace,
    paths: list[Path],
    tagger: "Tagger",
    folder: Path | None = None,
    out: Path | None = None,
) -> int:
    """Prints the words of each image, or writes them to `folder`, which will be `out`; returns the
    exit code."""
    from ..words.tag_images import tag_images, write_folder

    tagged = tag_images(paths, tagger, folder if options.heatmap else None, out)
    writes_page = folder is not None and not _only_draws(options)
    if writes_page:
        written = write_folder(folder, tagged, options.model)
        tagged = tqdm(written, total=len(paths), unit=" images", disable=None)
    num_skipped = 0
    for image in tagged:
        num_skipped += image.words is None
        if not writes_page or image.words is None:
            tqdm.write(printable(image.table(), IN_TEXT))
    if num_skipped == len(paths):
        raise InputError(f"none of the {len(paths):,} images could be read")
    if writes_page:
        to_stdout(
            f"{len(paths) - num_skipped:,} images, {num_skipped:,} skipped: {out}/index.html, "
            f"{out}/words.jsonl"
        )
    return SKIPPED if num_skipped else 0


def _only_draws(options: Namespace) -> bool:
    """Returns whether only heat maps are written, of single images."""
    return options.out is None and not any(path.is_dir() for path in options.images)


def _parse(argv: list[str]) -> Namespace:
    parser = Parser(
        "words",
        "Lists the words that the class head finds in images, among the words of its training "
        "captions. The score of a word is its probability: the head was trained to predict the "
        "words of the caption, weighted by IDF.",
        "images/ --model logs/superclip --heatmap",
    )
    add = parser.option
    add("images", "image files, or folders of them", nargs="+", type=Path, metavar="IMAGE")
    add(
        "--model",
        "a model with a class head: the folder of a run, a training checkpoint, or a folder "
        "of superclip export --with-head",
        type=expanded_path,
        required=True,
    )
    add_model_options(parser)
    add("--words", "words and phrases to show, separated by commas, or a file with one per line")
    add_count(
        parser, "--top", "the N most likely words of an image (default: 10, or all of --words)"
    )
    add_switch(parser, "--heatmap", "draw a heat map of each word, one PNG per image in --out")
    add(
        "--out",
        "folder for index.html, words.jsonl and heat maps (default: words, for folders and "
        "heat maps; otherwise nothing is written)",
        type=expanded_path,
    )
    add_switch(parser, "--overwrite", "replace an existing folder")
    options = parser.parse_args(argv)
    at_least(options, top=1)
    return options


def _tagger(options: Namespace) -> "Tagger":
    """Returns a tagger with the model of --model and the words of --words."""
    from ..words.lexicon import chosen_lexicon
    from ..words.open_checkpoint import open_with_head
    from ..words.tagger import Tagger

    opened = open_with_head(options.model, options.architecture, options.device)
    if opened.model.class_head.reads == "pooled" and options.heatmap:
        raise InputError(
            f"--heatmap: the class head of {options.model} reads the pooled vector, not "
            "patches: leave the flag out, or train with --superclip-head-input patches"
        )
    chosen = None
    if options.words is not None:
        chosen = chosen_lexicon(options.words, opened.tokenizer, len(opened.token_weights))
    tagger = Tagger(opened, chosen, options.top)
    if chosen is not None:
        unseen = [word for word in chosen.words if word not in tagger.lexicon.words]
        if unseen:
            to_stdout(f"left out, because no training caption contains them: {listed(unseen)}")
    return tagger
