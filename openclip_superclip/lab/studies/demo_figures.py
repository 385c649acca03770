"""The figures of the demo: demo.png, its scores, and demo-images.png, predictions of its models."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ...checkpoints.trainer_files import checkpoints
from ...errors import to_stderr
from ...files import write_bytes
from ...rendering import png, pyplot
from ..demo.data import SCENES
from ..demo.scene_measures import predicted_names, representative
from ..demo.scenes import Scene, scenes
from .figures import draw_difference, set_difference_axis
from .measure_run import open_trained
from .study_results import StudyResults

plt = pyplot()
COLOURS = {"CLIP": "#8c8c8c", "SuperCLIP": "#d1495b"}
MOST_LETTERS = 14  # of a name below an image
SIZE = (5.6, 6.4)  # inches: readable on a phone
NUM_SCENES = 1000  # that measure zero-shot
NUM_IMAGES = 16


def draw_scores(path: Path, results: StudyResults) -> None:
    """Draws the demo's scores and their differences into a file."""
    measures = results.measures
    names = [measure.replace("_to_", "→").replace("_", "\n") for measure in measures]
    figure, (bars, differences) = plt.subplots(2, 1, figsize=SIZE)
    width = 0.8 / len(results.study.arms)
    for number, arm in enumerate(results.study.arms):
        spreads = [results.spread(arm, None, measure) for measure in measures]
        places = [index + number * width for index in range(len(measures))]
        means = [spread.mean for spread in spreads]
        bars.bar(places, means, width * 0.92, color=COLOURS[arm], label=arm)
        for x, spread in zip(places, spreads, strict=True):
            seeds = [x] * len(spread.values)
            bars.plot(seeds, spread.values, ".", color="black", markersize=4)
    bars.set_xticks([index + width / 2 for index in range(len(measures))], names, fontsize=10)
    bars.set_ylim(0, 100)
    bars.set_title("held-out scenes, % (a dot for each seed)", fontsize=11)
    bars.grid(axis="y")
    bars.legend(frameon=False, fontsize=10)
    for x, measure in enumerate(measures):
        difference = results.difference("SuperCLIP", "CLIP", None, measure)
        draw_difference(differences, x, difference, COLOURS["SuperCLIP"])
        differences.plot(x, difference.mean, "o", color=COLOURS["SuperCLIP"])
    set_difference_axis(differences, names, len(measures), "")
    differences.set_title("SuperCLIP − CLIP, points (bar: 95 % interval)", fontsize=11)
    differences.tick_params(axis="x", labelsize=10)
    write_bytes(path, png(figure, metadata={"Description": scores_text(results)}))


def scores_text(results: StudyResults) -> str:
    """Returns the description of `draw_scores`'s figure."""
    clip, superclip = (results.spread(arm, None, "zero_shot").mean for arm in ("CLIP", "SuperCLIP"))
    difference = results.difference("SuperCLIP", "CLIP", None, "zero_shot")
    return (
        "Scores of CLIP and SuperCLIP on held-out scenes, and their differences: zero-shot "
        f"{clip:.1f} % and {superclip:.1f} %, {difference} points, {results.study.seeds} "
        "paired seed(s)."
    )


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
        to_stderr(f"{path.name}: {arm} classifies {NUM_SCENES:,} scenes")
        *_, weights = checkpoints(out / "runs" / record["run"] / "checkpoints").values()
        names = predicted_names(open_trained(weights, f"local-dir:{out / SCENES.model}"), shown)
        predicted[arm] = names
        is_right[arm] = [name in scene.objects for name, scene in zip(names, shown, strict=True)]
    chosen = representative(list(zip(*is_right.values(), strict=True)), NUM_IMAGES)
    right = {
        arm: (sum(outcomes[index] for index in chosen), 100 * sum(outcomes) / NUM_SCENES)
        for arm, outcomes in is_right.items()
    }
    figure = _draw_scenes(
        [shown[index] for index in chosen],
        {arm: [names[index] for index in chosen] for arm, names in predicted.items()},
    )
    write_bytes(path, png(figure, metadata={"Description": predictions_text(seed, right)}))


def predictions_text(seed: int, right: dict[str, tuple[int, float]]) -> str:
    """Returns the description of `draw_predictions`'s figure; `right` has each method's right
    answers and accuracy."""
    (clip, clip_accuracy), (superclip, superclip_accuracy) = right["CLIP"], right["SuperCLIP"]
    return (
        f"{NUM_IMAGES} of {NUM_SCENES:,} held-out scenes with one object, seed {seed}: CLIP is "
        f"right in {clip}, SuperCLIP in {superclip}; in all scenes, {clip_accuracy:.1f} % and "
        f"{superclip_accuracy:.1f} %. Each combination of right and wrong answers has its fraction "
        "of the images: its first scenes in the order of the test set."
    )


def _draw_scenes(shown: Sequence[Scene], predicted: dict[str, list[str]]) -> Figure:
    """Returns a figure of scenes, four in a row, with the names that each method predicts."""
    rows = math.ceil(len(shown) / 4)
    size = (SIZE[0], 0.4 + 1.9 * rows)
    figure, grid = plt.subplots(rows, 4, figsize=size, squeeze=False, layout="none")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.07, top=0.94, wspace=0.08, hspace=0.35)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, scene in zip(grid.flat, shown, strict=False):
        axes.imshow(scene.image, interpolation="nearest")
    for line, (method, names) in enumerate(predicted.items()):
        for axes, scene, name in zip(grid.flat, shown, names, strict=False):
            mark = "✓" if name in scene.objects else "✗"
            short = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
            axes.text(
                0,
                -0.05 - 0.17 * line,
                f"{mark} {short}",
                fontsize=10,
                transform=axes.transAxes,
                verticalalignment="top",
                color=COLOURS[method],
            )
    handles = [
        plt.Line2D([], [], color=colour, linewidth=5, label=method)
        for method, colour in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="upper center", ncols=2, frameon=False, fontsize=11)
    return figure
