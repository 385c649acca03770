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
    from ..checkpoints.trainer_files import options_to_keep
    from ..checkpoints.weights import OPTIONS, read_checkpoint, save_weights
    from ..files import check_out, whole_output

    check_out(options.out, options.checkpoints, {"": OPTIONS}, overwrite=options.overwrite)
    checkpoints = [read_checkpoint(path) for path in options.checkpoints]
    weights = average(checkpoints)
    with whole_output(options.out, overwrite=options.overwrite) as file:
        save_weights(weights, file, options_to_keep(checkpoints[0]))
    print(f"{options.out}: the mean of {len(checkpoints)} checkpoints")
    return 0
