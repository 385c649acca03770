"""superclip frequencies: how many captions of a data set hold each token, for --superclip-idf FILE."""

import argparse
import re
from pathlib import Path

from ..data.tables import is_table
from ..environment import require
from ..errors import InputError
from ..files import whole_file
from ..pages import markdown_table, pyplot
from ..rules import at_least
from .options import add_columns, columns_of

NUM_LISTED = 20  # tokens that --show lists at either end
USED_WITH = {"show": {"tokenizer_of"}, "merge": {"out"}}  # beside these two, which count nothing


def main(argv: list[str]) -> int:
    """Counts, merges or shows; prints what was done and returns the exit code."""
    options = _parse(argv)
    if options.show:
        print(_show(options))
        return 0
    for value, flag in (
        (options.data or options.merge, "DATA"),
        (options.tokenizer_of or options.merge, "--tokenizer-of"),
    ):
        if not value:
            raise InputError(f"{flag} is missing: superclip frequencies 'shards/{{0..9}}.tar' --tokenizer-of MODEL")
    if options.out is None:
        raise InputError("--out is missing: the file to write, df.safetensors")
    print(_merge(options) if options.merge else _count(options))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip frequencies",
        description="Counts, in one pass over WebDataset shards or a table, how many captions hold each token. Images "
        "are not read. --superclip-idf FILE then weights every word by the whole data set from the first step on.",
        epilog="example: superclip frequencies 'x/{0..9}.tar' --tokenizer-of ViT-B-16 --out df.safetensors",
    )
    parser.add_argument(
        "data", nargs="?", metavar="DATA",
        help="what --train-data would be: 'shards/{00000..41455}.tar', with ::, or a .csv of images and captions",
    )  # fmt: skip
    add_columns(parser)
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
    parser.add_argument("--workers", type=int, default=1, help="processes that count shards (default: %(default)s)")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="count only the I-th of N parts of the shards")
    parser.add_argument(
        "--out", type=Path, help="file to write; an interrupted count resumes from the .part file beside it"
    )
    parser.add_argument("--merge", type=Path, nargs="+", metavar="PART", help="add up the counts of different shards")
    parser.add_argument("--show", type=Path, metavar="FILE", help="list the rarest and commonest words, draw FILE.png")
    options = parser.parse_args(argv)
    at_least(options, workers=1, context=3)
    _refuse_idle(options, {name for name, value in vars(options).items() if value != parser.get_default(name)})
    return options


def _refuse_idle(options: argparse.Namespace, given: set[str]) -> None:
    """Raises InputError for an argument that does nothing beside the others."""
    for mode, used in USED_WITH.items():
        idle = sorted(given - {mode} - used) if mode in given else []
        if idle:
            raise InputError(f"{_flag(idle[0])} does nothing with --{mode}: leave one of them out")
    of_table, of_shards = {name for name in given if name.startswith("csv_")}, given & {"workers", "part"}
    if of_table and options.data and not is_table(options.data):
        raise InputError(f"{_flag(min(of_table))} is for a table, .csv or .tsv, and DATA is {options.data}")
    if of_shards and is_table(options.data):
        raise InputError(f"{_flag(min(of_shards))} is for shards, and DATA is {options.data}: leave it out")
    if "seed" in given and not options.captions.startswith("mixed"):
        raise InputError(
            f"--seed does nothing with --captions {options.captions}: add --captions mixed:P, or leave --seed out"
        )


