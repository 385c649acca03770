"""What only a GPU can show.

Run with `pytest tests/gpu` on a machine that has one; skipped elsewhere."""

import math

import pytest
import torch
from support.data import write_colours, write_shards
from support.evaluation import records
from support.models import write_random_model
from support.training_runs import Run, execute

from openclip_superclip.lab.benchmark.gpu_checks import checks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("check", checks("cuda").values(), ids=checks("cuda"))
def test_a_gpu_computes_what_the_cpu_does(check):
    check()


@pytest.mark.parametrize("local_batch", [256, 512])
def test_the_benchmark_runs(local_batch, tmp_path):
    options = "--device cuda --precision amp_bf16 --model ViT-B-16 --grad-checkpointing".split()
    batch = f"--head-batch {local_batch} --local-batch {local_batch}".split()
    execute("benchmark", *options, *batch, "--out", str(tmp_path))
    print((tmp_path / "benchmark.json").read_text())  # with -s: the numbers to record


def test_a_gpu_evaluates_to_nearly_the_scores_of_the_cpu(tmp_path):
    write_colours(tmp_path / "data/colours", ("test", "train"))
    argv = [
        *write_random_model(tmp_path),
        *f"--data {tmp_path}/data --datasets colours --suite zeroshot,probe".split(),
    ]
    found = []
    for device in ("cuda", "cpu"):
        out = f"--out {tmp_path}/{device} --device {device} --workers 0".split()
        execute("evaluate", *argv, *out)
        found.append([record["metrics"] for record in records(tmp_path / device).values()])
    for gpu, cpu in zip(*found, strict=True):
        measure = "acc1" if "acc1" in gpu else "lp_acc1"
        assert gpu[measure] == pytest.approx(cpu[measure], abs=0.1)


@pytest.mark.parametrize("compile", [[], ["--torchcompile"]], ids=["eager", "compiled"])
def test_a_run_in_amp_bfloat16_learns(compile, tmp_path):
    shards = write_shards(tmp_path / "shards", 8)  # of 16 samples
    command = (
        f"train --superclip --model ViT-Ti-16-96 --train-data {shards} --precision amp_bfloat16"
    ).split()
    command += "--train-num-samples 64 --superclip-slices 2 --batch-size 32 --workers 2".split()
    command += f"--warmup 2 --logs {tmp_path} --name run --device cuda --epochs 4".split()
    execute(*command, *compile)
    checkpoint = torch.load(
        tmp_path / "run/checkpoints/epoch_4.pt", map_location="cpu", weights_only=True
    )
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    losses = Run(0, (tmp_path / "run/out.log").read_text()).values("Class_loss")
    assert losses and all(map(math.isfinite, losses)) and losses[-1] < losses[0]
