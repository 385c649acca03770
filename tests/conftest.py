"""What the tests share: small real data, small real models, and OpenCLIP's
training in a process of its own."""

import os

# before torch: forked children must not meet its thread pool
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # equal bits wherever an array lies in memory

import sys

# pytest -m main: a checkout comes before the installed OpenCLIP
if "OPENCLIP_SOURCE" in os.environ:
    source = os.path.join(os.path.realpath(os.environ["OPENCLIP_SOURCE"]), "src")
    sys.path.insert(0, source)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    )

import importlib
import logging
import shutil
import signal
import subprocess
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import open_clip_train.main  # noqa: F401  # once, here: every child would import it again
import pytest
import torch
from filelock import FileLock
from PIL import Image
from support import WORDS
from support.data import write_images, write_table, write_tar
from support.models import MODELS, write_hf_text_model, write_model, write_weights
from support.openclip_trees import PIP, RELEASES
from support.slurm_cluster import Cluster
from support.training_runs import (
    SMALL,
    call,
    execute,
    in_forks,
    run_superclip,
    run_train,
    shell_words,
)

from openclip_superclip.demo import data
from openclip_superclip.trainer import current, hook_calls

torch.set_num_threads(1)
data.SHARD_SIZE = 128  # of the demo's 1,024, which take 20 seconds to draw
# a shell's background job ignores both, and all that
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests start would


def replaceable():
    """The functions of OpenCLIP and torch that the launcher may replace, by
    dotted path."""
    found = {}
    for path in (*hook_calls.REPLACED, *current().WRAPPERS):
        module, _, name = path.rpartition(".")
        found[path] = getattr(importlib.import_module(module), name, None)
    return found


BEFORE = replaceable()


@pytest.fixture(autouse=True)
def openclip_stays_as_it_is():
    """Fails a test after which a function of OpenCLIP is replaced: train in
    a fork. Enables logging, which a refused training disables."""
    yield
    logging.disable(logging.NOTSET)
    replaced = [path for path, function in replaceable().items() if function is not BEFORE[path]]
    for path in replaced:
        module, _, name = path.rpartition(".")
        setattr(importlib.import_module(module), name, BEFORE[path])
    assert not replaced


def pytest_xdist_auto_num_workers():
    """Two more than cores: two files of tests wait for clusters most of the
    time, and leave the cores to the others."""
    return (os.cpu_count() or 1) + 2


@pytest.fixture(scope="session")
def csv_data(tmp_path_factory):
    """A table of 64 pictures of noise, 32 px, with captions of one to five
    words."""
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
def shards(csv_data):
    """The same pictures and captions in two WebDataset shards, as
    --train-data or --val-data."""
    rows = [row.split("\t") for row in csv_data.read_text().splitlines()[1:]]
    for shard in range(2):
        samples = [
            {"__key__": Path(picture).stem, "png": Path(picture).read_bytes(), "txt": caption}
            for picture, caption in rows[shard::2]
        ]
        write_tar(csv_data.parent / f"{shard}.tar", samples)
    return f"{csv_data.parent}/{{0..1}}.tar"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """--model of a two-layer ViT."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """--model of a model whose checkpoints are small."""
    return write_model(
        tmp_path_factory.mktemp("small-model"),
        vision={"width": 32, "head_width": 16},
        text={"width": 16, "heads": 2},
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """--model of each of MODELS, and of a model whose text tower and
    tokenizer are Hugging Face's.

    The folders of `teacher` and `coca` hold weights.
    """
    folder = tmp_path_factory.mktemp("models")
    models = {name: write_model(folder / name, **cfg) for name, cfg in MODELS.items()}
    models["teacher"] = write_model(folder / "teacher")
    for name in ("teacher", "coca"):  # of CoCa's fresh weights some are what the memory held
        write_weights(models[name])
    return {**models, "hf-text": write_hf_text_model(folder / "hf-text")}


@pytest.fixture(scope="session")
def teacher(models):
    return models["teacher"]


@pytest.fixture(scope="session")
def short_run(csv_data, tiny_model):
    """Flags of a short run on the CPU that any test can add to; a flag
    given again wins."""
    return (
        f"--model {tiny_model} --train-data {csv_data} --dataset-type csv --batch-size "
        "16 --epochs 1 --workers 0 --lr 1e-3 --warmup 1 --device cpu --precision fp32 "
        "--log-every-n-steps 1 --name run"
    )


@pytest.fixture(scope="session")
def squares_run(tmp_path_factory):
    """The folder of a run that has learned the names of colours, beside its
    model's `model`; not to be changed."""
    folder = tmp_path_factory.mktemp("squares")
    write_table(folder / "train.csv", write_images(folder / "trained", 256, 0))
    model = write_model(folder / "model", text={"layers": 1})
    flags = (
        f"--model {model} --superclip --train-data {folder}/train.csv --csv-separator , "
        "--csv-img-key image --csv-caption-key caption --batch-size 32 --epochs 6 --workers 0 "
        "--lr 3e-3 --warmup 5 --device cpu --precision fp32 --name run --save-frequency 6"
    )
    run_train(flags, cwd=folder)
    return folder / "logs/run"


