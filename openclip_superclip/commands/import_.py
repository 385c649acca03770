"""superclip import: converts a checkpoint of the SuperCLIP authors' code to a folder for
--superclip."""

import shlex
from pathlib import Path

from ..errors import Parser, at_least, to_stderr
from .shared_options import add_number, add_output


def main(argv: list[str]) -> int:
    parser = Parser(
        "import",
        "Reads a checkpoint of the SuperCLIP authors' code and writes a folder with "
        "the same features, class logits and scale. --superclip --model local-dir:FOLDER continues "
        "the training, and superclip export converts it to plain CLIP.",
        "authors.pt --model ViT-B-16 --out imported",
    )
    parser.option("checkpoint", "the authors' file", type=Path)
    parser.option(
        "--model",
        "the model's configuration: a name of OpenCLIP's or a JSON file, such as the authors'",
        "--architecture",
        required=True,
    )
    add_number(
        parser,
        "--global-batch",
        16_384,
        "captions per step of the run, over all GPUs, to convert its running means to counts; by "
        "default, that of the released runs",
    )
    add_output(parser)
    options = parser.parse_args(argv)
    at_least(options, global_batch=1)
    from ..checkpoints.authors import import_checkpoint

    num_captions, is_whole = import_checkpoint(
        options.checkpoint,
        options.model,
        options.out,
        options.global_batch,
        overwrite=options.overwrite,
    )
    if not is_whole:
        to_stderr(
            f"warning: --global-batch {options.global_batch} does not give integer counts, which "
            "were rounded: the run used another global batch size, or several"
        )
    model = shlex.quote(f"local-dir:{options.out}")
    folder = shlex.quote(str(options.out))
    print(
        f"{options.out}: {options.model} with its class head and the counts of {num_captions:,} "
        f"captions\ncontinue:      superclip train --superclip --model {model} …\n"
        f"to plain CLIP: superclip export {folder} --out FOLDER"
    )
    return 0
