"""superclip frequencies: counts the captions of a data set that contain each token, for --superclip-idf FILE."""

import argparse
import re
from pathlib import Path

from ..data.tables import is_table
from ..errors import InputError
from ..pages import markdown_table
from ..rules import at_least
from .options import add_columns, columns_of

NUM_LISTED = 20  # tokens that --show lists at either end


def main(argv: list[str]) -> int:
    """Counts, merges or shows; prints a summary and returns the exit code."""
    options = _parse(argv)
    if options.show:
        print(_show(options))
        return 0
    if options.out is None:
        raise InputError("--out is missing: the file to write, df.safetensors")
    if not options.merge and not options.tokenizer_of:
        raise InputError("--tokenizer-of is missing: the model that will be trained")
    print(_merge(options) if options.merge else _count(options))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip frequencies",
        description="Counts, in one pass over WebDataset shards or a table, how many captions hold each token. Images "
        "are not read. --superclip-idf FILE then weights every word by the whole data set from the first step on.",
        epilog="example: superclip frequencies 'x/{0..9}.tar' --tokenizer-of ViT-B-16 --out df.safetensors",
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument(
        "data", nargs="?", metavar="DATA",
        help="what --train-data would be: 'shards/{00000..41455}.tar', with ::, or a .csv of images and captions",
    )  # fmt: skip
    mode.add_argument("--merge", type=Path, nargs="+", metavar="PART", help="add up the counts of different shards")
    mode.add_argument("--show", type=Path, metavar="FILE", help="list the rarest and commonest words")
    add_columns(parser)
    parser.add_argument("--text-key", default="txt", metavar="KEY", help="member of a caption (default: %(default)s)")
    parser.add_argument("--tokenizer-of", metavar="MODEL", help="the model that will be trained")
    parser.add_argument(
        "--captions", default="short",
        help="what the class loss will be given: short, long or mixed:P; long for dual (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--long-caption", default="", metavar="KEY", help="where the long caption is: long.txt, json:a.b, a column"
    )
    parser.add_argument("--context", type=int, help="tokens of a caption that are read (default: the text tower's)")
    parser.add_argument("--seed", type=int, default=0, help="of mixed:P's draw (default: %(default)s)")
    parser.add_argument(
        "--jobs",
        "--workers",
        dest="workers",
        type=int,
        default=1,
        help="processes that count shards (default: %(default)s)",
    )
    parser.add_argument("--part", default="1/1", metavar="I/N", help="count only the I-th of N parts of the shards")
    parser.add_argument(
        "--out", type=Path, help="file to write; an interrupted count resumes from the .part file beside it"
    )
    options = parser.parse_args(argv)
    at_least(options, workers=1, context=3)
    return options


def _count(options: argparse.Namespace) -> str:
    import open_clip
    import torch

    from ..checkpoints.model_files import know_model
    from ..config import Config
    from ..data.frequencies import Counting, count_shards
    from ..data.shards import expand

    torch.set_num_threads(1)  # the forked workers must not inherit its thread pool
    if options.captions == "dual":
        raise InputError("--captions dual: the class loss is given the long captions, count with --captions long")
    know_model(options.tokenizer_of, "--tokenizer-of")
    tokenizer = open_clip.get_tokenizer(options.tokenizer_of, context_length=options.context)
    columns, shards = None, [options.data]
    if is_table(options.data):
        columns = columns_of(options, options.data)
    else:
        shards = sorted(set(expand(options.data, "DATA")))
        found = re.fullmatch(r"(\d+)/(\d+)", options.part)
        if not found or not 1 <= int(found[1]) <= int(found[2]) <= len(shards):
            raise InputError(
                f"--part is {options.part}; expected I/N, 1/16 to 16/16, with at most {len(shards)} parts: the shards"
            )
        shards = shards[int(found[1]) - 1 :: int(found[2])]
    try:
        config = Config(captions=options.captions, long_caption=options.long_caption)
        counting = Counting(config, tokenizer, options.seed, columns, options.text_key)
        frequencies, broken = count_shards(counting, shards, options.workers, options.out)
    except InputError as error:  # which names the flags of training
        raise InputError(str(error).replace("--superclip-", "--")) from error
    what, where = ("rows", options.data) if columns else ("samples", f"{len(shards):,} shards")
    lines = [f"{options.out}: {frequencies.num_captions:,} captions of {where}, {frequencies.tokenizer}"]
    if num_missing := counting.reader.counts.so_far().missing:
        lines.append(f"{num_missing:,} {what} have no long caption: the short one was counted")
    if broken:
        lines.append(f"{len(broken)} could not be read to their end: " + ", ".join(broken[:5]))
    return "\n".join(lines)


def _merge(options: argparse.Namespace) -> str:
    from ..data.frequencies import merge, read_frequencies

    total = merge([read_frequencies(part) for part in options.merge], [str(part) for part in options.merge])
    total.write(options.out)
    return f"{options.out}: {total.num_captions:,} captions of {len(total.shards):,} shards, {total.tokenizer}"


def _show(options: argparse.Namespace) -> str:
    from ..data.frequencies import read_frequencies
    from ..method.token_statistics import idf

    frequencies = read_frequencies(options.show)
    counts = frequencies.document_frequency
    weights, decode = idf(counts, frequencies.num_captions), str
    if options.tokenizer_of:
        import open_clip

        tokenizer = open_clip.get_tokenizer(options.tokenizer_of)
        inner = getattr(tokenizer, "tokenizer", tokenizer)
        decode = lambda token: inner.decode([token]).strip() or str(token)  # noqa: E731
    held = [token for token in counts.argsort(descending=True).tolist() if counts[token]]
    lines = [
        f"{options.show}: {frequencies.num_captions:,} captions of {len(frequencies.shards):,} shards "
        f"({frequencies.captions}), {frequencies.tokenizer}",
        f"{len(held):,} of {len(counts):,} tokens are held by a caption",
    ]
    for title, tokens in (("commonest", held[:NUM_LISTED]), ("rarest", held[: -NUM_LISTED - 1 : -1])):
        rows = [[decode(token), f"{counts[token]:,}", f"{weights[token]:.2f}"] for token in tokens]
        lines += ["", markdown_table([title, "captions", "weight"], rows)]
    return "\n".join(lines)
