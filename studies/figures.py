"""The figures of docs/evidence.md and of the studies vit_samples, held_out_words,
captions_and_frequencies and classes_and_samples: `python studies/figures.py`."""

import csv
import statistics
import textwrap

from openclip_superclip.lab.reports.paired_differences import PairedDifference
from openclip_superclip.lab.studies.figures import draw_differences, set_difference_axis
from scipy.stats import t
from verdicts import (
    CLAIMS,
    DOCS,
    FACTORS,
    HELD_OUT,
    HELD_OUT_HEADS,
    HERE,
    LOWER_IS_BETTER,
    Comparison,
    read_comparisons,
    tested,
)

from openclip_superclip.rendering import png, pyplot

plt = pyplot()

COLORS = {"shown": "#1a7f37", "opposite": "#c62828", "not after correction": "#d08700"}
GREY = "#8c8c8c"
ARMS = {  # of vit_samples: the name in vit, and the colour
    "CLIP": ("CLIP", "#8c8c8c"),
    "SuperCLIP": ("SuperCLIP at CLIP's rate", "#d1495b"),
    "pooled": ("pooled", "#4f6d7a"),
}


def draw_evidence(comparisons: list[Comparison]) -> bytes:
    """Draws the difference of each claim in points, with its 95 % interval; without −52 for dual
    captions."""
    rows = []
    for claim in CLAIMS:
        comparison = tested(claim, comparisons)
        if comparison and _is_in_points(comparison) and comparison.mean > -40:
            rows.append((claim, comparison))
    figure, axes = plt.subplots(figsize=(10.4, 0.24 * len(rows) + 1))
    for row, (claim, comparison) in enumerate(rows):
        color = COLORS.get(comparison.verdict(claim.sign), GREY)
        axes.plot(comparison.interval, [row, row], color=color, linewidth=2)
        axes.plot(comparison.mean, row, "o", color=color, markersize=5)
    axes.axvline(0, color="black", linewidth=0.8)
    names = [f"{claim.text} (n = {comparison.n})" for claim, comparison in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("difference in points, with its 95 % interval")
    drawn = {comparison.verdict(claim.sign) for claim, comparison in rows}
    verdicts = {verdict: color for verdict, color in COLORS.items() if verdict in drawn}
    verdicts["not shown, or equal"] = GREY
    axes.legend(
        [plt.Line2D([], [], color=color, marker="o") for color in verdicts.values()],
        verdicts,
        fontsize=8,
    )
    axes.grid(axis="x")
    return png(figure)


def _is_in_points(comparison: Comparison) -> bool:
    """Whether its difference is in points of a measure and can answer."""
    is_other_unit = comparison.measure in LOWER_IS_BETTER or "doubling" in comparison.name
    return not (comparison.flaw or is_other_unit)


def draw_samples() -> bytes:
    """Draws zero-shot accuracy over samples, mean and 95 % interval of the seeds, for the small
    ViT."""
    figure, axes = plt.subplots(figsize=(6, 4))
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
    axes.grid()
    return png(figure)


def draw_held_out_words(comparisons: list[Comparison]) -> bytes:
    """Draws the gains over CLIP of held-out and of kept objects, on seen and unseen drawings."""
    gains = {
        (comparison.arm, comparison.measure): PairedDifference(comparison.differences)
        for comparison in comparisons
        if (comparison.study, comparison.baseline) == (HELD_OUT, "CLIP")
    }
    arms = {
        "SuperCLIP": "#e9a3ab",
        HELD_OUT_HEADS["SuperCLIP"]: "#d1495b",
        "pooled": "#a3b4bd",
        HELD_OUT_HEADS["pooled"]: "#4f6d7a",
    }
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axes, drawings in zip(panels, ("seen", "unseen"), strict=True):
        for place, objects in enumerate(("held_out", "kept")):
            for number, (arm, colour) in enumerate(arms.items()):
                gain = gains[arm, f"{drawings}_{objects}"]
                x = place + 0.18 * (number - 1.5)
                label = "" if place else arm
                draw_differences(axes, [x], [gain], colour, 0.05, linestyle="", label=label)
        set_difference_axis(axes, ["held-out objects", "kept objects"], f"{drawings} drawings")
    panels[0].set_ylabel("zero-shot accuracy − CLIP, points\n(bar: 95 % interval, dot: a seed)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return png(figure)


def draw_two_factors(comparisons: list[Comparison], study: str) -> bytes:
    """Draws the gains in the four versions of a study's training scenes and the effects on the
    gain, on unseen and on seen drawings."""
    figure, panels = plt.subplots(2, 1, figsize=(9, 6.5), sharex=True)
    titles = {"zero_shot": "unseen drawings (primary)", "seen_zero_shot": "seen drawings"}
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        drawn = [
            comparison
            for comparison in comparisons
            if (comparison.study, comparison.measure) == (study, measure)
        ]
        for x, comparison in enumerate(drawn):
            colour = "#d1495b" if comparison.means else "#4f6d7a"  # a gain, or an effect on it
            draw_differences(axes, [x], [PairedDifference(comparison.differences)], colour, 0.06)
        names = [textwrap.fill(comparison.where, 20) for comparison in drawn]
        set_difference_axis(axes, names, title)
        axes.set_ylabel("points of zero-shot accuracy\n(bar: 95 % interval, dot: a seed)")
    return png(figure)


if __name__ == "__main__":
    found = read_comparisons()
    (DOCS / "evidence.png").write_bytes(draw_evidence(found))
    (HERE / "vit_samples" / "samples.png").write_bytes(draw_samples())
    if any(comparison.study == HELD_OUT for comparison in found):
        (HERE / HELD_OUT / "study.png").write_bytes(draw_held_out_words(found))
    for study in FACTORS:
        if any(comparison.study == study for comparison in found):
            (HERE / study / "study.png").write_bytes(draw_two_factors(found, study))
