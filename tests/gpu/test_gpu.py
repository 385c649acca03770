"""What only a GPU can show.

Run with `pytest tests/gpu` on a machine that has one; skipped elsewhere."""

import math

import open_clip
import pytest
import torch
from support import cases, parametrize
from support.data import write_colours, write_shards
from support.evaluation import records
from support.models import write_random_model
from support.training_runs import Run, execute

import openclip_superclip as superclip
from openclip_superclip.method.idf import TokenStatistics
from openclip_superclip.method.loss import SuperCLIPLoss, class_loss, plain_class_loss
from openclip_superclip.trainer import autocast

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MODEL = "ViT-Ti-16-96"
VOCAB_SIZE = 49408


def inputs_of_class_loss():
    """Random features [B, W], weight [V, W], bias [V], tokens [B, L] and IDF [V]; captions have 3
    to 30 words, and padding."""
    batch, width, length = 256, 512, 77
    torch.manual_seed(0)
    tokens = torch.randint(1, VOCAB_SIZE, (batch, length))
    tokens[torch.arange(length) >= torch.randint(3, 31, (batch, 1))] = 0
    idf = torch.rand(VOCAB_SIZE) + 1
    idf[0] = 0
    weight = torch.randn(VOCAB_SIZE, width) * width**-0.5
    return [torch.randn(batch, width), weight, torch.zeros(VOCAB_SIZE), tokens, idf]


@parametrize("precision, tolerance", [("fp32", 1e-4), ("amp_bf16", 2e-2), ("amp", 2e-2)])
def test_the_class_loss_and_its_gradients_are_those_of_the_definition_in_float64(
    precision, tolerance
):
    inputs = inputs_of_class_loss()
    exact_leaves = [leaf.double().requires_grad_() for leaf in inputs[:3]]
    exact_losses = plain_class_loss(*exact_leaves, *inputs[3:])
    exact_losses.mean().backward()
    leaves = [leaf.cuda().requires_grad_() for leaf in inputs[:3]]
    with autocast(precision, "cuda")():
        losses = class_loss(*leaves, *(tensor.cuda() for tensor in inputs[3:]))
    losses.mean().backward()
    computed = [losses, *(leaf.grad for leaf in leaves)]
    exact = [exact_losses, *(leaf.grad for leaf in exact_leaves)]
    for values, exact_values in zip(computed, exact, strict=True):
        error = (values.double().cpu() - exact_values).norm() / exact_values.norm()
        assert error <= tolerance


def test_counts_and_idf_weights_are_those_of_the_cpu():
    tokens = torch.randint(VOCAB_SIZE, (64, 77), generator=torch.Generator().manual_seed(0))
    on_cpu = TokenStatistics(VOCAB_SIZE)
    on_cpu.update(tokens)
    on_gpu = TokenStatistics(VOCAB_SIZE).cuda()
    on_gpu.update(tokens.cuda())
    counts = on_gpu.state_dict()
    for name, expected in on_cpu.state_dict().items():
        assert torch.equal(counts[name].cpu(), expected)
    torch.testing.assert_close(on_gpu.idf().cpu(), on_cpu.idf(), rtol=1e-6, atol=0)


def make_step(batch):
    """A function that makes one step in bfloat16 on random images and captions."""
    torch.manual_seed(0)
    model, _, _ = superclip.create_model_and_transforms(
        MODEL, precision="amp_bf16", device="cuda", output_dict=True
    )
    loss = SuperCLIPLoss(open_clip.ClipLoss())
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.randn(batch, 3, 96, 96, device="cuda")
    texts = torch.randint(1, 1000, (batch, model.context_length), device="cuda")
    texts[:, 20:] = 0

    def step():
        optimizer.zero_grad()
        with autocast("amp_bf16", "cuda")():
            losses = loss(**model(images, texts), output_dict=True)
        sum(losses.values()).backward()
        optimizer.step()

    return step


def test_no_step_waits_for_the_gpu():
    step = make_step(16)
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
