"""superclip average: averages checkpoints, with a weight for each of them."""

import itertools
import math
import os

from ..errors import InputError, Parser, to_stdout
from .shared_options import add_output


def main(argv: list[str]) -> int:
    parser = Parser(
        "average",
        "Writes the mean of the weights of several checkpoints of one model, with the caption "
        "counts of the checkpoint that has seen the most captions. A class head that some "
        "checkpoints lack is the mean of the others'. The mean of released and fine-tuned weights "
        "(WiSE-FT) reduces forgetting.",
        "--weights 0.5 0.5 ViT-B-32:laion2b_s34b_b79k tuned.pt --out between.pt",
    )
    parser.option(
        "checkpoints",
        "two or more files or folders, or OpenCLIP's MODEL:TAG",
        nargs="*",
        metavar="CHECKPOINT",
    )
    parser.option(
        "--weights",
        "the weight of each checkpoint; their sum is 1 (default: equal weights)",
        nargs="+",
        default=[],
        metavar="W",
    )
    # checkpoints are named before a missing --out
    add_output(parser, ".pt or .safetensors file to write", "file", required=False)
    options = parser.parse_args(argv)
    # argparse gives an option all values that follow it
    weights = [float(value) for value in itertools.takewhile(_is_number, options.weights)]
    checkpoints = [
        checkpoint.removeprefix("local-dir:")
        for checkpoint in options.checkpoints + options.weights[len(weights) :]
    ]
    if len(checkpoints) < 2:
        raise InputError(
            f"{len(checkpoints)} checkpoints are given ({' '.join(checkpoints) or 'none'}); "
            "expected two or more"
        )
    if options.out is None:
        raise InputError("--out is missing; expected a .pt or .safetensors file to write")
    described = f"the mean of {len(checkpoints)} checkpoints"
    if options.weights:
        _check_weights(weights, len(checkpoints))
        parts = zip(weights, checkpoints, strict=True)
        described = " + ".join(f"{weight:g} · {checkpoint}" for weight, checkpoint in parts)
    from ..checkpoints.averaging import average

    average(checkpoints, weights, options.out, overwrite=options.overwrite)
    to_stdout(f"{options.out}: {described}")
    return 0


def _is_number(value: str) -> bool:
    if os.path.exists(value):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _check_weights(weights: list[float], num_checkpoints: int) -> None:
    is_mean = len(weights) == num_checkpoints and all(weight >= 0 for weight in weights)
    if not (is_mean and math.isclose(sum(weights), 1, abs_tol=1e-5)):
        raise InputError(
            f"--weights is {' '.join(map('{:g}'.format, weights)) or 'no number'}; expected "
            f"{num_checkpoints} numbers, one for each checkpoint, not negative, with the sum 1"
        )
