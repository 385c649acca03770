"""superclip export: converts a checkpoint to plain CLIP, for OpenCLIP or transformers without this package."""

import argparse
from pathlib import Path

from ..checkpoints import HEAD_NAME


def main(argv: list[str]) -> int:
    """Runs the export, prints how to open the folder, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="superclip export",
        description="Writes a folder with the model, its preprocessing, its tokenizer and a model card. Stock OpenCLIP "
        "opens it as local-dir:FOLDER, or transformers as CLIPModel, with the same features.",
        epilog="example: superclip export logs/run/checkpoints/epoch_5.pt --out my-clip",
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of a run, a file of weights, or a folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--model",
        "--architecture",
        help="an OpenCLIP model's name or a JSON file (default: the one in the folder or in the run's params.txt)",
    )
    parser.add_argument(
        "--format", choices=("openclip", "hf"), default="openclip",
        help="OpenCLIP's folder or transformers' CLIPModel (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--with-head", action="store_true", help=f"keep the class head and the counts in {HEAD_NAME}")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    options = parser.parse_args(argv)
    from ..checkpoints.export import export

    model, usage = export(
        options.checkpoint, options.out, options.model, options.format, options.with_head, options.overwrite
    )
    print(f"{options.out}: {model} as plain CLIP\n{usage}")
    return 0
