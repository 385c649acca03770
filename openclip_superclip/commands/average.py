"""superclip average: averages several checkpoints."""

from pathlib import Path

from ..errors import InputError, Parser
from .shared_options import add_weights_output


def main(argv: list[str]) -> int:
    parser = Parser(
        "average",
        "Writes the mean of the weights of several checkpoints of one model, with the "
        "caption counts of the checkpoint that has seen the most captions.",
        "epoch_4.pt epoch_5.pt --out ../mean.pt",
    )
    parser.option("checkpoints", "two or more files or folders", type=Path, nargs="+")
    add_weights_output(parser)
    options = parser.parse_args(argv)
    if len(options.checkpoints) < 2:
        raise InputError(
            f"only one checkpoint is given, {options.checkpoints[0]}; expected two or more"
        )
    from ..checkpoints.averaging import average

    average(options.checkpoints, options.out, overwrite=options.overwrite)
    print(f"{options.out}: the mean of {len(options.checkpoints)} checkpoints")
    return 0
