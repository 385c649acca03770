"""superclip import: a checkpoint of SuperCLIP's authors becomes a folder that --superclip opens."""

import argparse
import logging
from pathlib import Path

from ..errors import InputError


def main(argv: list[str]) -> int:
    """Writes the folder, prints what it holds and how to use it, and returns the exit code."""
    options = _parse(argv)
    print(_import(options))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip import",
        description="Reads a checkpoint of the SuperCLIP authors' code and writes a folder with the same features, "
        "class logits and scale: --superclip --model local-dir:FOLDER trains on, superclip export makes it plain CLIP.",
        epilog="example: superclip import authors.pt --model ViT-B-16 --out imported",
    )
    parser.add_argument("checkpoint", type=Path, help="the authors' file")
    parser.add_argument(
        "--model",
        required=True,
        help="its configuration: an OpenCLIP model's name or a JSON file, the authors' included",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--global-batch", type=int, default=16_384,
        help="captions a step of the run had on all GPUs: their running means times this are counts "
        "(default: %(default)s, the released runs')",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace files in a folder that exists")
    options = parser.parse_args(argv)
    if options.global_batch < 1:
        raise InputError(f"--global-batch is {options.global_batch}; expected 1 or more")
    return options


def _import(options: argparse.Namespace) -> str:
    from ..atomic_files import whole_output
    from ..checkpoints.architecture import fit, read_architecture
    from ..checkpoints.authors_checkpoint import from_authors, with_text_in_place
    from ..checkpoints.checkpoint import check_match, read_checkpoint
    from ..checkpoints.model_folder import write_model
    from ..integration.unpatched_openclip import plugins_model_class

    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that a model made for its shapes has no weights
    architecture = read_architecture(options.model)
    architecture.model_cfg.pop("clstext_cfg", None)  # the authors' description of the head
    checkpoint = read_checkpoint(options.checkpoint)
    try:
        weights = from_authors(checkpoint.weights, options.global_batch)
    except InputError as error:
        raise InputError(f"{options.checkpoint}: {error}") from error
    model_cfg = architecture.model_cfg
    if not (model_cfg.get("custom_text") or "hf_model_name" in model_cfg["text_cfg"]):
        weights = with_text_in_place(weights)
    architecture, weights = fit(architecture, weights)
    with plugins_model_class():
        model = architecture.on_meta(superclip={})
    check_match(weights, model.state_dict(), str(options.checkpoint), options.model)
    with whole_output(options.out, options.overwrite) as folder:
        folder.mkdir()
        write_model(folder, architecture, model, weights, options.out)
    num_captions = weights["statistics.num_captions"].item()
    return (
        f"{options.out}: {options.model} with its class head and the counts of {num_captions:,} captions\n"
        f"train on:      superclip train --superclip --model local-dir:{options.out} …\n"
        f"to plain CLIP: superclip export {options.out} --out FOLDER"
    )
