"""The `superclip` command, also `python -m openclip_superclip`."""

import difflib
import importlib
import keyword
import os
import select
import signal
import sys

from . import __version__
from .errors import InputError

GROUPS = {
    "start": {
        "demo": "train CLIP and SuperCLIP on real drawings on this machine, and compare them",
        "train": "OpenCLIP's training, with --superclip among its flags",
        "study": "compare methods by paired seeds, here or on SLURM: which differences exclude zero",
    },
    "your data": {
        "shards": "make WebDataset shards of a table, a folder, COCO's JSON or a Hugging Face data set",
        "audit": "which pairs' pictures do not speak for their captions, word by word, and which pairs to keep",
        "frequencies": "count the tokens of a data set's captions, for --superclip-idf FILE",
    },
    "weights": {
        "import": "convert a checkpoint of SuperCLIP's authors into a model that --superclip opens",
        "export": "convert a checkpoint to plain CLIP, for OpenCLIP or transformers without this package",
        "average": "average several checkpoints",
        "interpolate": "interpolate between released and fine-tuned weights (WiSE-FT)",
    },
    "cluster": {
        "recipes": "list the recipes: method, model, data, batch, samples, the paper's value",
        "plan": "what a recipe needs on given nodes and data: command, steps, cost, a check of the data",
        "rehearse": "some minutes of a run on its own machines: hours, memory, what limits it, whether it resumes",
        "run": "train a recipe on this machine, into a folder that records what ran and how it stands",
        "submit": "train a recipe on SLURM",
        "status": "how runs stand: state, progress, speed, expected end, and what SLURM says of their jobs",
    },
    "look": {
        "evaluate": "zero-shot, retrieval, probes, segmentation and depth of checkpoints, with intervals",
        "report": "losses and scores of runs side by side, beside the paper's, on one page",
        "words": "the words that the class head sees in pictures, and where",
    },
    "once": {
        "patch": "patch or unpatch OpenCLIP, so that its own training command takes these flags",
        "benchmark": "what the class head costs on this machine, in time, memory and FLOPs",
    },
}


COMMANDS = {name: help for group in GROUPS.values() for name, help in group.items()}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; an InputError is printed in one line and is 1.

    So is an output that cannot be written and, without a word, one whose reader has closed it, as `head` does.
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # what is left, argparse's help too
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
    except OSError as error:
        if _can_write():
            raise
        print(f"error: the output cannot be written ({error.strerror})", file=sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again as it ends
    return 1


def _run(argv: list[str] | None) -> int:
    """Runs a command, whose module is imported when it is called, and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"openclip-superclip {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean superclip {near[0]}? " if near else ""
        print(f"error: there is no command '{name}': {meant}superclip --help lists all", file=sys.stderr)
        return 2
    module = f"{name}_" if keyword.iskeyword(name) else name
    try:
        return importlib.import_module(f".commands.{module}", __package__).main(rest)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"superclip {name}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT


def _reader_is_gone() -> bool:
    """Returns whether what reads our output, `head` say, has closed it."""
    output = select.poll()
    output.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _can_write() -> bool:
    """Returns whether our output can be written, by an empty line: the error may be of another file."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _usage() -> str:
    width = max(map(len, COMMANDS))
    groups = (
        "\n".join([f"{title}:", *(f"  {name:<{width}}  {help}" for name, help in group.items())])
        for title, group in GROUPS.items()
    )
    return "\n\n".join(["usage: superclip COMMAND ...", *groups, "superclip COMMAND --help tells more."])


if __name__ == "__main__":
    sys.exit(main())
