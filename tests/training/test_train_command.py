"""`superclip train`: how it starts, and what a run records."""

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import open_clip
import open_clip_train.main
import pytest
import torch
from PIL import Image
from support import cases, parametrize, refusals, table
from support.models import MODELS, VOCAB_SIZE, write_model
from support.training_runs import (
    completed,
    error_of,
    failure,
    fork,
    on_a_full_disk,
    run_ranks,
    run_train,
    superclip_train,
)
from torch.distributed.run import main as torchrun

from openclip_superclip.flags import Config, options_of
from openclip_superclip.trainer import hook_calls, start
from openclip_superclip.trainer import train as train_command
from openclip_superclip.trainer.parsed_options import launched


@cases("flags, reason", refusals("train"))
def test_flags_that_cannot_work_are_refused_in_one_line(flags, reason, short_run, shards, refusal):
    Path("empty/empty").mkdir(parents=True)
    assert reason in refusal(short_run, flags.format(shards=shards))


@cases("flags, reason", refusals("train_later"))
def test_a_refused_run_is_one_line_and_leaves_its_name_to_the_corrected_command(
    flags, reason, short_run, tmp_path
):
    (tmp_path / "file").touch()
    flags = flags.format(
        efficientnet=write_model(tmp_path / "model", **MODELS["timm-efficientnet"])
    )
    assert reason in error_of(superclip_train, short_run, "--superclip", flags, cwd=tmp_path)
    assert not (tmp_path / "logs/run").exists()


def test_weights_that_are_not_finite_are_not_saved_and_the_log_is_kept(short_run, tmp_path):
    error = error_of(superclip_train, short_run, "--superclip --lr inf", cwd=tmp_path)
    assert "the weights are not finite after epoch 1, which is not saved: resume from" in error
    assert not [*tmp_path.glob("logs/run/checkpoints/*")]
    assert "Train Epoch" in (tmp_path / "logs/run/out.log").read_text()


@cases("variables, said", table("runs: refused ranks"))
def test_ranks_that_cannot_meet_are_one_line(variables, said, short_run, tmp_path):
    def train(*flags):
        os.environ.update(variables)
        return superclip_train(*flags)

    assert said in error_of(train, short_run, "--superclip", cwd=tmp_path)
    assert not (tmp_path / "logs/run").exists()


