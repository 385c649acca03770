"""`superclip plan`'s memory of a training step, against the peak of that step in a process of its own."""

import types

import open_clip
import pytest
import torch
from open_clip_train.precision import get_autocast
from support.models import write_model

from openclip_superclip.benchmark.head_cost import peak_memory
from openclip_superclip.method.loss import SuperCLIPLoss
from openclip_superclip.openclip.factory import create_model_and_transforms
from openclip_superclip.runs.model_size import trace_step

pytestmark = pytest.mark.slow

TOLERANCE = 0.2  # of the measured peak: a CPU's kernels and allocator hold memory beside tensors
BATCH = 96


def make_step(model_name: str, with_head: bool, precision: str, grad_checkpointing: bool):
    """A call that trains a step of a model whose optimizer has made its moments, and torch its own state."""
    create = create_model_and_transforms if with_head else open_clip.create_model_and_transforms
    model, _, _ = create(model_name, precision=precision, output_dict=True)
    if grad_checkpointing:
        model.set_grad_checkpointing()
    loss = SuperCLIPLoss(open_clip.ClipLoss()) if with_head else open_clip.ClipLoss()
    optimizer, autocast = torch.optim.AdamW(model.parameters()), get_autocast(precision, device_type="cpu")

    def step(batch: int = BATCH):
        images, texts = torch.randn(batch, 3, 64, 64), torch.randint(1, 1000, (batch, model.context_length))
        with autocast():
            losses = loss(**model(images, texts), output_dict=True)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(2)
    return step


@pytest.mark.parametrize(("with_head", "precision", "grad_checkpointing"), [
    (True, "fp32", False), (True, "fp32", True), (False, "amp_bf16", False),
])  # fmt: skip
def test_the_memory_of_a_plan_is_what_a_step_takes(with_head, precision, grad_checkpointing, tmp_path):
    vision = {"image_size": 64, "patch_size": 8, "width": 384, "layers": 3, "head_width": 64}
    model = write_model(tmp_path, vision)
    measured = peak_memory(make_step, model, with_head, precision, grad_checkpointing, device="cpu")
    args = types.SimpleNamespace(
        model=model, batch_size=BATCH, accum_freq=1, precision=precision, device="cpu", siglip=False,
        grad_checkpointing=grad_checkpointing, local_loss=False, gather_with_grad=False, force_patch_dropout=None,
        force_image_size=None, force_context_length=None, lock_image=False, lock_text=False,
    )  # fmt: skip
    traced = trace_step(args, 1, with_head)
    assert traced["peak"] - traced["weights"] - traced["optimizer"] == pytest.approx(measured, rel=TOLERANCE)
