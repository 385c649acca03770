"""The demo: the study of that name, and the pictures of what its models say."""

from pathlib import Path

from ..demo.figure import draw
from ..demo.measures import describe
from ..demo.training_data import SCENES
from .study import run_study
from .study_call import study_call
from .study_results import StudyResults
from .trained_model import open_trained


def run_demo(out: Path, seeds: int | None, samples: int | None, jobs: int) -> str:
    """Trains and measures CLIP and SuperCLIP by paired seeds into `out`, draws demo.png, and returns the results' text.

    Everything that it reads is written below `out`, too.

    Args:
        seeds, samples: the study's where they are None.
        jobs: runs at a time.
    """
    set_ = {} if samples is None else {"samples": str(samples)}
    results = run_study(study_call("demo", out, seeds, "cpu", None, None, set_, scenes=out), jobs)
    draw(out / "demo.png", _scores(results), _pictures(results, out), _title(results))
    single = results.study.seeds == 1
    said = "\n\nOne seed shows that it runs, and is no result: superclip demo trains four." if single else ""
    return f"{results.tables()}{said}\n\n{out}/demo.png, study.csv, study.json and runs/ hold the rest."


def _scores(results: StudyResults) -> dict[str, dict[str, list[float]]]:
    return {
        arm: {measure: results.spread(arm, None, measure).values for measure in results.measures}
        for arm in results.study.arms
    }


def _pictures(results: StudyResults, out: Path) -> list[tuple]:
    """Returns a few scenes with their objects and what the models of the first seed say."""
    from ..running.checkpoint_files import checkpoints

    said = {}
    for record in results.records:
        if record["seed"] == results.study.first_seed:
            *_, weights = checkpoints(out / "runs" / record["run"] / "checkpoints").values()
            said[record["arm"]] = describe(*open_trained(weights, f"local-dir:{out / SCENES.model}"))
    return [
        (clip[0], clip[1], {"CLIP": clip[2], "SuperCLIP": ours[2]})
        for clip, ours in zip(said["CLIP"], said["SuperCLIP"], strict=True)
    ]


def _title(results: StudyResults) -> str:
    return f"superclip demo: scenes composed of real drawings, {results.study.seeds} paired seed(s)"
