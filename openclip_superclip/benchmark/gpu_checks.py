"""What a device must compute as the CPU does, for `superclip benchmark --card` and the tests of
a GPU."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from ..errors import reason
from ..method.idf import TokenStatistics
from ..method.loss import class_loss, plain_class_loss
from ..openclip import autocast
from ..openclip.factory import create_model_and_transforms
from .time_and_memory import make_inputs, make_step

SMALL_MODEL = "ViT-Ti-16-96"
NUM_STEPS = 6


def class_loss_is_the_plain_one(device: str, precision: str) -> None:
    """Compares the class loss and its gradients with the definition, computed in float64 on the
    CPU."""
    # batch, width and vocabulary
    sizes = (32, 64, 4099) if device.startswith("cpu") else (256, 512, 49408)
    on_cpu = make_inputs(*sizes, "cpu")
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in on_cpu[:3]]
    exact_losses = plain_class_loss(*exact_leaves, *on_cpu[3:])
    exact_losses.mean().backward()
    inputs = make_inputs(*sizes, device)
    with autocast(precision, torch.device(device).type)():
        losses = class_loss(*inputs, uniform=True)
    losses.mean().backward()
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    names = ("losses", "gradients of features", "gradients of weight", "gradients of bias")
    computed = [losses, *(leaf.grad for leaf in inputs[:3])]
    exact = [exact_losses, *(leaf.grad for leaf in exact_leaves)]
    for name, values, exact_values in zip(names, computed, exact, strict=True):
        error = (values.double().cpu() - exact_values).norm() / exact_values.norm()
        if not error <= tolerance:
            raise AssertionError(f"{name} differ by {error:.1e}, more than {tolerance:.0e}")


def counts_are_those_of_the_cpu(device: str) -> None:
    """Compares the counts of captions and the IDF weights of a batch."""
    vocab_size = 49408
    tokens = torch.randint(vocab_size, (64, 77), generator=torch.Generator().manual_seed(0))
    on_cpu = TokenStatistics(vocab_size)
    on_cpu.update(tokens)
    on_device = TokenStatistics(vocab_size).to(device)
    on_device.update(tokens.to(device))
    counts = on_device.state_dict()
    for name, expected in on_cpu.state_dict().items():
        if not torch.equal(counts[name].cpu(), expected):
            raise AssertionError(f"{name} differs")
    if not torch.allclose(on_device.idf().cpu(), on_cpu.idf(), rtol=1e-6):
        raise AssertionError("the IDF weights differ")


@torch.no_grad()
def features_are_nearly_those_of_the_cpu(device: str) -> None:
    """Compares the image and text features of a small model."""
    torch.manual_seed(0)
    model, _, _ = create_model_and_transforms(SMALL_MODEL)
    images = torch.randn(8, 3, 96, 96)
    texts = torch.randint(1, 4000, (8, model.context_length))
    expected = model.eval().encode_image(images), model.encode_text(texts)
    model.to(device)
    computed = model.encode_image(images.to(device)), model.encode_text(texts.to(device))
    for name, features, exact in zip(("image", "text"), computed, expected, strict=True):
        similarity = F.cosine_similarity(features.cpu(), exact).min()
        if not similarity >= 0.999:
            raise AssertionError(f"the cosine similarity of {name} features is {similarity:.4f}")


def training_learns(device: str, precision: str, *, compiled: bool = False) -> None:
    """Trains a small model on one batch: losses and weights stay finite, and the class loss
    falls."""
    batch = 4 if device.startswith("cpu") else 64
    step = make_step(SMALL_MODEL, batch, device, precision, with_head=True, compiled=compiled)
    losses = [step()["class_loss"].item() for _ in range(NUM_STEPS)]
    if not all(map(math.isfinite, losses)):
        raise AssertionError(f"the class loss is not finite: {losses}")
    if not losses[-1] < losses[0]:
        raise AssertionError(
            f"the class loss does not fall: {losses[0]:.4f}, and {losses[-1]:.4f} after {NUM_STEPS}"
        )


def checks(device: str) -> dict[str, Callable[[], None]]:
    """Returns the checks of a device by name; each raises AssertionError if it fails."""
    named = {
        f"class loss, {precision}": partial(class_loss_is_the_plain_one, device, precision)
        for precision in ("fp32", "amp_bf16", "amp")
    }
    named["counts and IDF"] = partial(counts_are_those_of_the_cpu, device)
    named["features"] = partial(features_are_nearly_those_of_the_cpu, device)
    if device.startswith("cpu"):  # where bfloat16 and inductor take minutes
        named["training, fp32"] = partial(training_learns, device, "fp32")
    else:
        named["training, amp_bf16"] = partial(training_learns, device, "amp_bf16")
        named["compiled training, amp_bf16"] = partial(
            training_learns, device, "amp_bf16", compiled=True
        )
        named["no synchronization"] = partial(steps_do_not_wait, device)
    return named


def steps_do_not_wait(device: str) -> None:
    """Trains two steps in which torch refuses every synchronization of the host with the GPU."""
    step = make_step(SMALL_MODEL, 16, device, "amp_bf16", with_head=True)
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        step()
    except RuntimeError as error:
        raise AssertionError(f"a step synchronizes: {reason(error)}") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_checks(device: str) -> dict[str, str]:
    """Returns "passed" or the reason of failure of each check."""
    results = {}
    for name, run in checks(device).items():
        try:
            run()
            results[name] = "passed"
        except (AssertionError, RuntimeError) as error:
            results[name] = reason(error)
    return results
