"""superclip benchmark: what the class head costs here, as ratios of what it is compared with."""

import argparse
import functools
import json
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

from ..errors import InputError
from ..optional_dependencies import check_matplotlib

PAPER_HEAD_SHARE = {"ViT-L-16": 0.00077, "ViT-B-16": 0.0019}  # of the towers' FLOPs, attention's products left out
AUTOCAST = {"fp32": None, "amp": "float16", "amp_bf16": "bfloat16"}


def main(argv: list[str]) -> int:
    """Measures, prints the tables, writes benchmark.json and benchmark.png; returns the exit code."""
    try:
        options = _parse(argv)
        report = _measure(options)
        _write(options.out, report)
    except (InputError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{tables(report)}\n\n{options.out}/benchmark.json and benchmark.png hold the rest.")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip benchmark",
        description="Times the class loss and its gradients beside the three matrix products that nothing can do "
        "without and two other ways, then a whole training step with and without the head; in one process, in turns.",
    )
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--precision", choices=AUTOCAST, default="fp32", help="(default: %(default)s)")
    parser.add_argument("--head-batch", type=int, default=1024, help="captions for the head (default: %(default)s)")
    parser.add_argument("--width", type=int, default=768, help="the head's input (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=49408, help="the head's output (default: %(default)s)")
    parser.add_argument("--model", default="ViT-B-16", help="of the whole step (default: %(default)s)")
    parser.add_argument("--local-batch", type=int, default=64, help="of the whole step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of the head (default: %(default)s)")
    parser.add_argument(
        "--step-repeats", type=int, default=3, help="of the step; 0: leave it out (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder (default: %(default)s)")
    options = parser.parse_args(argv)
    for name in ("head_batch", "width", "vocab", "local_batch", "repeats"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}; expected 1 or more")
    if options.step_repeats < 0:
        raise InputError(f"--step-repeats is {options.step_repeats}; expected 0 or more")
    check_matplotlib("superclip benchmark")
    return options


def _measure(options: argparse.Namespace) -> dict:
    import open_clip
    import torch

    from ..benchmark.loss_variants import CONTENDERS
    from ..benchmark.time_and_memory import interleaved, peak_memory
    from ..benchmark.training_step import make_step
    from ..method.flops import count_gmacs

    if options.model not in open_clip.list_models():
        raise InputError(f"--model is '{options.model}'; expected one of OpenCLIP's built-in models")
    _check_device(options.device)
    head = options.head_batch, options.width, options.vocab, options.device, AUTOCAST[options.precision]
    step = options.local_batch, options.device, options.precision
    report = {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "machine": {
            "device": _device_name(options.device),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("openclip-superclip", "open_clip_torch", "torch")},
        },
        "head_seconds": interleaved(
            _prepare(CONTENDERS, *head), options.repeats, options.device, "class loss and gradients"
        ),
        "head_peak_bytes": {name: peak_memory(_prepare_one, name, *head, device=options.device) for name in CONTENDERS},
        "gmacs": {
            name: {"without_attention": count_gmacs(name, False), "all": count_gmacs(name)} for name in PAPER_HEAD_SHARE
        },
    }
    if options.step_repeats:
        steps = {
            "OpenCLIP": make_step(options.model, False, *step),
            "with --superclip": make_step(options.model, True, *step),
        }
        report["step_seconds"] = interleaved(steps, options.step_repeats, options.device, "training step")
    return report


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device is {name}, which torch cannot use here: {reason}") from error
    if torch.device(name).type == "cuda":
        torch.cuda.set_device(name)


def _prepare(names, batch: int, width: int, vocab: int, device: str, autocast: str | None) -> dict:
    """Returns the calls of contenders on the same inputs."""
    import torch

    from ..benchmark.loss_variants import compute, make_inputs

    inputs = make_inputs(batch, width, vocab, device)
    dtype = autocast and getattr(torch, autocast)
    return {name: functools.partial(compute, name, inputs, dtype) for name in names}


def _prepare_one(name: str, *sizes):
    """Returns the call of one contender; what a process of its own runs to measure memory."""
    return _prepare([name], *sizes)[name]


def _device_name(device: str) -> str:
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def tables(report: dict) -> str:
    """Returns the report's tables in Markdown: medians, ratios, peak memory, FLOPs."""
    from ..method.flops import head_share

    options = report["options"]
    baseline = statistics.median(report["head_seconds"]["three products"])
    dense_bytes = report["head_peak_bytes"]["dense targets"]
    lines = [
        f"Loss and gradients of {options['head_batch']:,} captions, width {options['width']:,}, vocabulary "
        f"{options['vocab']:,}, {options['precision']}, {report['machine']['device']}, "
        f"{report['machine']['threads']} thread(s), median of {options['repeats']}:",
        "",
        "| | ms | × the three products | peak MiB above the inputs | of dense targets' |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in report["head_seconds"].items():
        median, peak = statistics.median(seconds), report["head_peak_bytes"][name]
        ratio, memory = f"{median / baseline:.2f}", f"{peak / 2**20:,.0f} | {peak / dense_bytes:.0%}"
        lines.append(f"| {name} | {1000 * median:,.0f} | {ratio} | {memory} |")
    if "step_seconds" in report:
        plain = statistics.median(report["step_seconds"]["OpenCLIP"])
        lines += [
            "",
            f"A training step of {options['model']} at local batch {options['local_batch']}, {options['precision']}, "
            f"median of {options['step_repeats']}:",
            "",
            "| | ms | × OpenCLIP's |",
            "|---|---|---|",
        ]
        for name, seconds in report["step_seconds"].items():
            median = statistics.median(seconds)
            lines.append(f"| {name} | {1000 * median:,.0f} | {median / plain:.3f} |")
    lines += ["", "Forward GMACs of one pair:", "", "| | vision | text | head | head adds | by the paper's count |"]
    lines.append("|---|---|---|---|---|---|")
    for name, counts in report["gmacs"].items():
        for label, gmacs in (("", counts["without_attention"]), (", attention's products included", counts["all"])):
            paper = "–" if label else f"+{100 * PAPER_HEAD_SHARE[name]:.2g} %"
            lines.append(
                f"| {name}{label} | {gmacs['vision']:.3f} | {gmacs['text']:.3f} | {gmacs['head']:.3f} | "
                f"+{head_share(gmacs):.3%} | {paper} |"
            )
    return "\n".join(lines)


def _write(out: Path, report: dict) -> None:
    from ..atomic_files import whole_file
    from ..benchmark.head_cost_figure import draw

    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "benchmark.json") as file:
        file.write(json.dumps(report, indent=1).encode())
    draw(out / "benchmark.png", report)
