"""The benchmark's tables: medians, ratios, peak memory and FLOPs."""

import statistics

from ..method.flops import head_share
from ..table import markdown_table
from .head_cost import PAPER_HEAD_SHARE


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
