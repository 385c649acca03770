"""The figures of the demo: demo.png, its scores, and demo-images.png, predictions of its models."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..checkpoints.trainer_files import checkpoints
from ..demo.data import model_of
from ..demo.measures import predicted_names, representative
from ..demo.scenes import Scene, scenes
from ..files import write_bytes
from ..rendering import png, pyplot
from .figures import draw_differences, set_difference_axis
from .measure_run import open_trained
from .study_results import StudyResults

plt = pyplot()
COLOURS = {"CLIP": "#8c8c8c", "SuperCLIP": "#d1495b"}
MOST_LETTERS = 14  # of a name below an image
WIDTH = 5.6  # inches: readable on a phone
NUM_SCENES = 1000  # that measure zero-shot
NUM_IMAGES = 16
COLUMNS = 4  # of images


def draw_scores(path: Path, results: StudyResults) -> None:
    """Draws the demo's scores and their differences into a file."""
    measures = results.measures
    names = [measure.replace("_to_", "→").replace("_", "\n") for measure in measures]
    figure, (bars, panel) = plt.subplots(2, 1, figsize=(WIDTH, 6.4))
    width = 0.8 / len(COLOURS)
    for number, (arm, colour) in enumerate(COLOURS.items()):
        for index, measure in enumerate(measures):
            spread = results.spread(arm, None, measure)
            x = index + number * width
            bars.bar(x, spread.mean, width * 0.92, color=colour, label="" if index else arm)
            seeds = [x] * len(spread)
            bars.plot(seeds, spread, ".", color="black", markersize=4)
    bars.set_xticks([index + width / 2 for index in range(len(measures))], names, fontsize=10)
    bars.set_ylim(0, 100)
    bars.set_title("held-out scenes, % (a dot for each seed)")
    bars.grid(axis="y")
    bars.legend(frameon=False)
    gains = list(results.differences("SuperCLIP", "CLIP", None).values())
    draw_differences(panel, range(len(measures)), gains, COLOURS["SuperCLIP"], linestyle="")
    set_difference_axis(panel, names, "SuperCLIP − CLIP, points (bar: 95 % interval)")
    panel.tick_params(axis="x", labelsize=10)
    write_bytes(path, png(figure))


def draw_predictions(path: Path, results: StudyResults, out: Path) -> None:
    """Draws scenes with one object, and the names that the models of the first seed predict, into
    a file. `out` is the demo's folder."""
    seed = results.study.first_seed
    shown = list(scenes(NUM_SCENES, 0, "test", num_objects=(1,)))
    # of each scene, by arm
    predicted = {}
    is_right = {}
    for record in results.records:
        if record["seed"] != seed:
            continue
        arm = record["arm"]
        *_, weights = checkpoints(out / "runs" / record["run"] / "checkpoints").values()
        names = predicted_names(open_trained(weights, model_of(out)), shown)
        predicted[arm] = names
        is_right[arm] = [name in scene.objects for name, scene in zip(names, shown, strict=True)]
    chosen = representative(list(zip(*is_right.values(), strict=True)), NUM_IMAGES)
    clip, superclip = (sum(is_right[arm][index] for index in chosen) for arm in COLOURS)
    clip_accuracy, superclip_accuracy = (100 * sum(is_right[arm]) / NUM_SCENES for arm in COLOURS)
    text = (
        f"{NUM_IMAGES} of {NUM_SCENES:,} held-out scenes with one object, seed {seed}: CLIP is "
        f"right in {clip}, SuperCLIP in {superclip}; in all scenes, {clip_accuracy:.1f} % and "
        f"{superclip_accuracy:.1f} %. Each combination of right and wrong answers has its fraction "
        "of the images: its first scenes in the order of the test set."
    )
    figure = _draw_scenes(shown, chosen, predicted)
    write_bytes(path, png(figure, metadata={"Description": text}))


def _draw_scenes(
    shown: Sequence[Scene], chosen: Sequence[int], predicted: Mapping[str, Sequence[str]]
) -> Figure:
    """Returns a figure of the chosen scenes, with the names that each arm predicts for them."""
    rows = NUM_IMAGES // COLUMNS
    size = (WIDTH, 0.4 + 1.9 * rows)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=size, layout="none")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.07, top=0.94, wspace=0.08, hspace=0.35)
    for axes, index in zip(grid.flat, chosen, strict=True):
        scene = shown[index]
        axes.set_axis_off()
        axes.imshow(scene.image, interpolation="nearest")
        for line, (arm, names) in enumerate(predicted.items()):
            name = names[index]
            mark = "✓" if name in scene.objects else "✗"
            axes.text(
                0,
                -0.05 - 0.17 * line,
                f"{mark} {textwrap.shorten(name, MOST_LETTERS, placeholder='…')}",
                fontsize=10,
                transform=axes.transAxes,
                verticalalignment="top",
                color=COLOURS[arm],
            )
    handles = [
        plt.Line2D([], [], color=colour, linewidth=5, label=arm) for arm, colour in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="upper center", ncols=2, frameon=False)
    return figure
