"""The cost of the class head on this machine: the loss, alternative implementations, and the
training step."""

import multiprocessing
import re
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.utils import to_2tuple
from torch import Tensor
from torch.utils.benchmark import timer
from tqdm import tqdm

from ..checkpoints.architecture import expected_head, read_architecture
from ..checkpoints.model_configurations import register_model
from ..environment import check_device, peak_of_process, processor, versions
from ..errors import InputError, reason
from ..files import check_results, make_folder, write_json
from ..method.head import vocabulary_size
from ..method.loss import SuperCLIPLoss, class_loss, plain_class_loss, sparse_target
from ..openclip import autocast
from ..openclip.factory import create_model_and_transforms
from ..plans.flops import count_gmacs
from ..rendering import markdown_table

# of the towers' FLOPs without attention's products
PAPER_HEAD_SHARE = {"ViT-L-16": 0.00077, "ViT-B-16": 0.0019}
TIMED_WITH = ("python", "openclip-superclip", "open_clip_torch", "torch")  # recorded versions


def measure_head_cost(options: Namespace) -> dict:
    """Measures, writes benchmark.json and returns its content: seconds, bytes and GMACs.

    Raises InputError for an unknown model, a missing device, and sizes that exceed the memory.
    """
    if "multimodal_cfg" in read_architecture(options.model).model_cfg:
        raise InputError(
            f"--model: {options.model} is a CoCa model, which this benchmark cannot train"
        )
    options.device = check_device(options.device)
    check_results(options.out, ["benchmark.json"], '"head_batch"')
    make_folder(options.out)
    try:
        report = _measure(options)
    except RuntimeError as error:
        # the latter if the kernel has killed it
        is_memory = isinstance(error, (torch.OutOfMemoryError, BrokenProcessPool))
        if not is_memory and "can't allocate memory" not in str(error):
            raise
        raise InputError(
            f"--device {options.device} has too little memory: give a smaller --head-batch, "
            "--vocab or --local-batch"
        ) from error
    write_json(options.out / "benchmark.json", report)
    return report


def _measure(options: Namespace) -> dict:
    device = options.device
    precision = options.precision
    # first, since it can fail
    steps = {"step_seconds": _step_seconds(options)} if options.step_repeats else {}
    sizes = (options.head_batch, options.width, options.vocab, device)
    inputs = make_inputs(*sizes)
    calls = {name: partial(compute, name, inputs, precision) for name in CONTENDERS}
    seconds = timed_in_turns(calls, options.repeats, "class loss and gradients")
    peaks = {
        name: peak_memory(prepared_head, name, *sizes, precision, device=device) for name in calls
    }
    return {
        "options": {**vars(options), "out": str(options.out)},
        "machine": {
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            **versions(*TIMED_WITH),
        },
        "head_seconds": seconds,
        "head_peak_bytes": peaks,
        "gmacs": {name: gmacs_of(name) for name in PAPER_HEAD_SHARE},
        **steps,
    }


def _step_seconds(options: Namespace) -> dict[str, list[float]]:
    """Returns the seconds of training steps; InputError if the model cannot be created."""
    try:
        steps = {
            name: make_step(
                options.model,
                options.local_batch,
                options.device,
                options.precision,
                with_head=with_head,
                grad_checkpointing=options.grad_checkpointing,
            )
            for name, with_head in (("OpenCLIP", False), ("with --superclip", True))
        }
    except OSError as error:  # its text tower cannot be downloaded
        raise InputError(
            f"--model: {options.model} cannot be created ({reason(error)[:200]})"
        ) from error
    return timed_in_turns(steps, options.step_repeats, "training step")


def gmacs_of(model_name: str) -> dict[str, dict[str, float]]:
    """Returns `count_gmacs` of a model with its class head, without and with attention's own
    products."""
    model = read_architecture(model_name).build()
    head = expected_head(model)
    return {
        "without_attention": count_gmacs(model, head, with_attention=False),
        "all": count_gmacs(model, head),
    }


