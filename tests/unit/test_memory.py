"""The memory that `superclip plan` predicts is what OpenCLIP's trainer allocates."""

import logging

import open_clip
import pytest
import torch
from open_clip_train.train import train_one_epoch
from support.models import MODELS, write_model
from torch._C._profiler import _EventType

from openclip_superclip import hooks
from openclip_superclip.openclip import current
from openclip_superclip.openclip.replacing import plugins_model_class
from openclip_superclip.openclip.train import check_command
from openclip_superclip.runs.memory import step_memory
from openclip_superclip.runs.plan import make_run
from openclip_superclip.runs.recipe import read_recipe
from openclip_superclip.runs.run import Run

needs_loop = pytest.mark.skipif(
    current().HAS_TASKS, reason="OpenCLIP 4 trains with a state made by its main"
)
LARGER = {
    "vision": {"width": 256, "layers": 6, "image_size": 64},
    "text": {"width": 128, "heads": 4, "layers": 4, "context_length": 40},
    "embed_dim": 128,
}


def run_of(model: str, gpus: int = 1, batch_max: int | None = None, **set_: str) -> Run:
    head = set_.pop("head", True)
    name = "superclip" if head else "clip"
    recipe = read_recipe(f"demo/{name}_demo-model_8k_bs64", {"model": model, **set_})
    return make_run(recipe, 1, gpus, gpu_batch_max=batch_max, device="cpu")


class Batches:
    """Random images and captions, each batch anew, as a data loader gives them."""

    def __init__(self, model, batch_size: int, num_batches: int):
        size = model.visual.image_size
        self.shape = batch_size, 3, *(size if isinstance(size, tuple) else (size, size))
        self.length = model.context_length
        self.num_batches, self.num_samples = num_batches, batch_size * num_batches
        self.dataloader = self

    def set_epoch(self, epoch):
        pass

    def __iter__(self):
        for _ in range(self.num_batches):
            yield torch.randn(self.shape), torch.randint(1, 4000, (self.shape[0], self.length))


def train(run: Run) -> None:
    """Trains two steps as OpenCLIP's main does."""
    args = check_command(run.openclip_arguments())
    distributed = {"rank": 1, "local_rank": 1, "world_size": 1, "distributed": False}
    vars(args).update(distributed, distill=False, logs="logs")
    with plugins_model_class():
        model = open_clip.create_model(
            args.model,
            precision=args.precision,
            force_patch_dropout=args.force_patch_dropout,
            output_dict=True,
            **hooks.model_kwargs(args),
        )
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    loss = hooks.plugin_manager().hook.open_clip_create_loss(args=args, model=model)
    loss = loss or open_clip.create_loss(args)
    optimizer = torch.optim.AdamW(model.parameters())
    data = {"train": Batches(model, args.batch_size, 2 * args.accum_freq)}
    train_one_epoch(model, data, loss, 0, optimizer, None, lambda step: None, None, args)


def allocated_peak(function, *args) -> int:
    """Returns the most bytes that torch's allocator of the CPU holds while the function runs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function(*args)
    waiting = list(profile.profiler.kineto_results.experimental_event_tree())
    total, peak, allocations = 0, 0, []
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation:
            allocations.append((event.start_time_ns, event.extra_fields.alloc_size))
    for _, num_bytes in sorted(allocations, key=lambda allocation: allocation[0]):
        total += num_bytes
        peak = max(peak, total)
    return peak


CONFIGURATIONS = {
    "fp32": {},
    "without head": {"head": False},
    "checkpointing": {"flags.grad-checkpointing": "true"},
    "checkpointing without head": {"flags.grad-checkpointing": "true", "head": False},
    "accumulation": {"batch_max": 16},
    "accumulation without head": {"batch_max": 16, "head": False},
    "accumulation and checkpointing": {"batch_max": 16, "flags.grad-checkpointing": "true"},
    "bfloat16 weights": {"precision": "pure_bf16"},
    "autocast": {"precision": "amp_bf16"},
    "patch dropout": {"flags.force-patch-dropout": "0.5"},
}


@needs_loop
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_planned_peak_is_what_openclips_trainer_allocates(name, tmp_path):
    run = run_of(write_model(tmp_path, **LARGER), **CONFIGURATIONS[name])
    planned = step_memory(run)
    measured = allocated_peak(train, run)
    print(name, f"{planned['peak_bytes'] / measured:.3f}", planned, measured)
    assert planned["peak_bytes"] == pytest.approx(measured, rel=0.1)
