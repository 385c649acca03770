"""superclip export: converts a checkpoint to plain CLIP, for OpenCLIP or transformers without
this package, with the class head if wanted."""

from pathlib import Path

from ..checkpoints import HEAD_NAME
from ..errors import Parser, to_stdout
from .shared_options import add_output, add_switch


def main(argv: list[str]) -> int:
    parser = Parser(
        "export",
        "Writes a folder with the model, its preprocessing, its tokenizer and a "
        "model card. Stock OpenCLIP opens it as local-dir:FOLDER, or transformers as "
        "CLIPModel, with the same features.",
        "logs/run/checkpoints/epoch_5.pt --out my-clip",
    )
    add = parser.option
    add(
        "checkpoint",
        "the folder of a run, a checkpoint of a run, a file of weights (SuperCLIP's authors' "
        "included), a model folder, or OpenCLIP's MODEL:TAG",
        type=Path,
    )
    add_switch(
        parser,
        "--best",
        "for the folder of a run: export the checkpoint with the best validation scores (default: "
        "the last one)",
    )
    add_output(parser)
    add(
        "--model",
        "an OpenCLIP model's name or a JSON file, such as the authors' (default: the one in the "
        "folder or in the run's params.txt)",
        "--architecture",
    )
    add(
        "--format",
        "OpenCLIP's folder or transformers' CLIPModel (default: %(default)s)",
        choices=("openclip", "hf"),
        default="openclip",
    )
    add_switch(
        parser,
        "--with-head",
        f"keep the class head and the counts in {HEAD_NAME}: superclip words reads them, and "
        "superclip train --superclip continues to train them",
    )
    add(
        "--hub",
        "the repository on the Hugging Face hub to which you will upload the folder: "
        "OpenCLIP then opens it as hf-hub:OWNER/NAME, even if the model has its own tokenizer",
        metavar="OWNER/NAME",
    )
    options = parser.parse_args(argv)
    from ..checkpoints.best_epoch import best_checkpoint
    from ..checkpoints.export import export, read_source
    from ..checkpoints.starting_weights import released_file
    from ..checkpoints.weights import checkpoint_of

    file = options.checkpoint
    which = ""
    tag = ""
    if options.best:
        file = best_checkpoint(file)
    elif file.exists():
        file = checkpoint_of(file)
    elif ":" in str(file) and not options.model:
        options.model, tag = str(file).split(":", 1)
        file = Path(released_file(str(file), "CHECKPOINT"))
    if file.parent.parent == options.checkpoint:
        which = f", {file.name} of {options.checkpoint}"
    model, usage = export(
        read_source(file, options.model, tag=tag),
        options.out,
        model=options.model,
        format=options.format,
        with_head=options.with_head,
        overwrite=options.overwrite,
        hub=options.hub,
    )
    to_stdout(f"{options.out}: {model} as plain CLIP{which}\n{usage}")
    return 0
