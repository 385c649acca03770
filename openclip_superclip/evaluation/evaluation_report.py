"""What a call of `superclip evaluate` leaves beside its results, and what it says: tables, figures, what is missing."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from ..atomic_files import make_folder, write_text
from .averages import NOT_IN_CLIP_BENCHMARK
from .datasets import Selection, other_data
from .evaluation_loop import Outcome
from .models import Evaluated
from .result_files import read_records
from .results_table import differences, neighbour_files, table

RESULTS = Path("evaluation")  # below a run's folder
SWEEP = RESULTS / "wise_ft"  # a sweep is no result of the run


def result_folders(models: list[Evaluated], out: Path | None, sweep: bool) -> list[Path]:
    """Makes and returns the folder of each model's results: `out`, or one below its run.

    Args:
        sweep: whether the models lie between released weights and tuned ones.
    """
    within = SWEEP if sweep else RESULTS
    folders = [out or (model.run / within if model.run else within) for model in models]
    for folder in folders:
        make_folder(folder, "--out")
    return folders


def write_tables(folders: list[Path]) -> None:
    """Writes summary.md, the table of all results that a folder holds, into each folder."""
    for folder in dict.fromkeys(folders):
        if models := read_records(folder):
            write_text(folder / "summary.md", f"{table(models)}\n")


def told(outcome: Outcome, selection: Selection, data: Path, folders: list[Path]) -> str:
    """Returns the tables of a call's results and what is missing from them, for people."""
    parts = []
    if outcome.models:
        parts.append(printed := table(outcome.models))
        if ahead := differences(outcome.models):
            parts.append(ahead)
        if "\n| datacomp38" in printed:
            parts.append(
                f"DataComp's 38 hold {', '.join(NOT_IN_CLIP_BENCHMARK)} as well, of which CLIP_benchmark has none."
            )
    where = ", ".join(map(str, dict.fromkeys(folders)))
    lines = [f"{outcome.num_results} results, {outcome.num_read} of them from before: {where}"]
    if selection.absent:
        lines.append(f"Not evaluated: {', '.join(selection.absent)}")
    if others := other_data(data, selection):
        lines.append(f"In {data}, but in no suite's list: {', '.join(others)}; --datasets evaluates them")
    return "\n\n".join([*parts, "\n".join(lines)])


def draw_figures(outcome: Outcome, folder: Path, alphas: list[float]) -> Iterator[str]:
    """Draws what can be drawn of a call's results into a folder, and yields a line a figure.

    The neighbours of patches, where models were measured on segmentation and matplotlib is there; the scores over α,
    where every model of a sweep has results.
    """
    if (found := neighbour_files(outcome.models)) and importlib.util.find_spec("matplotlib"):
        from .neighbour_figure import draw_neighbours

        for dataset, files in found.items():
            draw_neighbours(path := folder / f"neighbours_{dataset.replace('/', '-')}.png", files)
            yield f"The neighbours of patches: {path}"
    if alphas and len(outcome.models) == len(alphas):
        from .wise_ft_figure import draw_sweep

        if draw_sweep(path := folder / "wise_ft.png", alphas, outcome.models):
            yield f"Scores over α: {path}"
