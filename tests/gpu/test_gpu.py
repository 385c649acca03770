"""What only a GPU can show.

Run with `pytest tests/gpu` on a machine that has one; skipped elsewhere."""

import math

import pytest
import torch
from support import cases, parametrize
from support.data import write_colours, write_shards
from support.evaluation import records
from support.models import write_random_model
from support.training_runs import Run, execute

from openclip_superclip.benchmark.gpu_checks import checks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@cases("check", checks("cuda"))
def test_a_gpu_computes_what_the_cpu_does(check):
    check()


@parametrize("local_batch", [256, 512])
def test_the_benchmark_runs(local_batch, tmp_path):
    model = "--model ViT-B-16 --precision amp_bf16 --grad-checkpointing"
    batch = f"--head-batch {local_batch} --local-batch {local_batch}"
    execute(f"benchmark --device cuda {model} {batch} --out {tmp_path}")
    print((tmp_path / "benchmark.json").read_text())  # with -s: the numbers to record


def test_a_gpu_evaluates_to_nearly_the_scores_of_the_cpu(tmp_path):
    write_colours(tmp_path / "data/colours", ("test", "train"))
    argv = f"evaluate --data {tmp_path}/data --datasets colours --suite zeroshot,probe --workers 0"
    model, found = write_random_model(tmp_path), []
    for device in ("cuda", "cpu"):
        execute(f"{argv} --out {tmp_path}/{device} --device {device}", *model)
        found.append([record["metrics"] for record in records(tmp_path / device).values()])
    for gpu, cpu in zip(*found, strict=True):
        measure = "acc1" if "acc1" in gpu else "lp_acc1"
        assert gpu[measure] == pytest.approx(cpu[measure], abs=0.1)


@cases("compiled", {"eager": "", "compiled": "--torchcompile"})
def test_a_run_in_amp_bfloat16_learns(compiled, tmp_path):
    shards = write_shards(tmp_path / "shards", 8)  # of 16 samples
    execute(
        f"train --superclip --model ViT-Ti-16-96 --train-data {shards} --train-num-samples 64 "
        "--superclip-slices 2 --batch-size 32 --workers 2 --warmup 2 --epochs 4 --device cuda "
        f"--precision amp_bfloat16 --logs {tmp_path} --name run {compiled}"
    )
    checkpoint = torch.load(
        tmp_path / "run/checkpoints/epoch_4.pt", map_location="cpu", weights_only=True
    )
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    losses = Run(0, (tmp_path / "run/out.log").read_text()).values("Class_loss")
    assert losses and all(map(math.isfinite, losses)) and losses[-1] < losses[0]
