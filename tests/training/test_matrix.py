"""Everything that OpenCLIP can train, through real steps of `superclip
train`; what cannot be trained is refused."""

import copy
import functools
import json
import math

import open_clip
import open_clip_train.main
import pytest
import torch
import torch.distributed as dist
from open_clip.utils import to_2tuple
from open_clip_train.precision import get_autocast
from support import cases, parametrize, table
from support.data import write_imagenet
from support.models import MODELS
from support.training_runs import completed, superclip_train, train_on_five_classes

import openclip_superclip as superclip
from openclip_superclip.method.head_input import encode_image

# The first step's losses composed by hand: OpenCLIP's own, and the slow
# class loss


def train_and_compose_losses(*argv):
    """`superclip train`, which prints the first step's losses by hand,
    under OpenCLIP's names.

    The graphs of --torchcompile are not compiled to machine code.
    """
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    create_loss, train_one_epoch = open_clip.create_loss, open_clip_train.main.train_one_epoch

    def train(model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, **options):
        module = getattr(model, "_orig_mod", model)
        untrained = copy.deepcopy(getattr(module, "module", module))
        passes, forward = [], model.forward

        def recorded(images, texts):
            passes.append((images, texts, torch.get_rng_state()))
            return forward(images, texts)

        model.forward = recorded
        train_one_epoch(
            model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, args, **options
        )
        first_step = passes[:1]
        # OpenCLIP passes micro-batches twice; it logs the last one's
        # second, the others' first
        if args.accum_freq > 1:
            first_step = [*passes[: args.accum_freq - 1], passes[2 * args.accum_freq - 1]]
        second = (
            passes[args.accum_freq : 2 * args.accum_freq] if args.accum_freq > 1 else first_step
        )
        losses = _openclip_losses(untrained, first_step, dist_model, create_loss(args), args)
        losses["class_loss"] = _class_loss(untrained, second, args)
        print(json.dumps({"by hand": losses}))

    open_clip_train.main.train_one_epoch = train
    return superclip_train(*argv)


@torch.no_grad()
def _openclip_losses(model, passes, dist_model, loss, args):
    """What OpenCLIP's loss makes of what the OpenCLIP class of the model
    returns."""
    outputs = []
    openclip_class = next(
        kind for kind in type(model).__mro__ if kind.__module__.startswith("open_clip.")
    )
    with get_autocast(args.precision, device_type="cpu")():
        for images, texts, random_state in passes:
            torch.set_rng_state(random_state)
            outputs.append(openclip_class.forward(model.train(), images, texts))
            if args.distill:
                outputs[-1] |= {
                    f"dist_{name}": value for name, value in dist_model(images, texts).items()
                }
        whole = {
            name: torch.cat([one[name] for one in outputs])
            for name in outputs[0]
            if outputs[0][name].ndim
        }
        return {
            name: value.item()
            for name, value in loss(**outputs[0] | whole, output_dict=True).items()
        }


@torch.no_grad()
def _class_loss(model, passes, args):
    """The mean of plain_class_loss over the captions of this rank."""
    patch_means = []
    with get_autocast(args.precision, device_type="cpu")():
        for images, _, random_state in passes:
            torch.set_rng_state(random_state)
            patch_means.append(encode_image(model.visual, model.patch_tokens, images)[2])
    head = model.class_head.float()
    features = head.ln(torch.cat(patch_means).float())
    tokens = torch.cat([texts for _, texts, _ in passes])
    return (
        superclip.plain_class_loss(features, head.weight, head.bias, tokens, _idf(model, tokens))
        .mean()
        .item()
    )


def _idf(model, tokens):
    """log((captions + 1) / (captions that hold the word + 1)) over all
    ranks' tokens [B, L]; [V]."""
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


@cases("model, world_size, flags", table("training: trained"))
def test_losses_are_those_composed_by_hand(
    model, world_size, flags, models, shards, short_run, tmp_path
):
    batch_size = 64 // world_size // (4 if "--accum-freq" in flags else 2)
    flags = (
        f"{short_run} --model {models[model]} --batch-size {batch_size} --precision fp32 "
        f"--logs none --superclip {flags}"
    ).format(shards=shards, **models)
    runs = completed(train_and_compose_losses, flags, world_size=world_size, cwd=tmp_path)
    (line,) = [line for line in runs[0].output.splitlines() if line.startswith('{"by hand": ')]
    by_hand = json.loads(line)["by hand"]
    assert by_hand.keys() >= {"contrastive_loss", "class_loss"}
    for name, value in by_hand.items():
        first, second = runs[0].values(name.capitalize())
        # 5 digits
        is_fp32 = flags.count("--precision") == 1
        assert first == pytest.approx(value, rel=6e-5 if is_fp32 else 1e-2)
        assert math.isfinite(second)
    assert by_hand["class_loss"] > 0


def test_openclip_evaluates_during_training(small_model, csv_data, short_run, tmp_path):
    imagenet = write_imagenet(csv_data, tmp_path / "imagenet")
    flags = (
        f"--model {small_model} --logs none --superclip --val-data {csv_data} "
        f"--imagenet-val {imagenet}"
    )
    (run, _) = completed(train_on_five_classes, short_run, flags, world_size=2, cwd=tmp_path)
    assert run.values("Class_loss")
    assert "image_to_text_R@1: " in run.output and "imagenet-zeroshot-val-top1: " in run.output


@parametrize("name", [*MODELS, "hf-text"])
def test_the_class_loss_trains_the_vision_tower_from_its_first_layer_on_and_no_text_tower(
    name, models
):
    torch.manual_seed(0)
    model = superclip.create_model_and_transforms(models[name])[0].train()
    captions = open_clip.get_tokenizer(models[name])(["a cat", "a red dog"])
    losses = model(torch.randn(2, 3, *to_2tuple(model.visual.image_size)), captions)["class_losses"]
    losses.mean().backward()
    # a convolution, or the patches' projection
    first = next(p for p in model.visual.parameters() if p.ndim == 4)
    assert first.grad.count_nonzero() > first.numel() / 2
    vision_or_head = ("visual.", "class_head.")
    assert not [
        n
        for n, p in model.named_parameters()
        if p.grad is not None and not n.startswith(vision_or_head)
    ]
