"""superclip frequencies: how many captions of a data set hold each token, for --superclip-idf FILE."""

import argparse
import re
from pathlib import Path

from ..data.tables import is_table
from ..environment import require
from ..errors import InputError
from ..files import whole_file
from ..pages import markdown_table
from ..rules import at_least
from .options import add_columns, columns_of


def draw(path: Path, frequencies) -> None:
    """Draws two histograms: of captions a token, on a logarithmic axis, and of the weights that follow."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ..method.token_statistics import idf

    counts = frequencies.document_frequency
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


LISTED = 20  # tokens that --show lists at either end


USED = {"show": {"tokenizer_of"}, "merge": {"out"}}  # beside these two, which count nothing


IDLE = {"benchmark": {"out", "workers"}}


def main(argv: list[str]) -> int:
    """Counts, merges or shows; prints what was done and returns the exit code."""
    options = _parse(argv)
    print(_do(options))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip frequencies",
        description="Counts, in one pass over WebDataset shards or a table, how many captions hold each token. "
        "Pictures are not read. --superclip-idf FILE then weighs every word by the whole data set from the first step "
        "on.",
        epilog="example: superclip frequencies 'x/{0..9}.tar' --tokenizer-of ViT-B-16 --out df.safetensors",
    )
    parser.add_argument(
        "data", nargs="?", metavar="DATA",
        help="what --train-data would be: 'shards/{00000..41455}.tar', with ::, or a .csv of pictures and captions",
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
    parser.add_argument("--part", default="1/1", metavar="I/N", help="count the I-th of N parts of the shards alone")
    parser.add_argument(
        "--out", type=Path, help="file to write; an interrupted count resumes from the .part file beside it"
    )
    parser.add_argument("--merge", type=Path, nargs="+", metavar="PART", help="add up the counts of different shards")
    parser.add_argument("--show", type=Path, metavar="FILE", help="list the rarest and commonest words, draw FILE.png")
    parser.add_argument(
        "--benchmark", action="store_true",
        help="print captions/s of one and two workers beside a plain webdataset loop that tokenizes",
    )  # fmt: skip
    options = parser.parse_args(argv)
    _refuse_idle(options, {name for name, value in vars(options).items() if value != parser.get_default(name)})
    return options


def _refuse_idle(options: argparse.Namespace, given: set[str]) -> None:
    """Raises InputError for an argument that does nothing beside the others."""
    for mode in ("show", "merge", "benchmark"):
        if mode in given:
            for name in sorted(given - {mode}):
                if name in IDLE.get(mode, ()) or name not in USED.get(mode, {name}):
                    raise InputError(f"{_flag(name)} does nothing with --{mode}: leave one of them out")
    of_table = {name for name in given if name.startswith("csv_")}
    if of_table and options.data and not is_table(options.data):
        raise InputError(f"{_flag(min(of_table))} is for a table, .csv or .tsv, and DATA is {options.data}")
    of_shards = given & {"workers", "part", "benchmark"}
    if of_shards and is_table(options.data):
        raise InputError(f"{_flag(min(of_shards))} is for shards, and DATA is {options.data}: leave it out")
    if "seed" in given and not options.captions.startswith("mixed"):
        raise InputError(
            f"--seed does nothing with --captions {options.captions}: add --captions mixed:P, or leave --seed out"
        )


def _flag(name: str) -> str:
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def _do(options: argparse.Namespace) -> str:
    if options.show:
        return _show(options)
    if options.merge:
        return _merge(options)
    for value, flag in ((options.data, "DATA"), (options.tokenizer_of, "--tokenizer-of")):
        if not value:
            raise InputError(f"{flag} is missing: superclip frequencies 'shards/{{0..9}}.tar' --tokenizer-of MODEL")
    at_least(options, workers=1)
    if options.context is not None and options.context < 3:
        raise InputError(f"--context is {options.context}; expected 3 tokens or more")
    return _benchmark(options) if options.benchmark else _count(options)


def _out(options: argparse.Namespace) -> Path:
    if options.out is None:
        raise InputError("--out is missing: the file to write, df.safetensors")
    return options.out


def _counting(options: argparse.Namespace):
    """Returns the Counting that the flags describe, and the shards, of which a table is one."""
    import open_clip
    import torch

    from ..checkpoints.model_files import know_model
    from ..config import Config
    from ..data.frequencies import Counting
    from ..data.shards import expand

    torch.set_num_threads(1)  # the workers are forked, and must not meet its thread pool
    if options.captions == "dual":
        raise InputError("--captions dual: the class loss is given the long captions, count with --captions long")
    try:
        config = Config(captions=options.captions, long_caption=options.long_caption)
    except InputError as error:  # which names the flags of training
        raise InputError(str(error).replace("--superclip-", "--")) from None
    know_model(options.tokenizer_of, "--tokenizer-of")
    tokenizer = open_clip.get_tokenizer(options.tokenizer_of, context_length=options.context)
    if is_table(options.data):
        return Counting(config, tokenizer, options.seed, columns_of(options)), [options.data]
    shards = sorted(set(expand(options.data, "DATA")))
    part, num_parts = _part(options.part, len(shards))
    return Counting(config, tokenizer, options.seed), shards[part - 1 :: num_parts]


def _part(part: str, num_shards: int) -> tuple[int, int]:
    """Returns I and N of I/N."""
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]) <= num_shards:
        raise InputError(
            f"--part is {part}; expected I/N, 1/16 to 16/16, with no more parts than the {num_shards} shards"
        )
    return int(found[1]), int(found[2])


def _count(options: argparse.Namespace) -> str:
    from ..data.frequencies import count_shards

    out = _out(options)
    counting, shards = _counting(options)
    try:
        frequencies, broken = count_shards(counting, shards, options.workers, out)
    except InputError as error:  # of a caption's reader, which names the flags of training
        raise InputError(str(error).replace("--superclip-", "--")) from error
    where = options.data if counting.columns else f"{len(shards):,} shards"
    lines = [f"{out}: {frequencies.num_captions:,} captions of {where}, {frequencies.tokenizer}"]
    num_missing = counting.reader.counts.num_missing
    if num_missing:
        what = "rows" if counting.columns else "samples"
        lines.append(f"{num_missing:,} {what} have no long caption: the short one was counted")
    if broken:
        lines.append(f"{len(broken)} could not be read to their end: " + ", ".join(broken[:5]))
    return "\n".join(lines)


def _merge(options: argparse.Namespace) -> str:
    from ..data.frequencies import merge, read_frequencies

    out = _out(options)
    total = merge([read_frequencies(part) for part in options.merge], [str(part) for part in options.merge])
    total.write(out)
    return f"{out}: {total.num_captions:,} captions of {len(total.shards):,} shards, {total.tokenizer}"


def _show(options: argparse.Namespace) -> str:
    from ..data.frequencies import read_frequencies
    from ..method.token_statistics import idf

    require("--show", "report", "matplotlib")

    frequencies = read_frequencies(options.show)
    counts = frequencies.document_frequency
    figure = options.show.with_suffix(".png")
    draw(figure, frequencies)
    weights = idf(counts, frequencies.num_captions)
    held = [token for token in counts.argsort(descending=True).tolist() if counts[token]]
    decode = _decoder(options)
    lines = [
        f"{options.show}: {frequencies.num_captions:,} captions of {len(frequencies.shards):,} shards "
        f"({frequencies.captions}), {frequencies.tokenizer}",
        f"{len(held):,} of {len(counts):,} tokens are held by a caption; {figure} shows how often",
    ]
    for title, tokens in (("commonest", held[:LISTED]), ("rarest", held[: -LISTED - 1 : -1])):
        rows = [[decode(token), f"{counts[token]:,}", f"{weights[token]:.2f}"] for token in tokens]
        lines += ["", markdown_table([title, "captions", "weight"], rows)]
    return "\n".join(lines)


def _decoder(options: argparse.Namespace):
    """Returns what shows a token: its text with --tokenizer-of, else its id."""
    if not options.tokenizer_of:
        return str
    import open_clip

    tokenizer = open_clip.get_tokenizer(options.tokenizer_of)
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    return lambda token: inner.decode([token]).strip() or str(token)


def _benchmark(options: argparse.Namespace) -> str:
    from ..benchmark.counting_speed import captions_per_second, speed_table

    return speed_table(captions_per_second(*_counting(options)))
