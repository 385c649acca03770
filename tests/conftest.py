"""What the tests share: small real data, small real models, and OpenCLIP's training in a process of its own."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: forked children must not meet its thread pool
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # equal bits wherever an array lies in memory

import argparse
import json
import multiprocessing
import re
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip_train.main  # once, here: every child would import it again
import pytest
import torch
import webdataset
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"
WORDS = ["cat", "dog", "red", "blue", "tree", "house", "car", "boat", "sun", "moon", "fish", "bird"]

torch.set_num_threads(1)


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


def write_model(folder: Path, vision: dict | None = None, text: dict | None = None, **model_cfg) -> str:
    """Writes a small OpenCLIP model configuration and returns the --model that opens it."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8, **(vision or {})},
        "text_cfg": {
            "context_length": 20, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2, **(text or {}),
        },
        **model_cfg,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def csv_data(tmp_path_factory) -> Path:
    """A table of 64 pictures of noise, 32 px, with captions of one to five words."""
    folder = tmp_path_factory.mktemp("csv")
    rng = np.random.default_rng(0)
    rows = ["filepath\ttitle"]
    for index in range(64):
        picture = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(picture)
        rows.append(f"{picture}\t{' '.join(rng.choice(WORDS, rng.integers(1, 6)))}")
    table = folder / "train.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


@pytest.fixture(scope="session")
def shards(csv_data) -> str:
    """The same pictures and captions in two WebDataset shards, as --train-data or --val-data."""
    rows = [row.split("\t") for row in csv_data.read_text().splitlines()[1:]]
    for shard in range(2):
        with webdataset.TarWriter(str(csv_data.parent / f"{shard}.tar")) as tar:
            for picture, caption in rows[shard::2]:
                tar.write({"__key__": Path(picture).stem, "png": Path(picture).read_bytes(), "txt": caption})
    return f"{csv_data.parent}/{{0..1}}.tar"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """--model of a two-layer ViT."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def train_flags(csv_data, tiny_model) -> list[str]:
    """Flags of a short run on the CPU that any test can add to; a flag given again wins."""
    return [
        "--model", tiny_model, "--train-data", str(csv_data), "--dataset-type", "csv", "--batch-size", "16",
        "--epochs", "1", "--workers", "0", "--lr", "1e-3", "--warmup", "1", "--device", "cpu",
        "--log-every-n-steps", "1", "--name", "run",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def cluster():
    """A SLURM cluster of two nodes."""
    from slurm_cluster import Cluster

    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def parse_args(monkeypatch):
    """OpenCLIP's command line with the plugins' options; OpenCLIP's own parser is put back afterwards."""
    from openclip_superclip import unpatched

    monkeypatch.setattr(open_clip_train.params, "argparse", argparse)
    return unpatched.parse_args