def device_name(device: str) -> str:
    """Returns the name of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()


def make_inputs(batch: int, width: int, vocab_size: int, device: str) -> list[Tensor]:
    """Returns random features [B, W], weight [V, W], bias [V], tokens [B, L] and IDF [V] of the
    given sizes.

    Captions have 3 to 30 words, like web captions, and padding.
    """
    context_length = 77
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, vocab_size, (batch, context_length), generator=generator)
    lengths = torch.randint(3, 31, (batch, 1), generator=generator)
    tokens[torch.arange(context_length) >= lengths] = 0
    idf = torch.rand(vocab_size, generator=generator) + 1
    idf[0] = 0
    features = torch.randn(batch, width, generator=generator)
    weight = torch.randn(vocab_size, width, generator=generator) * width**-0.5
    leaves = [
        tensor.to(device).requires_grad_() for tensor in (features, weight, torch.zeros(vocab_size))
    ]
    return [*leaves, tokens.to(device), idf.to(device)]


@torch.no_grad()
def _products(features: Tensor, weight: Tensor, *_: Tensor) -> None:
    """Computes the matrix products of every implementation: logits, gradient of input, gradient
    of weight."""
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    features = features.to(dtype)
    weight = weight.to(dtype)
    logits = features @ weight.T  # [B, V]
    features.grad = logits @ weight
    weight.grad = logits.T @ features


def _sparse(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes loss and gradients from the captions' tokens by autograd: no dense target, but
    dense logits."""
    logits = F.linear(features, weight, bias).float()  # [B, V]
    labels, target, row_scale = sparse_target(tokens, idf, scale=1.0)
    of_labels = target * logits.gather(1, labels)
    losses = logits.logsumexp(dim=1) * row_scale - of_labels.sum(dim=1)  # [B]
    losses.mean().backward()


CONTENDERS = {  # functions of inputs: of the losses, or of the gradients if they return None
    "three products": _products,
    "dense targets": plain_class_loss,
    "sparse targets": _sparse,
    "class_loss": partial(class_loss, uniform=True),
}


def compute(name: str, inputs: list[Tensor], precision: str = "fp32") -> None:
    """Runs a contender with cleared gradients, in one of OpenCLIP's precisions."""
    for leaf in inputs[:3]:
        leaf.grad = None
    with autocast(precision, inputs[0].device.type)():
        losses = CONTENDERS[name](*inputs)
        if losses is not None:
            losses.mean().backward()


def prepared_head(
    name: str, batch: int, width: int, vocab_size: int, device: str, precision: str
) -> Callable:
    """Returns a function that runs a contender on inputs of its own.

    It has run once on small ones, so that the kernels are loaded: 80 MB on some processors.
    """
    compute(name, make_inputs(256, 64, 512, device), precision)
    inputs = make_inputs(batch, width, vocab_size, device)
    return partial(compute, name, inputs, precision)


def make_step(
    model_name: str,
    batch: int,
    device: str,
    precision: str,
    *,
    with_head: bool,
    grad_checkpointing: bool = False,
    compiled: bool = False,
) -> Callable[[], dict[str, Tensor]]:
    """Returns a function that makes one step on random images and captions: forward, loss,
    backward, AdamW.

    The function returns the losses. With `compiled`, the forward pass and the losses are one graph.
    """
    torch.manual_seed(0)
    model_name = register_model(model_name)
    create = create_model_and_transforms if with_head else open_clip.create_model_and_transforms
    model, _, _ = create(model_name, precision=precision, device=device, output_dict=True)
    if grad_checkpointing:
        model.set_grad_checkpointing()
    loss = SuperCLIPLoss(open_clip.ClipLoss()) if with_head else open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters())
    in_precision = autocast(precision, torch.device(device).type)
    images = torch.randn(batch, 3, *to_2tuple(model.visual.image_size), device=device)
    # of OpenCLIP's tokenizer
    length = read_architecture(model_name).model_cfg["text_cfg"].get("context_length", 77)
    texts = torch.randint(1, min(1000, vocabulary_size(model)), (batch, length), device=device)
    texts[:, 20:] = 0

    def forward() -> dict[str, Tensor]:
        return loss(**model(images, texts), output_dict=True)

    if compiled:
        forward = torch.compile(forward, fullgraph=True)

    def step() -> dict[str, Tensor]:
        optimizer.zero_grad()
        with in_precision():
            losses = forward()
        sum(losses.values()).backward()
        optimizer.step()
        return losses

    return step


