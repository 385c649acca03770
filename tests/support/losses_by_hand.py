"""`superclip train` whose first step's losses are composed by hand as well: OpenCLIP's own, and the slow class loss."""

import copy
import json

import open_clip
import open_clip_train.main
import torch
import torch.distributed as dist
from open_clip_train.precision import get_autocast

import openclip_superclip as superclip
from openclip_superclip.method.head_input import encode_image

from .training_runs import Run, superclip_train


def train_and_compose_losses(*argv: str) -> int:
    """`superclip train`, which prints what `composed_losses` then reads."""
    create_loss, train_one_epoch = open_clip.create_loss, open_clip_train.main.train_one_epoch

    def train(model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, **options):
        module = getattr(model, "_orig_mod", model)
        untrained = copy.deepcopy(getattr(module, "module", module))
        passes = _recorded_passes(model)
        train_one_epoch(model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, **options)
        first_step = passes[:1]
        if args.accum_freq > 1:  # OpenCLIP passes micro-batches twice; it logs the last one's second, the others' first
            first_step = [*passes[: args.accum_freq - 1], passes[2 * args.accum_freq - 1]]
        second = passes[args.accum_freq : 2 * args.accum_freq] if args.accum_freq > 1 else first_step
        losses = _openclip_losses(untrained, first_step, dist_model, create_loss(args), args)
        losses["class_loss"] = _class_loss(untrained, second, args)
        print(json.dumps({"by hand": losses}))

    open_clip_train.main.train_one_epoch = train
    return superclip_train(*argv)


def composed_losses(run: Run) -> dict[str, float]:
    """The first step's losses by hand, under OpenCLIP's names."""
    (line,) = [line for line in run.output.splitlines() if line.startswith('{"by hand": ')]
    return json.loads(line)["by hand"]


def _recorded_passes(model) -> list[tuple]:
    """A list to which every pass of the model adds its pictures, its tokens and the random generator's state."""
    passes, forward = [], model.forward

    def recorded(images, texts):
        passes.append((images, texts, torch.get_rng_state()))
        return forward(images, texts)

    model.forward = recorded
    return passes


@torch.no_grad()
def _openclip_losses(model, passes, dist_model, loss, args) -> dict[str, float]:
    """What OpenCLIP's loss makes of what the OpenCLIP class of the model returns."""
    outputs = []
    with get_autocast(args.precision, device_type="cpu")():
        for images, texts, random_state in passes:
            torch.set_rng_state(random_state)
            outputs.append(_openclip_class(model).forward(model.train(), images, texts))
            if args.distill:
                outputs[-1] |= {f"dist_{name}": value for name, value in dist_model(images, texts).items()}
        whole = {name: torch.cat([one[name] for one in outputs]) for name in outputs[0] if outputs[0][name].ndim}
        return {name: value.item() for name, value in loss(**outputs[0] | whole, output_dict=True).items()}


@torch.no_grad()
def _class_loss(model, passes, args) -> float:
    """The mean of plain_class_loss over the captions of this rank."""
    patch_means = []
    with get_autocast(args.precision, device_type="cpu")():
        for images, _, random_state in passes:
            torch.set_rng_state(random_state)
            patch_means.append(encode_image(model.visual, model.patch_tokens, images)[2])
    head = model.class_head.float()
    features = head.ln(torch.cat(patch_means).float())
    tokens = torch.cat([texts for _, texts, _ in passes])
    return superclip.plain_class_loss(features, head.weight, head.bias, tokens, _idf(model, tokens)).mean().item()


def _openclip_class(model) -> type:
    return next(kind for kind in type(model).__mro__ if kind.__module__.startswith("open_clip."))


def _idf(model, tokens: torch.Tensor) -> torch.Tensor:
    """log((captions + 1) / (captions that hold the word + 1)) over all ranks' tokens [B, L]; [V]."""
    counted = model.statistics.counted.float()
    if model.idf == "off":
        return counted
    ranks = [tokens]
    if dist.is_initialized():
        ranks = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, tokens)
    captions = torch.zeros_like(counted)
    for caption in torch.cat(ranks):
        captions[caption.unique()] += 1
    return ((sum(map(len, ranks)) + 1) / (captions + 1)).log() * counted
