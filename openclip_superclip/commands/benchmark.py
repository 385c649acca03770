"""superclip benchmark: what the class head costs here, as ratios of what it is compared with."""

import argparse
from pathlib import Path

from ..environment import require
from ..errors import InputError
from ..rules import at_least

OF_EVERYTHING = ("local_batches", "minutes", "picture_size")


NOT_OF_EVERYTHING = ("precision", "head_batch", "local_batch", "grad_checkpointing", "step_memory")


def main(argv: list[str]) -> int:
    """Measures, prints the tables, writes benchmark.json and benchmark.png; returns the exit code."""
    options = _parse(argv)
    if options.everything:
        return _everything(options)
    from ..benchmark.head_cost import BenchmarkSettings, head_cost_tables, measure_head_cost

    report = measure_head_cost(_settings(BenchmarkSettings, options))
    print(f"\n{head_cost_tables(report)}\n\n{options.out}/benchmark.json and benchmark.png hold the rest.")
    return 0


def _everything(options: argparse.Namespace) -> int:
    """Measures all, prints a line a part and returns the exit code, 1 where a part is not done."""
    from ..benchmark.everything import EverythingSettings, everything_text, measure_everything

    report = measure_everything(_settings(EverythingSettings, options))
    print(f"\n{everything_text(report)}\n\n{options.out}/everything.json holds the rest.")
    return int(any(part["state"] != "done" for part in report["parts"]))


def _settings(kind, options: argparse.Namespace):
    """Returns the settings of a kind, the options of the same names."""
    return kind(**{name: getattr(options, name) for name in kind._fields})


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip benchmark",
        description="Times the class loss and its gradients beside the three matrix products that nothing can do "
        "without and other ways, then a whole training step with and without the head; in one process, in turns.",
        epilog="example: superclip benchmark --head-batch 64 --vocab 4096 --step-repeats 0",
    )
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--precision", choices=("fp32", "amp", "amp_bf16"), default="fp32", help="(default: %(default)s)"
    )
    parser.add_argument("--head-batch", type=int, default=1024, help="captions for the head (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="the head's input (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=49408, help="the head's output (default: %(default)s)")
    parser.add_argument("--model", default="ViT-B-16", help="of the whole step (default: %(default)s)")
    parser.add_argument("--local-batch", type=int, default=64, help="of the whole step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of the head (default: %(default)s)")
    parser.add_argument(
        "--step-repeats", type=int, default=3, help="of the step; 0: leave it out (default: %(default)s)"
    )
    parser.add_argument("--grad-checkpointing", action="store_true", help="of the whole step")
    parser.add_argument(
        "--step-memory", action="store_true", help="measure the step's memory, beside what superclip plan follows"
    )
    parser.add_argument(
        "--everything", action="store_true",
        help="all that only a device can tell, in bfloat16: this at --local-batches, memory against superclip plan's, "
        "a rehearsal on all its GPUs, a run, an evaluation; on pictures of noise",
    )  # fmt: skip
    parser.add_argument(
        "--local-batches", default="512,1024", metavar="N,…", help="of --everything (default: %(default)s)"
    )
    parser.add_argument(
        "--picture-size", type=int, default=256, metavar="PX", help="of --everything's noise (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="in which --everything is to end (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder (default: %(default)s)")
    options = parser.parse_args(argv)
    at_least(options, head_batch=1, width=1, vocab=1, local_batch=1, repeats=1, step_repeats=0, picture_size=8)
    for name in NOT_OF_EVERYTHING if options.everything else OF_EVERYTHING:
        if getattr(options, name) != parser.get_default(name):
            told = "with --everything: leave" if options.everything else "without --everything: add it, or leave"
            raise InputError(f"--{name.replace('_', '-')} does nothing {told} --{name.replace('_', '-')} out")
    if options.everything:
        options.precision, options.local_batches = "amp_bf16", _numbers(options.local_batches)
        if not all(size >= 2 for size in options.local_batches):
            raise InputError(f"--local-batches holds {min(options.local_batches)}; expected 2 or more")
        if not options.minutes > 0:
            raise InputError(f"--minutes is {options.minutes:g}; expected a number above 0")
    require("superclip benchmark", "report", "matplotlib")
    return options


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--local-batches is {text}; expected whole numbers with commas, such as 512,1024") from None