def test_a_task_of_slurm_that_trains_alone_is_rank_0(monkeypatch):
    for name, value in {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == (0, 1)


def test_a_run_that_openclip_refuses_leaves_nothing_behind_and_an_old_run_untouched(
    short_run, tmp_path
):
    flags = f"{short_run} --superclip --aug-cfg unknown=1"
    (run,) = run_ranks(superclip_train, flags, cwd=tmp_path)
    assert "unexpected keyword argument 'unknown'" in run.output
    assert not (tmp_path / "logs/run").exists()
    (tmp_path / "logs/run/checkpoints").mkdir(parents=True)
    (run,) = run_ranks(superclip_train, flags, cwd=tmp_path)
    assert run.returncode == 1
    assert (tmp_path / "logs/run/checkpoints").is_dir()


def test_the_loser_of_two_equal_names_leaves_the_winners_folder(short_run, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)

    def train():
        make_folder = start.make_folder

        def at_once(options):
            barrier.wait()
            make_folder(options)

        start.make_folder = at_once
        return superclip_train(short_run, "--superclip")

    both = [fork(train, tmp_path / f"{name}.txt", tmp_path, {}) for name in ("one", "two")]
    for process in both:
        process.join(300)
    outputs = [(tmp_path / f"{name}.txt").read_text() for name in ("one", "two")]
    assert sorted(process.exitcode for process in both) == [0, 1], outputs
    (loser,) = (output for output, process in zip(outputs, both, strict=True) if process.exitcode)
    assert (
        f"error: --name: another process trains into {tmp_path}/logs/run: give another name\n"
        in loser
    )
    assert (tmp_path / "logs/run/checkpoints/epoch_1.pt").is_file()
    assert "Train Epoch" in (tmp_path / "logs/run/out.log").read_text()


def test_a_full_disk_at_a_resume_is_one_line_and_the_incomplete_checkpoint_is_removed(
    short_run, tmp_path
):
    flags = f"{short_run} --superclip --resume latest --workers 1"
    run_train(flags, cwd=tmp_path)
    size = (tmp_path / "logs/run/checkpoints/epoch_1.pt").stat().st_size
    limited = on_a_full_disk(superclip_train, size // 2)
    error = error_of(limited, flags, "--epochs 2", cwd=tmp_path)
    assert error == (
        "error: --logs: logs/run cannot be written (the disk is full, or a limit is reached); "
        "epoch_2.pt was incomplete and is removed"
    )
    assert [path.name for path in (tmp_path / "logs/run/checkpoints").iterdir()] == ["epoch_1.pt"]


GPU = torch.cuda.is_available()


@pytest.mark.skipif(GPU, reason="there is a GPU")
@parametrize("ours", ["--superclip", "--val-fraction 0.2", "--val-frac 0.2", "--superclip-sl 3"])
def test_cuda_without_a_gpu_is_refused_with_each_flag_of_ours(ours, short_run):
    error = failure(f"train {short_run} --devi cuda {ours} --train-data nowhere.csv")
    assert (
        error == "error: --device is cuda, and PyTorch finds no GPU here: expected --device cpu\n"
    )


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_without_a_flag_of_ours_openclip_falls_back_to_the_cpu(short_run, tmp_path):
    run_train(f"{short_run} --device cuda", cwd=tmp_path)


@parametrize("flag", ["--horovod", "--horov", "--ho"])
def test_a_shortened_flag_for_horovod_joins_the_ranks(flag, monkeypatch, parse_args):
    assert train_command._launch_options([flag, "--model", "RN50"]).horovod
    joined = []
    monkeypatch.setattr(train_command, "join_ranks", lambda: joined.append(flag))
    monkeypatch.setattr(hook_calls, "parse_args", lambda argv: sys.exit("parsed"))
    monkeypatch.setattr(hook_calls, "is_patched", lambda: True)
    monkeypatch.setattr("open_clip_train.main.main", lambda argv: None)
    assert train_command.train([flag]) == 0
    assert joined == [flag]


@parametrize("flags", ["--superclip --epochs 1", "--superclip --batch-size 8000", "--model none"])
def test_a_training_in_a_notebook_leaves_the_process_as_it_was(flags, short_run, tmp_path):
    def process_state():
        loggers = {name: logging.getLogger(name).level for name in ("open_clip", "torch.fx", "PIL")}
        replaced = [open_clip_train.main.train_one_epoch, open_clip.factory.CLIP, sys.excepthook]
        root = logging.root
        replaced.append(logging.raiseExceptions)
        return loggers, replaced, root.level, root.handlers[:], root.manager.disable, Image.ID[:]

    def train():
        Image.init()
        before = process_state()
        with contextlib.suppress(RuntimeError, SystemExit):  # of OpenCLIP, of a refusal
            superclip_train(short_run, flags)
        assert process_state() == before

    process = fork(train, tmp_path / "output.txt", tmp_path, {})
    process.join(300)
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()


@parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_training_with_one_line(signum, short_run, tmp_path):
    command = (
        f"{sys.executable} -m openclip_superclip train {short_run} --superclip --epochs 1000 "
        "--workers 1 --save-frequency 0"
    )
    with subprocess.Popen(
        command.split(),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            lines = [next(line for line in process.stderr if "Train Epoch: 1" in line)]
            os.killpg(process.pid, signum)  # as a terminal does
            lines += process.communicate(timeout=60)[1].splitlines()
        finally:
            process.kill()
    assert process.returncode == 128 + signum
    assert lines[-1] == (
        f"superclip train: stopped by {signum.name}; its --name with --resume latest continues it "
        "after its last checkpoint"
    )
    assert not [line for line in lines if "Traceback" in line or "Error" in line]


def read_params(run):
    return dict(line.split(": ", 1) for line in (run / "params.txt").read_text().splitlines())


def test_params_txt_and_the_log_describe_superclip(tiny_model, csv_data, short_run, tmp_path):
    flags = "--save-frequency 0 --superclip --superclip-weight 2.5 --superclip-special-tokens"
    run = run_train(short_run, flags, cwd=tmp_path)
    expected = {"superclip": True, **options_of(Config(weight=2.5, special_tokens=True))}
    options = read_params(tmp_path / "logs/run")
    recorded = {name: value for name, value in options.items() if "superclip" in name}
    assert recorded == {name: str(value) for name, value in expected.items()}
    *lines, head = re.findall(r"SuperCLIP: (.*)", run.output.partition("Train Epoch")[0])
    assert lines == [
        f"model {tiny_model} in fp32 on 1 rank(s)",
        "the towers start from random weights (image) and random weights (text)",
        f"data {csv_data}, 1 epoch(s) in batches of 16 samples: 4 steps",
        "log and checkpoints in logs/run",
    ]
    for part in (
        f"vocabulary {VOCAB_SIZE:,}",
        f"head {VOCAB_SIZE * 65 + 2 * 64:,} parameters",
        "patch tokens",
        "width 64",
        "IDF online",
    ):
        assert part in head
    assert re.search(r"epoch 0: mean IDF weight of a word [0-9.]+; 0 of 64 captions", run.output)


def test_without_the_flag_params_txt_and_the_output_are_openclips(short_run, tmp_path):
    run = run_train(short_run, "--save-frequency 0", cwd=tmp_path)
    assert "superclip" not in " ".join(read_params(tmp_path / "logs/run"))
    assert "  batch_size: 16" in run.output and "ResidualAttentionBlock" in run.output
    assert "SuperCLIP: " not in run.output


def test_it_trains_under_torchrun(short_run, tmp_path):
    command = (
        "--standalone --nproc-per-node 2 -m openclip_superclip train -- "
        f"{short_run} --batch-size 16 --superclip"
    )
    (run,) = completed(torchrun, command.split(), cwd=tmp_path)
    assert "local 0), total 2." in run.output
    assert len(re.findall("Class_loss", run.output)) == 2
    assert run.output.count("this OpenCLIP is not patched") == 1
