"""superclip export: a checkpoint becomes plain CLIP, for OpenCLIP or transformers without this package."""

import argparse
import logging
from pathlib import Path

from ..checkpoints import HEAD_NAME
from ..errors import InputError

WEIGHTS_NAMES = {"openclip": "open_clip_model.safetensors", "torch": "open_clip_pytorch_model.bin"}


def main(argv: list[str]) -> int:
    """Writes the folder, prints how to open it, and returns the exit code."""
    options = _parse(argv)
    print(_export(options))
    if options.push:
        print(_push(options.out, options.push))
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
    parser.add_argument("--overwrite", action="store_true", help="replace files in a folder that exists")
    return parser.parse_args(argv)


def _export(options: argparse.Namespace) -> str:
    from ..atomic_files import whole_output
    from ..checkpoints.architecture import architecture_of, fit
    from ..checkpoints.checkpoint import check_match, read_checkpoint
    from ..checkpoints.model_card import model_card
    from ..checkpoints.model_folder import write_model
    from ..checkpoints.run_options import read_run_record
    from ..checkpoints.weights_file import save_weights

    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that a model made for its shapes has no weights
    checkpoint = read_checkpoint(options.checkpoint)
    run = read_run_record(options.checkpoint, checkpoint.epoch)
    head = checkpoint.head()
    if options.with_head and not head:
        raise InputError(f"--with-head: {options.checkpoint} holds no class head")
    found = architecture_of(options.checkpoint, run.options, options.model)
    architecture, weights = fit(found, checkpoint.without_head())
    model = architecture.on_meta()
    check_match(weights, model.state_dict(), str(options.checkpoint), found.name)
    num_captions = head["statistics.num_captions"].item() if "statistics.num_captions" in head else None
    with whole_output(options.out, options.overwrite) as folder:
        folder.mkdir()
        if options.format == "hf":
            from ..checkpoints.transformers_export import write_clip_model

            write_clip_model(folder, architecture, model, weights)
            usage = _HF_USAGE.format(folder=options.push or options.out)
        else:
            write_model(folder, architecture, model, weights, options.out, WEIGHTS_NAMES[options.format])
            place = f"hf-hub:{options.push}" if options.push else f"local-dir:{options.out}"
            usage = _OPENCLIP_USAGE.format(place=place)
        if options.with_head:
            save_weights(head, folder / HEAD_NAME)
        library = "transformers" if options.format == "hf" else "open_clip"
        card = model_card(options.out.name, run, num_captions, options.license, library, usage, found.name)
        (folder / "README.md").write_text(card)
    return f"{options.out}: {found.name} as plain CLIP\n{usage}"


_OPENCLIP_USAGE = """import open_clip
model, preprocess = open_clip.create_model_from_pretrained("{place}")
tokenizer = open_clip.get_tokenizer("{place}")"""

_HF_USAGE = """from transformers import CLIPModel, CLIPProcessor
model = CLIPModel.from_pretrained("{folder}")
processor = CLIPProcessor.from_pretrained("{folder}")"""


def _push(folder: Path, repo: str) -> str:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise InputError("--push needs the Hugging Face hub's client: pip install huggingface_hub") from error
    try:
        url = HfApi().create_repo(repo, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="superclip export")
    except (OSError, ValueError) as error:  # the client's own errors are among them
        reason = " ".join(str(error).split())
        raise InputError(f"--push: {repo} did not take {folder}, which is whole here ({reason})") from error
    return f"{folder} is at {url}"
