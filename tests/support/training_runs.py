"""Training in processes of its own: forked ranks, `superclip`, and small
demo runs."""

import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import types
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import webdataset

from openclip_superclip import hooks
from openclip_superclip.__main__ import main
from openclip_superclip.demo.measures import measure
from openclip_superclip.environment import end_with_parent
from openclip_superclip.runs.child_processes import free_port
from openclip_superclip.runs.rank_main import main as train_rank
from openclip_superclip.runs.signals import STOPPED_BY

from . import WORDS
from .data import write_images, write_table
from .models import assert_equal, write_hf_text_model, write_weights


class Run(NamedTuple):
    """What one rank of a training run left behind."""

    returncode: int
    output: str

    def losses(self):
        """The losses that OpenCLIP printed, a string a step, to the last
        digit."""
        lines = [line for line in self.output.splitlines() if "Train Epoch" in line]
        return [line[line.index("Logit Scale") :] for line in lines]

    def values(self, name):
        """What OpenCLIP printed under `name`, a number a step."""
        return [float(value) for value in re.findall(rf"\b{name}: (\S+)", "\n".join(self.losses()))]

    def metrics(self):
        """What OpenCLIP printed of each evaluation."""
        return [
            line.partition("Eval Epoch")[2]
            for line in self.output.splitlines()
            if "Eval Epoch" in line
        ]

    def errors(self):
        """The lines that report a mistake to the user."""
        return [line for line in self.output.splitlines() if re.search(r"\berror: ", line)]


def run_ranks(function, *args, world_size=1, cwd=None):
    """Calls `function(*args)` in `world_size` forks that torch.distributed
    can join, and returns their runs."""
    cwd, port = Path(cwd or "."), free_port()
    outputs = [cwd / f"rank{rank}-{port}.txt" for rank in range(world_size)]
    address = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank, output in enumerate(outputs):
        variables = (
            {"RANK": str(rank), "LOCAL_RANK": str(rank), **address} if world_size > 1 else {}
        )
        children.append(fork(lambda: function(*args), output, cwd, variables))
    codes = [_exit_code(child, 300) for child in children]
    return [Run(code, output.read_text()) for code, output in zip(codes, outputs, strict=True)]


def run_superclip(arguments, output, cwd, **variables):
    """Runs `superclip ARGUMENTS` to its end, what it prints added to a
    file, and returns its exit code."""
    return _exit_code(fork(lambda: main([*map(str, arguments)]), output, cwd, variables), 600)


