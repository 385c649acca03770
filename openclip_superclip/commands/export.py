"""superclip export: converts a checkpoint to plain CLIP, for OpenCLIP or transformers without this package."""

import argparse
import logging
import sys
from pathlib import Path

from ..checkpoints import HEAD_NAME
from ..errors import InputError, reason


def main(argv: list[str]) -> int:
    """Runs the export, prints how to open the folder, and returns the exit code."""
    options = _parse(argv)
    from ..checkpoints.export import export

    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that models on the meta device have no weights
    written = export(
        options.checkpoint, options.out, options.model, options.format, options.with_head, options.license,
        options.push, options.overwrite,
    )  # fmt: skip
    for warning in written.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{options.out}: {written.model} as plain CLIP\n{written.usage}")
    if options.push:
        _push(options.out, options.push)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip export",
        description="Writes a folder with the model, its preprocessing, its tokenizer and a model card. Stock OpenCLIP "
        "opens it as local-dir:FOLDER, or transformers as CLIPModel, with the features that training gave it.",
        epilog="example: superclip export logs/run/checkpoints/epoch_5.pt --out my-clip",
    )
    parser.add_argument("checkpoint", type=Path, help="of a training run, a file of weights, or a folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--model",
        "--architecture",
        help="an OpenCLIP model's name or a JSON file (default: what the folder or the run's params.txt says)",
    )
    parser.add_argument(
        "--format", choices=("openclip", "hf", "torch"), default="openclip",
        help="OpenCLIP's folder with safetensors, transformers' CLIPModel, or OpenCLIP's folder with a file of torch's "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--with-head", action="store_true", help=f"keep head and counts beside it, in {HEAD_NAME}")
    parser.add_argument("--license", default="unknown", help="for the model card (default: %(default)s)")
    parser.add_argument("--push", metavar="REPO", help="upload the folder to this repository of the Hugging Face hub")
    parser.add_argument("--overwrite", action="store_true", help="exchange a folder that exists for the new one")
    return parser.parse_args(argv)


def _push(folder: Path, repo: str) -> None:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise InputError("--push needs the Hugging Face hub's client: pip install huggingface_hub") from error
    try:
        url = HfApi().create_repo(repo, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="superclip export")
    except (OSError, ValueError) as error:  # include the client's own errors
        raise InputError(f"--push: {repo} did not take {folder}, which is complete here ({reason(error)})") from error
    print(f"{folder} is at {url}")