@pytest.fixture(scope="session")
def squares_export(squares_run, tmp_path_factory):
    """The same model, exported with its head."""
    out = tmp_path_factory.mktemp("exported") / "model"
    execute(f"export {squares_run}/checkpoints/epoch_6.pt --out {out} --with-head")
    return out


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A temporary folder that all workers share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def demo(shared_folder):
    """The folder of a small demo, trained once for all workers, beside what
    it printed; not to be changed."""
    with FileLock(shared_folder / "demo.lock"), in_forks():
        if not (shared_folder / "demo/study.png").exists():  # written last
            printed = shared_folder / "printed"
            assert run_superclip(SMALL, printed, shared_folder) == 0, printed.read_text()
    return shared_folder / "demo"


@pytest.fixture(scope="module")
def forks():
    """What a module's studies and runs start are forks."""
    with in_forks():
        yield


@pytest.fixture(scope="session")
def wheels(pytestconfig):
    """The released wheels; downloaded once, into pytest's cache; skips the
    test where they cannot be."""
    folder = pytestconfig.cache.mkdir("open_clip_torch")
    for release in RELEASES:
        if not [*folder.glob(f"open_clip_torch-{release}-*.whl")]:
            with tempfile.TemporaryDirectory(dir=folder) as partial:
                download = [
                    *PIP,
                    *f"download --no-deps --dest {partial} open_clip_torch=={release}".split(),
                ]
                done = subprocess.run(download, capture_output=True, text=True)
                if done.returncode != 0:
                    pytest.skip(f"OpenCLIP's releases come from PyPI: {done.stderr.strip()}")
                (wheel,) = Path(partial).iterdir()
                wheel.rename(folder / wheel.name)
    return {release: next(folder.glob(f"open_clip_torch-{release}-*.whl")) for release in RELEASES}


@pytest.fixture(scope="session")
def released(wheels, tmp_path_factory):
    """The wheels, unpacked; not to be changed."""
    folder = tmp_path_factory.mktemp("released")
    for release, wheel in wheels.items():
        zipfile.ZipFile(wheel).extractall(folder / release)
    return {release: folder / release for release in RELEASES}


@pytest.fixture(scope="session")
def patched(released, tmp_path_factory):
    """The wheels, unpacked and patched; not to be changed."""
    folder = tmp_path_factory.mktemp("patched")
    for release in RELEASES:
        shutil.copytree(released[release], folder / release)
        execute(f"patch apply --source {folder}/{release}")
    return {release: folder / release for release in RELEASES}


@pytest.fixture(scope="session")
def cluster():
    """A SLURM cluster of two nodes."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def refused(monkeypatch, capsys):
    """Calls `superclip` in a folder, where it must fail in one line and
    write nothing, and returns that line."""

    def refused(folder, command, *more):
        monkeypatch.chdir(folder)
        before = sorted(folder.rglob("*"))
        assert call(command, *more) == 1
        *others, line = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert not [other for other in others if other.startswith(("error: ", "Traceback"))]
        assert sorted(folder.rglob("*")) == before
        return line

    return refused


@pytest.fixture
def refusal(parse_args):
    """Returns the one line with which `superclip train` refuses its
    arguments."""

    def refusal(*flags):
        with pytest.raises(SystemExit) as refused:
            parse_args(*flags)
        message = str(refused.value)
        assert message.startswith("error: ") and "\n" not in message
        return message

    return refusal


@pytest.fixture
def parse_args(tmp_path, monkeypatch):
    """Parses OpenCLIP's flags with those of the plugins, where a text may
    hold several, in an empty folder, in which the run's is locked."""
    monkeypatch.chdir(tmp_path)
    return lambda *flags, **options: hook_calls.parse_args(shell_words(*flags), **options)
