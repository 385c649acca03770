"""superclip benchmark: the cost of the class head on this machine, relative to alternatives; the
record of a GPU."""

from pathlib import Path

from ..errors import InputError, Parser, at_least


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="superclip benchmark",
        description="Times the class loss and its gradients, the three matrix products that "
        "every implementation "
        "needs, and other implementations; then a training step with and without the class "
        "head. The measurements alternate in one process.",
        epilog="example: superclip benchmark --head-batch 64 --vocab 4096 --step-repeats 0",
    )
    add = parser.add_argument
    add("--device", help="device to measure on (default: cuda if there is a GPU)")
    add(
        "--precision",
        choices=("fp32", "amp", "amp_bf16"),
        default="fp32",
        help="(default: %(default)s)",
    )
    add(
        "--head-batch",
        type=int,
        default=1024,
        help="batch size of the class loss (default: %(default)s)",
    )
    add(
        "--width",
        type=int,
        default=768,
        help="input width of the class head (default: %(default)s)",
    )
    add(
        "--vocab",
        type=int,
        default=49408,
        help="output width of the class head (default: %(default)s)",
    )
    add("--model", default="ViT-B-16", help="model of the training step (default: %(default)s)")
    about = "batch size of the training step (default: %(default)s)"
    add(
        "--batch-size",
        "--local-batch",
        dest="local_batch",
        type=int,
        default=64,
        metavar="N",
        help=about,
    )
    add(
        "--repeats",
        type=int,
        default=7,
        help="repetitions of the class loss (default: %(default)s)",
    )
    about = "repetitions of the training step; 0 to skip it (default: %(default)s)"
    add("--step-repeats", type=int, default=3, help=about)
    add(
        "--grad-checkpointing",
        action="store_true",
        help="use gradient checkpointing in the training step",
    )
    about = (
        "measure a record of this GPU instead, with sizes of its own, and check its "
        "results: about ten minutes"
    )
    add("--card", action="store_true", help=about)
    add("--out", type=Path, default=Path("benchmark"), help="output folder (default: %(default)s)")
    options = parser.parse_args(argv)
    at_least(options, head_batch=1, width=1, vocab=2, local_batch=1, repeats=1, step_repeats=0)
    if options.card:
        return _measure_card(parser, options)
    from ..lab.benchmark.time_and_memory import head_cost_tables, measure_head_cost

    report = measure_head_cost(options)
    print(f"\n{head_cost_tables(report)}\n\nAll measurements: {options.out}/benchmark.json")
    return 0


def _measure_card(parser: Parser, options) -> int:
    """Prints the record of a card; returns 1 if a check of its results fails."""
    for action in parser._actions:
        name = action.dest
        if (
            name not in ("help", "card", "device", "out")
            and getattr(options, name) != action.default
        ):
            raise InputError(
                f"{action.option_strings[0]} has no effect with --card, which has sizes of its own"
            )
    from ..lab.benchmark.gpu_record import card_table, measure_card

    card = measure_card(options)
    failed = {name: result for name, result in card.checks.items() if result != "passed"}
    print(f"\n{card_table([card])}\n")
    for name, result in failed.items():
        print(f"failed: {name}: {result}")
    print(f"The record: {options.out}/card.json (docs/results/cards/README.md: how to publish it)")
    return 1 if failed else 0
