"""superclip interpolate: interpolates between released and fine-tuned weights, to reduce
forgetting."""

from pathlib import Path

from ..errors import InputError, Parser
from .shared_options import add_number, add_weights_output


def main(argv: list[str]) -> int:
    parser = Parser(
        "interpolate",
        "Writes (1 - α) · RELEASED + α · TUNED (WiSE-FT). If RELEASED has no class "
        "head, TUNED's is kept.",
        "released.pt tuned.pt --out between.pt",
    )
    parser.option(
        "released",
        "weights before fine-tuning: a file, a folder or local-dir:FOLDER, or OpenCLIP's MODEL:TAG",
        metavar="RELEASED",
    )
    parser.option(
        "tuned", "weights after fine-tuning: a file or folder", type=Path, metavar="TUNED"
    )
    add_number(parser, "--alpha", 0.5, "weight of TUNED, 0 to 1", metavar="α")
    add_weights_output(parser)
    options = parser.parse_args(argv)
    if not 0 <= options.alpha <= 1:
        raise InputError(f"--alpha is {options.alpha}; expected 0 (released) to 1 (tuned)")
    options.released = options.released.removeprefix("local-dir:")
    from ..checkpoints.averaging import interpolate

    interpolate(
        options.released, options.tuned, options.alpha, options.out, overwrite=options.overwrite
    )
    print(
        f"{options.out}: {1 - options.alpha:g} of {options.released} and {options.alpha:g} of "
        f"{options.tuned}"
    )
    return 0
