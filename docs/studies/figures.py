"""The figures of docs/evidence.md and of docs/studies/vit_samples/README.md: `python
docs/studies/figures.py`."""

import csv
import statistics

from scipy.stats import t
from verdicts import CLAIMS, DOCS, HERE, Comparison, comparisons, tested

from openclip_superclip.rendering import png, pyplot

plt = pyplot()

COLORS = {"shown": "#1a7f37", "opposite": "#c62828", "not after correction": "#d08700"}
GREY = "#8c8c8c"
ARMS = {  # of vit_samples: the name in vit, and the colour
    "CLIP": ("CLIP", "#8c8c8c"),
    "SuperCLIP": ("SuperCLIP at CLIP's rate", "#d1495b"),
    "pooled": ("pooled", "#4f6d7a"),
}


def draw_evidence(found: list[Comparison]) -> bytes:
    """Draws the difference of each claim in points, with its 95 % interval; without −52 for dual
    captions."""
    rows = [(claim, tested(claim, found)) for claim in CLAIMS if claim.measure != "depth_RMSE"]
    rows = [
        (claim, one)
        for claim, one in rows
        if one and not one.flaw and "doubling" not in one.name and one.mean > -40
    ]
    figure, axes = plt.subplots(figsize=(10.4, 0.24 * len(rows) + 1), layout="constrained")
    for place, (claim, one) in enumerate(rows):
        color = COLORS.get(one.verdict(claim.sign), GREY)
        axes.plot(one.interval, [place, place], color=color, linewidth=2)
        axes.plot(one.mean, place, "o", color=color, markersize=5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(
        range(len(rows)), [f"{claim.text} (n = {one.n})" for claim, one in rows], fontsize=8
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("difference in points, with its 95 % interval")
    drawn = {one.verdict(claim.sign) for claim, one in rows}
    verdicts = {one: color for one, color in COLORS.items() if one in drawn} | {
        "not shown, or equal": GREY
    }
    axes.legend(
        [plt.Line2D([], [], color=color, marker="o") for color in verdicts.values()],
        verdicts,
        fontsize=8,
    )
    axes.grid(axis="x", alpha=0.3)
    return png(figure)


def draw_samples() -> bytes:
    """Draws zero-shot accuracy over samples, mean and 95 % interval of the seeds, for the small
    ViT."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    studies = {40_960: "vit", 163_840: "vit_samples"}
    for arm, (in_vit, color) in ARMS.items():
        means, halves = [], []
        for study in studies.values():
            with open(HERE / study / "study.csv") as file:
                name = in_vit if study == "vit" else arm
                scores = [
                    float(row["zero_shot"]) for row in csv.DictReader(file) if row["arm"] == name
                ]
            means.append(statistics.mean(scores))
            halves.append(
                t.ppf(0.975, len(scores) - 1) * statistics.stdev(scores) / len(scores) ** 0.5
            )
        axes.errorbar(list(studies), means, halves, color=color, marker="o", capsize=3, label=arm)
    axes.set_xscale("log")
    axes.set_xticks(list(studies), [f"{samples:,}" for samples in studies])
    axes.minorticks_off()
    axes.set_xlabel("training samples")
    axes.set_ylabel("zero-shot accuracy, %")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return png(figure)


if __name__ == "__main__":
    (DOCS / "evidence.png").write_bytes(draw_evidence(comparisons()))
    (HERE / "vit_samples" / "samples.png").write_bytes(draw_samples())
