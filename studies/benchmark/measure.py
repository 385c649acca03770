"""What the class head costs on this machine: `python studies/benchmark/measure.py`.

Times the class loss beside the three matrix products that every implementation needs and the
definition with dense targets, and a training step with and without the head, alternating in one
process, and prints medians and ratios.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial

import open_clip
import torch
from open_clip_train.precision import get_autocast
from torch import Tensor
from torch.utils.benchmark import timer

from openclip_superclip import (
    SuperCLIPLoss,
    class_loss,
    create_model_and_transforms,
    plain_class_loss,
)

CONTEXT_LENGTH = 77


def make_tokens(batch: int, vocab_size: int) -> Tensor:
    """Returns captions of 3 to 30 random tokens, padded, [B, L]."""
    tokens = torch.randint(1, vocab_size, (batch, CONTEXT_LENGTH))
    lengths = torch.randint(3, 31, (batch, 1))
    tokens[torch.arange(CONTEXT_LENGTH) >= lengths] = 0
    return tokens


@torch.no_grad()
def three_products(features: Tensor, weight: Tensor, *_: Tensor) -> None:
    """Computes logits, the gradient of the input and that of the weight."""
    logits = features @ weight.T  # [B, V]
    features.grad = logits @ weight
    weight.grad = logits.T @ features


def loss_and_gradients(loss: Callable, inputs: list[Tensor]) -> None:
    for leaf in inputs[:3]:
        leaf.grad = None
    losses = loss(*inputs)
    if losses is not None:
        losses.mean().backward()


def losses_to_time(options: argparse.Namespace) -> dict[str, Callable]:
    """Returns a call of each way to compute the class loss, all on the same inputs."""
    features = torch.randn(options.head_batch, options.width)
    weight = torch.randn(options.vocab, options.width) * options.width**-0.5
    idf = torch.rand(options.vocab) + 1
    idf[0] = 0
    leaves = [features, weight, torch.zeros(options.vocab)]
    inputs = [leaf.to(options.device).requires_grad_() for leaf in leaves]
    inputs.append(make_tokens(options.head_batch, options.vocab).to(options.device))
    inputs.append(idf.to(options.device))
    functions = {
        "three products": three_products,
        "class_loss": class_loss,
        "dense targets": plain_class_loss,
    }
    return {name: partial(loss_and_gradients, loss, inputs) for name, loss in functions.items()}


def make_step(options: argparse.Namespace, *, with_head: bool) -> Callable[[], None]:
    """Returns a function that trains one step on random images and captions."""
    create = create_model_and_transforms if with_head else open_clip.create_model_and_transforms
    model = create(options.model, output_dict=True)[0].to(options.device).train()
    loss = SuperCLIPLoss(open_clip.ClipLoss()) if with_head else open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters())
    in_precision = get_autocast(options.precision, device_type=torch.device(options.device).type)
    images = torch.randn(options.batch, 3, *open_clip.utils.to_2tuple(model.visual.image_size))
    images = images.to(options.device)
    texts = make_tokens(options.batch, 1000).to(options.device)

    def step() -> None:
        optimizer.zero_grad()
        with in_precision():
            losses = loss(**model(images, texts), output_dict=True)
        sum(losses.values()).backward()
        optimizer.step()

    return step


def print_ratios(title: str, calls: dict[str, Callable], repeats: int) -> None:
    """Times the calls in turns, after one round of warm-up; ratios are to the first."""
    seconds = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = timer()  # waits for a GPU
            call()
            end = timer()
            if repeat:
                seconds[name].append(end - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    print(f"{title}, median of {repeats}")
    for name, median in medians.items():
        print(f"  {name:<16} {1000 * median:>10,.1f} ms  × {median / first:.3f}")


def main(argv: list[str]) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--head-batch", type=int, default=1024, help="captions of the class loss")
    parser.add_argument("--width", type=int, default=768, help="of the head's input")
    parser.add_argument("--vocab", type=int, default=49408, help="size of the vocabulary")
    parser.add_argument("--model", default="ViT-B-16", help="of the training step")
    parser.add_argument("--batch", type=int, default=64, help="of the training step")
    parser.add_argument("--precision", default="fp32", help="of the training step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    print_ratios("class loss and gradients", losses_to_time(options), options.repeats)
    steps = {
        "OpenCLIP": make_step(options, with_head=False),
        "with the head": make_step(options, with_head=True),
    }
    print_ratios(f"training step of {options.model}", steps, options.repeats)


if __name__ == "__main__":
    main(sys.argv[1:])
