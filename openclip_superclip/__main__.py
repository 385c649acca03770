"""The `superclip` command, also `python -m openclip_superclip`."""

import importlib
import keyword
import os
import select
import sys

from . import __version__
from .errors import InputError

COMMANDS = {
    "train": "OpenCLIP's training, with --superclip among its flags",
    "patch": "give OpenCLIP's own training command these flags, or take them away",
    "import": "a checkpoint of SuperCLIP's authors becomes a model that --superclip opens",
    "export": "a checkpoint becomes plain CLIP, for OpenCLIP or transformers without this package",
    "average": "the mean of several checkpoints",
    "interpolate": "between released weights and fine-tuned ones (WiSE-FT)",
    "frequencies": "count the words of a data set's captions, for --superclip-idf FILE",
    "evaluate": "zero-shot, retrieval and linear-probe numbers of checkpoints, by CLIP_benchmark",
    "recipes": "a table of all recipes: method, model, data, batch, samples, the paper's value",
    "plan": "what a recipe comes to on given nodes and data: command, steps, cost, a check of the data",
    "run": "train a recipe here, into a folder that says what ran and how it stands",
    "submit": "train a recipe on SLURM, at one batch size or many",
    "report": "losses and scores of runs side by side, beside the paper's, on one page",
    "words": "the words that the class head sees in pictures, and where",
    "demo": "train CLIP and SuperCLIP on real drawings here, and compare them",
    "benchmark": "what the class head costs here, in time, memory and FLOPs",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; an InputError is printed in one line and is 1.

    A command's module is imported when it is called.
    """
    argv = sys.argv[1:] if argv is None else argv
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"openclip-superclip {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: there is no command '{name}'\n\n{_usage()}", file=sys.stderr)
        return 2
    module = f"{name}_" if keyword.iskeyword(name) else name
    try:
        code = importlib.import_module(f".commands.{module}", __package__).main(rest)
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again as it ends
        return 1


def _reader_is_gone() -> bool:
    """Tells whether what reads our output, `head` say, has closed it."""
    output = select.poll()
    output.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {help}" for name, help in COMMANDS.items())
    return f"usage: superclip COMMAND ...\n\n{commands}\n\nsuperclip COMMAND --help tells more."


if __name__ == "__main__":
    sys.exit(main())
