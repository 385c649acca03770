"""What the class head costs on this machine: the loss beside other ways to compute it, and the whole training step."""

import functools
import multiprocessing
import platform
import resource
import signal
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from open_clip.utils import to_2tuple
from torch import Tensor
from tqdm import tqdm

from ..checkpoints.model_files import know_model
from ..environment import check_device, versions
from ..errors import InputError
from ..files import make_folder, whole_file, write_json
from ..method.loss import SuperCLIPLoss, class_loss, plain_class_loss
from ..method.shapes import count_gmacs, head_share
from ..method.word_knowledge import WordKnowledge
from ..openclip import autocast
from ..openclip.factory import create_model_and_transforms
from ..openclip.train import check_command
from ..pages import markdown_table, pyplot
from ..runs.model_size import trace_step


def step_memory(model: str, batch: int, device: str, precision: str, grad_checkpointing: bool) -> dict[str, int]:
    """Returns bytes that a step with the head adds to weights, optimizer and inputs: `measured` and `followed`."""
    measured = peak_memory(_prepared_step, model, batch, device, precision, grad_checkpointing, device=device)
    kind = torch.device(device).type
    flags = ["--model", model, "--train-data", "x.tar", "--batch-size", str(batch), "--precision", precision]
    flags += ["--device", kind, *(["--grad-checkpointing"] if grad_checkpointing else [])]
    followed = trace_step(check_command(flags), 1, with_head=True)
    inputs = followed["inputs"]
    return {"measured": measured, "followed": followed["peak"] - followed["weights"] - followed["optimizer"] - inputs}


def _prepared_step(model: str, batch: int, device: str, precision: str, grad_checkpointing: bool):
    """Returns a step whose optimizer has made its moments, and whose libraries are loaded."""
    step = make_step(model, True, batch, device, precision, grad_checkpointing)
    step(2)
    return step


def interleaved(calls: dict[str, Callable[[], None]], repeats: int, device: str, desc: str) -> dict[str, list[float]]:
    """Returns seconds of each call, `repeats` of them, taken in turns after one call that is not counted."""
    seconds = {name: [] for name in calls}
    for repeat in tqdm(range(repeats + 1), desc=desc, unit=" rounds", disable=None):
        for name, call in calls.items():
            elapsed = _seconds(call, device)
            if repeat:
                seconds[name].append(elapsed)
    return seconds


def peak_memory(function: Callable[..., None], *args, device: str) -> int:
    """Returns the bytes that a call adds at its peak; `function(*args)` returns the call.

    What `function` makes, its inputs, is not counted. On the CPU both run in a fresh process whose peak is read, on
    CUDA the allocator's.
    """
    if device.startswith("cuda"):
        call = function(*args)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak_here, args=(sender, torch.get_num_threads(), function, *args))
    process.start()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        raise InputError("too little memory here: give a smaller --head-batch or --vocab")
    if process.exitcode != 0:
        raise RuntimeError(f"measuring memory failed with exit code {process.exitcode}")
    return receiver.recv()


def _peak_here(sender, num_threads: int, function: Callable, *args) -> None:
    torch.set_num_threads(num_threads)
    call = function(*args)
    before = _reset_peak()
    call()
    sender.send(_peak() - before)


def _reset_peak() -> int:
    """Forgets this process's peak, where the system can, and returns the bytes that count as there before."""
    if sys.platform == "linux":
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    return _peak()


