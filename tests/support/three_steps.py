"""Three steps of training without the data pipeline, on any number of
ranks."""

import random

import open_clip
import torch
import torch.distributed as dist

import openclip_superclip as superclip
from openclip_superclip.hooks import plugin_manager
from openclip_superclip.trainer.hook_calls import parse_args
from support import WORDS

from .models import as_rank_1, rounding
from .training_runs import completed

# Terms of all sums between an image and a loss, at most: those of a patch
# (8 x 8 x 3), of two layers (12 x 64 each) and of the vocabulary (4,096).
SUMMED = 6000


def batch(model_name, num_captions):
    """Images of noise [B, 3, 32, 32] and the model's tokens of captions
    that differ [B, L]."""
    rng = random.Random(0)
    captions = [" ".join(rng.choices(WORDS, k=rng.randint(1, 5))) for _ in range(num_captions)]
    tokens = open_clip.get_tokenizer(model_name)(captions)
    return torch.randn(num_captions, 3, 32, 32, generator=torch.Generator().manual_seed(0)), tokens


def train_three_steps(model_name, rank, world_size, flags, gradient_scale):
    """Trains on one global batch of 16 and returns losses, first gradients,
    counts and weights.

    The gradients are divided by `gradient_scale`, and the optimizer is SGD:
    Adam would hide their size.
    """
    torch.manual_seed(0)
    kwargs = {"init_logit_scale": 1.0, "init_logit_bias": -1.0} if "--siglip" in flags else {}
    model, _, _ = superclip.create_model_and_transforms(model_name, **kwargs)
    flags = f"--model {model_name} --dataset-type webdataset --superclip {flags}"
    args = as_rank_1(parse_args(flags.split(), only_options=True))
    args.rank, args.world_size = rank, world_size
    loss = plugin_manager().hook.open_clip_create_loss(args=args, model=model)
    module = model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if world_size > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    images, tokens = (tensor.chunk(world_size)[rank] for tensor in batch(model_name, 16))
    results = {"losses": []}
    for step in range(3):
        losses = loss(**model(images, tokens), output_dict=True)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        for name, parameter in module.named_parameters():
            # its gradient is complete on every rank, even if the features'
            # is scaled
            if name != "logit_scale":
                parameter.grad /= gradient_scale
        if step == 0:
            results["gradients"] = {name: p.grad.clone() for name, p in module.named_parameters()}
        optimizer.step()
        results["losses"].append({name: value.detach() for name, value in losses.items()})
    results["state_dict"] = module.state_dict()
    return results


def assert_same_gradients(ours, expected):
    """Within the rounding of float32 on the way to a loss and back, parameter by
    parameter: a common bound would say little on small gradients."""
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= rounding(2 * SUMMED) * gradient.norm(), name


def results_of(function, world_size, folder):
    """What `function(rank, world_size)` returns in each process of
    run_ranks, saved there as rank0.pt, rank1.pt."""

    def in_rank():
        rank = 0
        if world_size > 1:
            dist.init_process_group("gloo")
            rank = dist.get_rank()
        torch.save(function(rank, world_size), f"rank{rank}.pt")
        if world_size > 1:
            dist.destroy_process_group()

    folder.mkdir()
    completed(in_rank, world_size=world_size, cwd=folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world_size)]
