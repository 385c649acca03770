"""superclip benchmark: the cost of the class head on this machine, relative to alternatives; the
record of a GPU."""

from pathlib import Path

from ..errors import InputError, Parser, at_least
from .shared_options import add_number, add_switch


def main(argv: list[str]) -> int:
    parser = Parser(
        "benchmark",
        "Times the class loss and its gradients, the three matrix products that every "
        "implementation needs, and other implementations; then a training step with and without "
        "the class head. The measurements alternate in one process.",
        "--head-batch 64 --vocab 4096 --step-repeats 0",
    )
    add = parser.option
    add("--device", "device to measure on (default: cuda if there is a GPU)")
    add(
        "--precision", "(default: %(default)s)", choices=("fp32", "amp", "amp_bf16"), default="fp32"
    )
    add_number(parser, "--head-batch", 1024, "batch size of the class loss")
    add_number(parser, "--width", 768, "input width of the class head")
    add_number(parser, "--vocab", 49408, "output width of the class head")
    add("--model", "model of the training step (default: %(default)s)", default="ViT-B-16")
    add(
        "--batch-size",
        "batch size of the training step (default: %(default)s)",
        "--local-batch",
        dest="local_batch",
        type=int,
        default=64,
        metavar="N",
    )
    add_number(parser, "--repeats", 7, "repetitions of the class loss")
    add_number(parser, "--step-repeats", 3, "repetitions of the training step; 0 to skip it")
    add_switch(parser, "--grad-checkpointing", "use gradient checkpointing in the training step")
    add_switch(
        parser,
        "--card",
        "instead, measure this GPU at fixed sizes, check its results and write a record: about ten "
        "minutes",
    )
    add("--out", "output folder (default: %(default)s)", type=Path, default=Path("benchmark"))
    options = parser.parse_args(argv)
    at_least(options, head_batch=1, width=1, vocab=2, local_batch=1, repeats=1, step_repeats=0)
    if options.card:
        return _measure_card(parser, options)
    from ..benchmark.time_and_memory import head_cost_tables, measure_head_cost

    report = measure_head_cost(options)
    print(f"\n{head_cost_tables(report)}\n\nAll measurements: {options.out}/benchmark.json")
    return 0


def _measure_card(parser: Parser, options) -> int:
    """Prints the record of a card; returns 1 if a check of its results fails."""
    for action in parser._actions:
        is_used = action.dest in ("help", "card", "device", "out")
        if not is_used and getattr(options, action.dest) != action.default:
            raise InputError(
                f"{action.option_strings[0]} has no effect with --card, which uses fixed sizes"
            )
    from ..benchmark.gpu_record import card_table, measure_card

    card = measure_card(options)
    failed = {name: result for name, result in card.checks.items() if result != "passed"}
    print(f"\n{card_table([card])}\n")
    for name, result in failed.items():
        print(f"failed: {name}: {result}")
    print(f"The record: {options.out}/card.json (docs/results/cards/README.md: how to publish it)")
    return 1 if failed else 0