def _peak() -> int:
    """Returns the most bytes that this process has held since the last reset."""
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _seconds(call: Callable[[], None], device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def make_step(
    model_name: str, with_head: bool, batch: int, device: str, precision: str, grad_checkpointing: bool = False
) -> Callable[..., None]:
    """Returns a call that does one step: forward, loss, backward, AdamW; on random images and captions.

    Called with a number, it does so on as many of the batch's pairs.
    """
    torch.manual_seed(0)
    create = create_model_and_transforms if with_head else open_clip.create_model_and_transforms
    model, _, _ = create(model_name, precision=precision, device=device, output_dict=True)
    if grad_checkpointing:
        model.set_grad_checkpointing()
    loss = open_clip.ClipLoss()
    if with_head:
        loss = SuperCLIPLoss(loss)
    optimizer = torch.optim.AdamW(model.parameters())
    in_precision = autocast(precision, torch.device(device).type)
    images = torch.randn(batch, 3, *to_2tuple(model.visual.image_size), device=device)
    texts = torch.randint(1, 1000, (batch, model.context_length), device=device)
    texts[:, 20:] = 0

    def step(num_pairs: int = batch) -> None:
        optimizer.zero_grad()
        with in_precision():
            losses = loss(**model(images[:num_pairs], texts[:num_pairs]), output_dict=True)
        sum(losses.values()).backward()
        optimizer.step()

    return step


class Inputs(NamedTuple):
    """A batch as the head sees it."""

    features: Tensor  # [B, W]
    weight: Tensor  # [V, W]
    bias: Tensor  # [V]
    tokens: Tensor  # [B, L]
    idf: Tensor  # [V]


def make_inputs(batch: int, width: int, vocab_size: int, device: str, context_length: int = 77) -> Inputs:
    """Returns random inputs of the given sizes; captions of 3 to 30 words, as web captions have, then padding."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, vocab_size, (batch, context_length), generator=generator)
    lengths = torch.randint(3, 31, (batch, 1), generator=generator)
    tokens[torch.arange(context_length) >= lengths] = 0
    idf = torch.rand(vocab_size, generator=generator) + 1
    idf[0] = 0
    features = torch.randn(batch, width, generator=generator)
    weight = torch.randn(vocab_size, width, generator=generator) * width**-0.5
    leaves = [tensor.to(device).requires_grad_() for tensor in (features, weight, torch.zeros(vocab_size))]
    return Inputs(*leaves, tokens.to(device), idf.to(device))


@torch.no_grad()
def products(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes the three matrix products that no way can do without: logits, gradient of input, gradient of weight."""
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    features, weight = features.to(dtype), weight.to(dtype)
    logits = features @ weight.T  # [B, V]
    features.grad = logits @ weight
    weight.grad = logits.T @ features


def dense(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes loss and gradients by the definition, on dense [B, V] targets, as the authors' formula is written."""
    plain_class_loss(features, weight, bias, tokens, idf).mean().backward()


def sparse(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes loss and gradients from the captions' tokens alone, by autograd: no dense target, but dense logits."""
    logits = F.linear(features, weight, bias).float()  # [B, V]
    labels, _ = tokens.sort(dim=1)
    weights = idf[labels]
    weights[:, 1:].masked_fill_(labels[:, 1:] == labels[:, :-1], 0.0)
    target = F.normalize(weights, p=1, dim=1)  # [B, L]
    losses = logits.logsumexp(dim=1) * target.sum(dim=1) - (target * logits.gather(1, labels)).sum(dim=1)
    losses.mean().backward()


def ours(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes loss and gradients in chunks, as training does."""
    class_loss(features, weight, bias, tokens, idf).mean().backward()


def recorded(features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor) -> None:
    """Computes the same, and records how well each word is known, as training does by default."""
    class_loss(features, weight, bias, tokens, idf).mean().backward()
    head = types.SimpleNamespace(logits=lambda features: F.linear(features.to(weight.dtype), weight, bias))
    WordKnowledge(idf > 0).observe(head, features, tokens)


CONTENDERS: dict[str, Callable[..., None]] = {
    "three products": products,
    "dense targets": dense,
    "sparse targets": sparse,
    "class_loss": ours,
    "with the words recorded": recorded,
}


def compute(name: str, inputs: Inputs, autocast: torch.dtype | None = None) -> None:
    """Runs a contender on fresh gradients, under autocast where a dtype is given."""
    for leaf in inputs[:3]:
        leaf.grad = None
    with torch.autocast(inputs.features.device.type, dtype=autocast, enabled=autocast is not None):
        CONTENDERS[name](*inputs)


PAPER_HEAD_SHARE = {"ViT-L-16": 0.00077, "ViT-B-16": 0.0019}  # of the towers' FLOPs, attention's products left out
AUTOCAST = {"fp32": None, "amp": torch.float16, "amp_bf16": torch.bfloat16}


class BenchmarkSettings(NamedTuple):
    """What is measured: the options of the same names."""

    device: str
    precision: str
    head_batch: int
    width: int
    vocab: int
    model: str
    local_batch: int
    repeats: int
    step_repeats: int  # 0: no training step
    out: Path
    grad_checkpointing: bool = False  # of the step
    step_memory: bool = False  # measure it, too


def measure_head_cost(settings: BenchmarkSettings) -> dict:
    """Measures, writes benchmark.json and benchmark.png, and returns what the first holds: seconds, bytes and GMACs.

    Raises InputError for a model that OpenCLIP lacks, a device that is not here, and sizes that do not fit.
    """
    know_model(settings.model)
    if settings.model not in open_clip.list_models():
        raise InputError(f"--model is '{settings.model}'; expected one of OpenCLIP's models or a JSON file")
    check_device(settings.device)
    make_folder(settings.out, "--out")
    try:
        report = _measure(settings)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"--device {settings.device} has too little memory: give a smaller --head-batch, --vocab or --local-batch"
        ) from error
    write_json(settings.out / "benchmark.json", report)
    draw(settings.out / "benchmark.png", report)
    return report


def _measure(settings: BenchmarkSettings) -> dict:
    device = settings.device
    head = settings.head_batch, settings.width, settings.vocab, device, AUTOCAST[settings.precision]
    report = {
        "options": {**settings._asdict(), "out": str(settings.out)},
        "machine": {
            "device": _device_name(device),
            "threads": torch.get_num_threads(),
            **versions("python", "openclip-superclip", "open_clip_torch", "torch"),
        },
        "head_seconds": interleaved(_prepare(CONTENDERS, *head), settings.repeats, device, "class loss and gradients"),
        "head_peak_bytes": {name: peak_memory(_prepare_one, name, *head, device=device) for name in CONTENDERS},
        "gmacs": {
            name: {"without_attention": count_gmacs(name, False), "all": count_gmacs(name)} for name in PAPER_HEAD_SHARE
        },
    }
    step = settings.local_batch, device, settings.precision, settings.grad_checkpointing
    if settings.step_repeats:
        steps = {
            "OpenCLIP": make_step(settings.model, False, *step),
            "with --superclip": make_step(settings.model, True, *step),
        }
        report["step_seconds"] = interleaved(steps, settings.step_repeats, device, "training step")
        del steps  # and their memory
    if settings.step_memory:
        report["step_memory"] = step_memory(settings.model, *step)
    return report


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _prepare(names, batch: int, width: int, vocab: int, device: str, autocast: torch.dtype | None) -> dict:
    """Returns the calls of contenders on the same inputs."""
    inputs = make_inputs(batch, width, vocab, device)
    return {name: functools.partial(compute, name, inputs, autocast) for name in names}


def _prepare_one(name: str, *sizes):
    """Returns the call of one contender; what a process of its own runs to measure memory."""
    return _prepare([name], *sizes)[name]


def head_cost_tables(report: dict) -> str:
    """Returns a benchmark's tables in Markdown, each under a line that says what was measured."""
    tables = [
        _loss_table(report),
        _step_table(report) if "step_seconds" in report else None,
        _memory_line(report) if "step_memory" in report else None,
        _gmacs_table(report),
    ]
    return "\n\n".join(filter(None, tables))


def _loss_table(report: dict) -> str:
    options, machine = report["options"], report["machine"]
    baseline = statistics.median(report["head_seconds"]["three products"])
    dense_bytes = report["head_peak_bytes"]["dense targets"]
    rows = []
    for name, seconds in report["head_seconds"].items():
        median, peak = statistics.median(seconds), report["head_peak_bytes"][name]
        rows.append([
            name, f"{1000 * median:,.0f}", f"{median / baseline:.2f}", f"{peak / 2**20:,.0f}",
            f"{peak / dense_bytes:.0%}",
        ])  # fmt: skip
    heads = ["", "ms", "× the three products", "peak MiB above the inputs", "of dense targets'"]
    return (
        f"Loss and gradients of {options['head_batch']:,} captions, width {options['width']:,}, vocabulary "
        f"{options['vocab']:,}, {options['precision']}, {machine['device']}, {machine['threads']} thread(s), median of "
        f"{options['repeats']}:\n\n{markdown_table(heads, rows)}"
    )


def _step_table(report: dict) -> str:
    options = report["options"]
    medians = {name: statistics.median(seconds) for name, seconds in report["step_seconds"].items()}
    rows = [[name, f"{1000 * median:,.0f}", f"{median / medians['OpenCLIP']:.3f}"] for name, median in medians.items()]
    heads = ["", "ms", "× OpenCLIP's"]
    return (
        f"A training step of {options['model']} at local batch {options['local_batch']}, {options['precision']}, "
        f"median of {options['step_repeats']}:\n\n{markdown_table(heads, rows)}"
    )


def _memory_line(report: dict) -> str:
    memory = report["step_memory"]
    return (
        f"The step with --superclip adds {memory['measured'] / 2**20:,.0f} MiB at its peak; superclip plan follows "
        f"{memory['followed'] / 2**20:,.0f}, {memory['followed'] / memory['measured']:.2f} of that."
    )


def _gmacs_table(report: dict) -> str:
    rows = []
    for name, counts in report["gmacs"].items():
        for label, gmacs in (("", counts["without_attention"]), (", attention's products included", counts["all"])):
            towers = [f"{gmacs[part]:.3f}" for part in ("vision", "text", "head")]
            paper = "–" if label else f"+{100 * PAPER_HEAD_SHARE[name]:.2g} %"
            rows.append([f"{name}{label}", *towers, f"+{head_share(gmacs):.3%}", paper])
    heads = ["", "vision", "text", "head", "head adds", "by the paper's count"]
    return f"Forward GMACs of one pair:\n\n{markdown_table(heads, rows)}"


def draw(path: Path, report: dict) -> None:
    """Draws the benchmark's figure: medians as bars, every repeat as a dot."""
    plt = pyplot()
    panels = [
        ("loss and gradients, s", report["head_seconds"]),
        ("peak above the inputs, MiB", {k: [v / 2**20] for k, v in report["head_peak_bytes"].items()}),
    ]
    if "step_seconds" in report:
        panels.append((f"training step of {report['options']['model']}, s", report["step_seconds"]))
    figure, row = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.2), layout="constrained")
    for axes, (title, values) in zip(row, panels, strict=True):
        axes.barh(list(values), [statistics.median(v) for v in values.values()], color="#d1495b")
        for place, repeats in enumerate(values.values()):
            axes.plot(repeats, [place] * len(repeats), ".", color="black", markersize=4)
        axes.invert_yaxis()
        axes.set_title(title)
        axes.grid(axis="x", alpha=0.3)
    options, machine = report["options"], report["machine"]
    figure.suptitle(
        f"batch {options['head_batch']:,}, width {options['width']}, vocabulary {options['vocab']:,}, "
        f"{options['precision']}, {machine['device']}",
        fontsize=9,
    )
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
