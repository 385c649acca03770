"""superclip export: converts a checkpoint to plain CLIP, for OpenCLIP or transformers without this package."""

from pathlib import Path

from ..checkpoints import HEAD_NAME
from ..errors import Parser


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="superclip export",
        description="Writes a folder with the model, its preprocessing, its tokenizer and a model card. Stock OpenCLIP "
        "opens it as local-dir:FOLDER, or transformers as CLIPModel, with the same features.",
        epilog="example: superclip export logs/run/checkpoints/epoch_5.pt --out my-clip",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint of a run, a file of weights, or a folder")
    add("--out", type=Path, required=True, help="folder to write")
    about = "an OpenCLIP model's name or a JSON file (default: the one in the folder or in the run's params.txt)"
    add("--model", "--architecture", help=about)
    about = "OpenCLIP's folder or transformers' CLIPModel (default: %(default)s)"
    add("--format", choices=("openclip", "hf"), default="openclip", help=about)
    add("--with-head", action="store_true", help=f"keep the class head and the counts in {HEAD_NAME}")
    about = "the repository on the Hugging Face hub to which you will upload the folder: OpenCLIP then opens it as "
    about += "hf-hub:OWNER/NAME, also if the model has its own tokenizer"
    add("--hub", metavar="OWNER/NAME", help=about)
    add("--overwrite", action="store_true", help="replace an existing folder")
    options = parser.parse_args(argv)
    from ..checkpoints.export import export

    model, usage = export(
        options.checkpoint, options.out, options.model, options.format, options.with_head, options.overwrite,
        options.hub,
    )  # fmt: skip
    print(f"{options.out}: {model} as plain CLIP\n{usage}")
    return 0