def fork(function, output, cwd, variables):
    """Starts `function()` in a fork: imports are made once, and what
    training replaces or logs stays in the child."""

    def child():
        with open(output, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(cwd)
        os.environ.update(variables)
        sys.path[:0] = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
        hooks.plugin_manager.cache_clear()  # plugins may lie there
        sys.exit(function())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def _exit_code(process, seconds):
    """The exit code of a process, which is killed if it takes longer."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def completed(function, *args, world_size=1, cwd=None):
    """Returns the runs of run_ranks, all of which must succeed."""
    runs = run_ranks(function, *args, world_size=world_size, cwd=cwd)
    assert [run.returncode for run in runs] == [0] * world_size, runs[0].output[-3000:]
    return runs


def error_of(function, *args, cwd):
    """Returns the line with which a run must end, instead of a
    traceback."""
    (run,) = run_ranks(function, *args, cwd=cwd)
    assert run.returncode == 1, run.output[-3000:]
    assert "Traceback" not in run.output
    (error,) = run.errors()
    return error


def call(command, *more):
    """The exit code of `superclip COMMAND MORE` in this process."""
    return main([*shlex.split(command), *map(str, more)])


def execute(command, *more):
    """What `superclip COMMAND MORE` prints in this process, where it must
    succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = call(command, *more)
    assert code == 0, printed.getvalue()
    return printed.getvalue()


def failure(command, *more):
    """The errors of `superclip COMMAND MORE` in this process, where it must
    fail."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = call(command, *more)
    assert code == 1, errors.getvalue()
    return errors.getvalue()


def shell_words(*parts):
    """The words of a command in parts, each of which is a word, a text of
    words or a list."""
    words = []
    for part in parts:
        words += shell_words(*part) if isinstance(part, list) else shlex.split(str(part))
    return words


def write_two_towers(folder):
    """Writes a model of a timm and a Hugging Face tower, `folder`/start, and
    a table, and returns the flags to train on them in the folder."""
    vision = {"timm_model_name": "test_efficientnet", "timm_pool": "", "image_size": 32}
    write_weights(write_hf_text_model(folder / "start", vision=vision))
    write_table(folder / "pairs.csv", write_images(folder / "images", 64, seed=0))
    return (
        "--superclip --model local-dir:start --train-data pairs.csv --batch-size 16 --epochs 1 "
        "--workers 0 --lr 1e-3 --warmup 1 --device cpu --precision fp32 --name run"
    )


def superclip_train(*flags):
    """`superclip train FLAGS`, where a text may hold several flags."""
    return call("train", *shell_words(*flags))


def stock_train(*flags):
    """`python -m open_clip_train.main FLAGS`."""
    from open_clip_train.main import main

    return main(shell_words(*flags))


def run_train(*flags, cwd, world_size=1):
    """The first rank's run of `superclip train FLAGS`, which must
    succeed."""
    return completed(superclip_train, *flags, world_size=world_size, cwd=cwd)[0]


WHOLE_PICTURES = "--aug-cfg scale=(1.0,1.0) ratio=(1.0,1.0)"


def load(run_folder, epoch=1):
    """A run's checkpoint; what the ranks' wrapper adds to the names is left
    out."""
    checkpoint = torch.load(run_folder / f"checkpoints/epoch_{epoch}.pt")
    weights = checkpoint["state_dict"].items()
    return checkpoint | {
        "state_dict": {name.removeprefix("module."): value for name, value in weights}
    }


def assert_equal_runs(run, other, epoch=1):
    """Fails unless the weights, the counts and the optimizers' states of two
    runs are equal."""
    ours, theirs = load(run, epoch), load(other, epoch)
    assert_equal(ours["state_dict"], theirs["state_dict"])
    assert_equal(ours["optimizer"]["state"], theirs["optimizer"]["state"])


def assert_trains_as_stock(*argv, cwd, world_size=1, stock=stock_train):
    """Compares what `superclip train` and stock OpenCLIP print to the last
    digit, and returns the number of steps."""
    both = (("ours", superclip_train), ("stock", stock))
    ours, theirs = (
        completed(in_one_order(train), *argv, f"--name {name}", world_size=world_size, cwd=cwd)[0]
        for name, train in both
    )
    assert ours.losses() == theirs.losses()
    assert ours.metrics() == theirs.metrics()
    return len(theirs.losses())


def assert_resumes(train, *argv, folder, world_size=1):
    """Trains two epochs at once, and one after the other, and compares all
    that both runs save."""
    for name, epochs in {"whole": [2], "resumed": [1, 2]}.items():
        (folder / name).mkdir()
        for last in epochs:
            flags = f"--epochs {last} --lr-scheduler const --resume latest"
            completed(train, *argv, flags, world_size=world_size, cwd=folder / name)
    assert_equal_runs(folder / "resumed/logs/run", folder / "whole/logs/run", epoch=2)


def traced_train(*argv, killed_at=None):
    """`superclip train` that writes each batch's epoch and tokens to
    trained-RANK.txt.

    It is killed before the batch `killed_at`, an epoch and a number.
    """
    import open_clip_train.main

    get_data = open_clip_train.main.get_data

    def get_traced_data(args, *rest, **options):
        data = get_data(args, *rest, **options)
        train = data["train"]
        loader = train.dataloader

        class Traced:
            num_batches, num_samples = loader.num_batches, loader.num_samples

            def __iter__(self):
                epoch = train.shared_epoch.get_value()
                with open(f"trained-{args.rank}.txt", "a") as trained:
                    for number, batch in enumerate(loader):
                        if (epoch, number) == killed_at:
                            os.kill(os.getpid(), signal.SIGKILL)
                        texts = batch["text"] if isinstance(batch, dict) else batch[1]
                        print(json.dumps([epoch, texts.tolist()]), file=trained, flush=True)
                        yield batch

        train.dataloader = Traced()
        return data

    open_clip_train.main.get_data = get_traced_data
    return superclip_train(*argv)


def train_with(folder, *argv):
    """`superclip train` in a process that also has the plugins in
    `folder`."""
    sys.path.insert(0, str(folder))
    hooks.plugin_manager.cache_clear()
    return superclip_train(*argv)


def train_on_five_classes(*argv):
    """`superclip train` if ImageNet has five classes."""
    import open_clip
    from open_clip_train import zero_shot

    zero_shot.IMAGENET_CLASSNAMES = WORDS[:5]
    zero_shot.OPENAI_IMAGENET_TEMPLATES = open_clip.OPENAI_IMAGENET_TEMPLATES[:2]
    return superclip_train(*argv)


def in_one_order(train):
    """`train` where WebDataset shuffles in one order; it seeds itself with
    the time."""

    def train_in_one_order(*argv):
        webdataset.filters.random = types.SimpleNamespace(Random=lambda *_: random.Random(0))
        return train(*argv)

    return train_in_one_order


def on_a_full_disk(function, size=65536):
    """`function` with a limit on the size of files in bytes, at which
    writing fails as on a full disk."""

    def limited(*args):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return function(*args)

    return limited


def processes_in(out):
    """The command lines of the processes that train into a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if {"study", "demo"}.isdisjoint(words) and any(str(out) in word for word in words):
                found.append(" ".join(words))
    return found


@contextlib.contextmanager
def in_forks():
    """Makes what studies and runs start forks: a new process
    takes five seconds to import OpenCLIP.

    A study trains its runs one after the other, because only a process of
    one thread can fork safely. The demo measures 50 scenes of each kind
    instead of up to 2,000.
    """
    forked = types.SimpleNamespace(**vars(subprocess) | {"Popen": fork_python})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openclip_superclip.runs.child_processes.subprocess", forked)
        patch.setattr("openclip_superclip.study.training.ThreadPoolExecutor", AtOnce)
        patch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread
        patch.setattr(measure, "__defaults__", (50, 50))
        yield


def fork_python(command, stdout, env, **_):
    """`subprocess.Popen` of a rank, or of the `superclip` of a study."""

    def run():
        os.setsid()
        for each in STOPPED_BY:
            signal.signal(each, signal.SIG_DFL)
        if train_rank.__module__ in command:
            return train_rank(command[-1])
        end_with_parent(signal.SIGTERM)
        return main(command[command.index("-c") + 2 :])

    process = fork(run, stdout.name, Path.cwd(), env)
    process.poll = lambda: process.exitcode
    process.wait = lambda *seconds: process.join(*seconds) or process.exitcode
    return process


class AtOnce(ThreadPoolExecutor):
    """An executor that calls a function when it is submitted, in this
    thread."""

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


SMALL = ["demo", "--quick", "--samples", "320"]