def timed_in_turns(calls: dict[str, Callable], repeats: int, desc: str) -> dict[str, list[float]]:
    """Returns the seconds of `repeats` runs of each call, interleaved, after one warm-up run."""
    seconds = {name: [] for name in calls}
    for repeat in tqdm(range(repeats + 1), desc=desc, unit=" rounds", disable=None):
        for name, call in calls.items():
            start = timer()  # which waits for a GPU
            call()
            end = timer()
            if repeat:
                seconds[name].append(end - start)
    return seconds


def peak_memory(function: Callable, *args, device: str) -> int:
    """Returns the peak memory in bytes of calling the result of `function(*args)`, minus the memory
    before the call.

    On the CPU both run in a fresh process; on CUDA the allocator's peak is used.
    """
    if device.startswith("cuda"):
        call = function(*args)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_peak_here, torch.get_num_threads(), function, *args).result()


def _peak_here(num_threads: int, function: Callable, *args) -> int:
    torch.set_num_threads(num_threads)
    call = function(*args)
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _peak()
    call()
    return _peak() - before


def _peak() -> int:
    """Returns the peak memory of this process in bytes."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    return peak_of_process()


def head_cost_tables(report: dict) -> str:
    """Returns a benchmark's tables in Markdown, each with a caption."""
    tables = [_loss_table(report)]
    if "step_seconds" in report:
        tables.append(_step_table(report))
    tables.append(_gmacs_table(report))
    return "\n\n".join(tables)


def _loss_table(report: dict) -> str:
    options = report["options"]
    machine = report["machine"]
    peaks = report["head_peak_bytes"]
    medians = _medians(report["head_seconds"])
    rows = [
        [
            name,
            f"{1000 * median:,.0f}",
            f"{median / medians['three products']:.2f}",
            f"{peaks[name] / 2**20:,.0f}",
            f"{peaks[name] / peaks['dense targets']:.0%}",
        ]
        for name, median in medians.items()
    ]
    heads = ["", "ms", "× the three products", "peak MiB above the inputs", "of dense targets'"]
    return (
        f"Loss and gradients of {options['head_batch']:,} captions, width {options['width']:,}, "
        f"vocabulary {options['vocab']:,}, {options['precision']}, {machine['device']}, "
        f"{machine['threads']} thread(s), median of {options['repeats']}:\n\n"
        f"{markdown_table(heads, rows)}"
    )


def _medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def _step_table(report: dict) -> str:
    options = report["options"]
    medians = _medians(report["step_seconds"])
    rows = [
        [name, f"{1000 * median:,.0f}", f"{median / medians['OpenCLIP']:.3f}"]
        for name, median in medians.items()
    ]
    heads = ["", "ms", "× OpenCLIP's"]
    return (
        f"A training step of {options['model']} at local batch {options['local_batch']}, "
        f"{options['precision']}, median of {options['step_repeats']}:\n\n"
        f"{markdown_table(heads, rows)}"
    )


def _gmacs_table(report: dict) -> str:
    rows = []
    for name, counts in report["gmacs"].items():
        paper = f"+{100 * PAPER_HEAD_SHARE[name]:.2g} %"
        rows += [
            _gmacs_row(name, counts["without_attention"], paper),
            _gmacs_row(f"{name}, attention's products included", counts["all"], "–"),
        ]
    heads = ["", "vision", "text", "head", "head adds", "by the paper's count"]
    return f"Forward GMACs of one pair:\n\n{markdown_table(heads, rows)}"


def _gmacs_row(name: str, gmacs: dict[str, float], paper: str) -> list[str]:
    added = gmacs["head"] / (gmacs["vision"] + gmacs["text"])
    parts = [f"{gmacs[part]:.3f}" for part in ("vision", "text", "head")]
    return [name, *parts, f"+{added:.3%}", paper]
