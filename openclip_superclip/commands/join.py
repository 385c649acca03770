"""superclip join: makes one model of an image tower and a text tower that were trained
separately."""

import re
import shlex
from pathlib import Path

from ..errors import InputError, Parser, at_least
from .shared_options import add_count, add_number, add_output, add_switch, from_options


def main(argv: list[str]) -> int:
    parser = Parser(
        "join",
        "Writes an OpenCLIP model folder with the weights, the preprocessing and the "
        "tokenizer of two pretrained towers, and with random projections. Nothing is downloaded if "
        "the image tower has a file.",
        "--image timm:resnet50=resnet50.pth --text bert --out start",
    )
    add = parser.option
    add(
        "--image",
        "a timm model and its file of weights (.safetensors, .pth, .pt, .bin); without a "
        "file, timm downloads them",
        required=True,
        metavar="timm:NAME[=FILE]",
    )
    add(
        "--text",
        "folder or zip file of a Hugging Face text model, also in the layout of "
        "sentence-transformers",
        type=Path,
        required=True,
        metavar="FOLDER",
    )
    add_output(parser)
    add_switch(
        parser,
        "--by-order",
        "match the image tower's weights by order and shape, if the file has other names",
    )
    add_number(parser, "--embed-dim", 256, "width of the projections")
    add_count(parser, "--image-size", "pixels (default: the image tower's own)")
    for name in ("mean", "std"):
        add(
            f"--image-{name}",
            f"{name} of the channels that the image tower expects, from 0 to 1 (default: timm's)",
            dest=name,
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
        )
    add_count(
        parser,
        "--context-length",
        "tokens of a caption (default: the text tower's own length; a shorter one is faster)",
    )
    options = parser.parse_args(argv)
    at_least(options, embed_dim=1, image_size=1, context_length=4)
    image = re.fullmatch("timm:([^=]+)(?:=(.+))?", options.image)
    if not image:
        raise InputError(f"--image is {options.image}; expected timm:NAME=FILE or timm:NAME")
    name, file = image.groups()
    from ..checkpoints.joining import ImageSource, join

    source = from_options(ImageSource, options, name=name, file=Path(file) if file else None)
    summary = join(
        source,
        options.text,
        options.out,
        options.embed_dim,
        options.context_length,
        overwrite=options.overwrite,
    )
    model = shlex.quote(f"local-dir:{options.out}")
    print(
        f"{options.out}: {summary}\n"
        f"random, to be trained:       the projections of both towers\n"
        f"train: superclip train --superclip --model {model} …"
    )
    return 0
