"""superclip benchmark: the cost of the class head on this machine, relative to alternatives."""

import argparse
from pathlib import Path

from ..rules import at_least


def main(argv: list[str]) -> int:
    """Measures, prints the tables, writes benchmark.json; returns the exit code."""
    options = _parse(argv)
    from ..benchmark.head_cost import head_cost_tables, measure_head_cost

    report = measure_head_cost(options)
    print(f"\n{head_cost_tables(report)}\n\nAll measurements: {options.out}/benchmark.json")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip benchmark",
        description="Times the class loss and its gradients beside the three matrix products that every way needs and "
        "beside other ways, then a whole training step with and without the head; in one process, in turns.",
        epilog="example: superclip benchmark --head-batch 64 --vocab 4096 --step-repeats 0",
    )
    parser.add_argument("--device", help="(default: cuda if there is a GPU)")
    parser.add_argument(
        "--precision", choices=("fp32", "amp", "amp_bf16"), default="fp32", help="(default: %(default)s)"
    )
    parser.add_argument("--head-batch", type=int, default=1024, help="captions for the head (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="the head's input (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=49408, help="the head's output (default: %(default)s)")
    parser.add_argument("--model", default="ViT-B-16", help="of the whole step (default: %(default)s)")
    parser.add_argument(
        "--batch-size", "--local-batch", dest="local_batch", type=int, default=64, metavar="N",
        help="of the whole step (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=7, help="of the head (default: %(default)s)")
    parser.add_argument(
        "--step-repeats", type=int, default=3, help="of the step; 0: leave it out (default: %(default)s)"
    )
    parser.add_argument("--grad-checkpointing", action="store_true", help="of the whole step")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder (default: %(default)s)")
    options = parser.parse_args(argv)
    at_least(options, head_batch=1, width=1, vocab=1, local_batch=1, repeats=1, step_repeats=0)
    return options