def _flag(name: str) -> str:
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def _count(options: argparse.Namespace) -> str:
    import open_clip
    import torch

    from ..checkpoints.model_files import know_model
    from ..config import Config
    from ..data.frequencies import Counting, count_shards
    from ..data.shards import expand

    torch.set_num_threads(1)  # the workers are forked, and must not meet its thread pool
    if options.captions == "dual":
        raise InputError("--captions dual: the class loss is given the long captions, count with --captions long")
    know_model(options.tokenizer_of, "--tokenizer-of")
    tokenizer = open_clip.get_tokenizer(options.tokenizer_of, context_length=options.context)
    columns, shards = None, [options.data]
    if is_table(options.data):
        columns = columns_of(options, options.data)
    else:
        shards = sorted(set(expand(options.data, "DATA")))
        part, num_parts = _part(options.part, len(shards))
        shards = shards[part - 1 :: num_parts]
    try:
        config = Config(captions=options.captions, long_caption=options.long_caption)
        counting = Counting(config, tokenizer, options.seed, columns)
        frequencies, broken = count_shards(counting, shards, options.workers, options.out)
    except InputError as error:  # which names the flags of training
        raise InputError(str(error).replace("--superclip-", "--")) from error
    what, where = ("rows", options.data) if columns else ("samples", f"{len(shards):,} shards")
    lines = [f"{options.out}: {frequencies.num_captions:,} captions of {where}, {frequencies.tokenizer}"]
    if num_missing := counting.reader.counts.num_missing:
        lines.append(f"{num_missing:,} {what} have no long caption: the short one was counted")
    if broken:
        lines.append(f"{len(broken)} could not be read to their end: " + ", ".join(broken[:5]))
    return "\n".join(lines)


def _part(part: str, num_shards: int) -> tuple[int, int]:
    """Returns I and N of I/N."""
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]) <= num_shards:
        raise InputError(
            f"--part is {part}; expected I/N, 1/16 to 16/16, with no more parts than the {num_shards} shards"
        )
    return int(found[1]), int(found[2])


def _merge(options: argparse.Namespace) -> str:
    from ..data.frequencies import merge, read_frequencies

    total = merge([read_frequencies(part) for part in options.merge], [str(part) for part in options.merge])
    total.write(options.out)
    return f"{options.out}: {total.num_captions:,} captions of {len(total.shards):,} shards, {total.tokenizer}"


def _show(options: argparse.Namespace) -> str:
    from ..data.frequencies import read_frequencies
    from ..method.token_statistics import idf

    require("--show", "report", "matplotlib")
    frequencies = read_frequencies(options.show)
    counts = frequencies.document_frequency
    figure = options.show.with_suffix(".png")
    _draw(figure, frequencies)
    weights = idf(counts, frequencies.num_captions)
    held = [token for token in counts.argsort(descending=True).tolist() if counts[token]]
    decode = _decoder(options)
    lines = [
        f"{options.show}: {frequencies.num_captions:,} captions of {len(frequencies.shards):,} shards "
        f"({frequencies.captions}), {frequencies.tokenizer}",
        f"{len(held):,} of {len(counts):,} tokens are held by a caption; {figure} shows how often",
    ]
    for title, tokens in (("commonest", held[:NUM_LISTED]), ("rarest", held[: -NUM_LISTED - 1 : -1])):
        rows = [[decode(token), f"{counts[token]:,}", f"{weights[token]:.2f}"] for token in tokens]
        lines += ["", markdown_table([title, "captions", "weight"], rows)]
    return "\n".join(lines)


def _draw(path: Path, frequencies) -> None:
    """Draws two histograms: of captions per token, on a logarithmic axis, and of the weights that follow."""
    from ..method.token_statistics import idf

    plt, counts = pyplot(), frequencies.document_frequency
    held = counts[counts > 0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.hist(held.double().log10().numpy(), bins=40, color="#d1495b")
    left.set_xlabel("captions that hold the token, log10")
    right.hist(idf(held, frequencies.num_captions).numpy(), bins=40, color="#d1495b")
    right.set_xlabel("weight (IDF)")
    for axes in (left, right):
        axes.set_ylabel("tokens")
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{frequencies.num_captions:,} captions ({frequencies.captions}); {len(held):,} of {len(counts):,} tokens held",
        fontsize=9,
    )
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _decoder(options: argparse.Namespace):
    """Returns what shows a token: its text with --tokenizer-of, else its id."""
    if not options.tokenizer_of:
        return str
    import open_clip

    tokenizer = open_clip.get_tokenizer(options.tokenizer_of)
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    return lambda token: inner.decode([token]).strip() or str(token)
