"""OpenCLIP's training in processes of its own, as many ranks as a test asks for."""

import contextlib
import multiprocessing
import os
import random
import re
import socket
import sys
import types
from pathlib import Path
from typing import NamedTuple

import torch
import webdataset


class Run(NamedTuple):
    """What one rank of a training run left behind."""

    returncode: int
    output: str

    def losses(self) -> list[str]:
        """The losses that OpenCLIP printed, a string a step, to the last digit."""
        lines = [line for line in self.output.splitlines() if "Train Epoch" in line]
        return [line[line.index("Logit Scale") :] for line in lines]

    def values(self, name: str) -> list[float]:
        """What OpenCLIP printed under `name`, a number a step."""
        return [float(value) for value in re.findall(rf"\b{name}: (\S+)", "\n".join(self.losses()))]

    def errors(self) -> list[str]:
        """The lines that tell the user of a mistake."""
        return [line for line in self.output.splitlines() if re.search(r"\berror: ", line)]


def run_ranks(function, *args, world_size: int = 1, cwd: Path | None = None) -> list[Run]:
    """Calls `function(*args)` in `world_size` forked processes that torch.distributed can join, and returns their runs.

    Forked, because the imports are made once and what training replaces or logs stays in the child.
    """
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cwd = Path(cwd or ".")
    outputs = [cwd / f"rank{rank}-{port}.txt" for rank in range(world_size)]

    def child(rank):
        with open(outputs[rank], "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.chdir(cwd)
        if world_size > 1:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )  # fmt: skip
        sys.exit(function(*args))

    children = [context.Process(target=child, args=(rank,)) for rank in range(world_size)]
    for process in children:
        process.start()
    for process in children:
        process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [
        Run(process.exitcode, output.read_text()) for process, output in zip(children, outputs, strict=True)
    ]  # fmt: skip


def superclip_train(*argv: str) -> int:
    """`superclip train`, as the command line would call it."""
    from openclip_superclip.__main__ import main

    return main(["train", *map(str, argv)])


def stock_train(*argv: str) -> int | None:
    """`python -m open_clip_train.main`."""
    from open_clip_train.main import main

    return main([*map(str, argv)])


WHOLE_PICTURES = ["--aug-cfg", "scale=(1.0,1.0)", "ratio=(1.0,1.0)"]


def load(run_folder: Path, epoch: int = 1) -> dict:
    """A run's checkpoint; what the ranks' wrapper adds to the names is left out."""
    checkpoint = torch.load(run_folder / f"checkpoints/epoch_{epoch}.pt")
    weights = checkpoint["state_dict"].items()
    return checkpoint | {"state_dict": {name.removeprefix("module."): value for name, value in weights}}


def in_one_order(train):
    """`train` where WebDataset shuffles in one order; it seeds itself with the time."""

    def train_in_one_order(*argv):
        webdataset.filters.random = types.SimpleNamespace(Random=lambda *_: random.Random(0))
        return train(*argv)

    return train_in_one_order


def processes_in(out) -> list[str]:
    """The command lines of the processes that train into a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if {"study", "demo"}.isdisjoint(words) and any(str(out) in word for word in words):
                found.append(" ".join(words))
    return found
