"""superclip interpolate: between released and fine-tuned weights, the usual remedy for forgetting."""

import argparse
from pathlib import Path

from ..errors import InputError


def main(argv: list[str]) -> int:
    """Writes the weights in between, prints what they are, and returns the exit code."""
    options = _parse(argv)
    print(_interpolate(options))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip interpolate",
        description="Writes (1 - α) · RELEASED + α · TUNED (WiSE-FT). A class head that RELEASED lacks is TUNED's.",
        epilog="example: superclip interpolate released.pt tuned.pt --out between.pt",
    )
    parser.add_argument(
        "released",
        metavar="RELEASED",
        help="what fine-tuning started from: a file, a folder, or MODEL:TAG of OpenCLIP's",
    )
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="the file or folder that it ended with")
    parser.add_argument("--alpha", type=float, default=0.5, metavar="α", help="0 to 1 (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help=".pt or .safetensors file to write, for --pretrained or superclip export",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    return parser.parse_args(argv)


def _released_file(released: str) -> str:
    """Returns the file behind MODEL:TAG, out of the cache or off the hub as OpenCLIP gets it; a path stays as it is."""
    if Path(released).exists() or ":" not in released:
        return released
    import open_clip

    cfg = open_clip.get_pretrained_cfg(*released.split(":", 1))
    if not cfg:
        raise InputError(f"RELEASED is {released}: no file, and no MODEL:TAG of open_clip.list_pretrained()")
    try:
        return open_clip.download_pretrained(cfg)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"RELEASED is {released}, which cannot be downloaded or read ({' '.join(str(error).split())})"
        ) from error


def _interpolate(options: argparse.Namespace) -> str:
    from ..atomic_files import whole_output
    from ..checkpoints.averaging import interpolate
    from ..checkpoints.checkpoint import read_checkpoint
    from ..checkpoints.overwrite_check import check_file_out
    from ..checkpoints.run_options import options_to_keep
    from ..checkpoints.weights_writer import save_weights

    check_file_out(options.out, options.overwrite, [options.released, options.tuned])
    released, tuned = read_checkpoint(_released_file(options.released)), read_checkpoint(options.tuned)
    weights = interpolate(released, tuned, options.alpha)
    with whole_output(options.out, options.overwrite) as file:
        save_weights(weights, file, options_to_keep(tuned))
    return f"{options.out}: {1 - options.alpha:g} of {options.released} and {options.alpha:g} of {options.tuned}"
