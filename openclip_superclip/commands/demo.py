"""superclip demo: CLIP and SuperCLIP, trained here by OpenCLIP on real drawings, and the difference by paired seeds."""

import argparse
import sys
from pathlib import Path

from ..demo.data import SCENES
from ..demo.measures import describe
from ..environment import require
from ..errors import InputError
from ..files import make_folder
from ..rules import at_least
from ..studies.figures import draw_demo
from ..studies.measures import open_trained
from ..studies.results import StudyResults
from ..studies.study import study_call
from ..studies.training import run_study


def run_demo(out: Path, seeds: int | None, samples: int | None, jobs: int) -> str:
    """Trains and measures CLIP and SuperCLIP by paired seeds into `out`, draws demo.png, and returns the results' text.

    Everything that it reads is written below `out`, too.

    Args:
        seeds, samples: the study's where they are None.
        jobs: runs at a time.
    """
    set_ = {} if samples is None else {"samples": str(samples)}
    results = run_study(study_call("demo", out, seeds, "cpu", None, None, set_, scenes=out), jobs)
    draw_demo(out / "demo.png", _scores(results), _pictures(results, out), _title(results))
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
    from ..checkpoints.run_outputs import checkpoints

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


BATCH_SIZE = 32  # of the demo's recipe


def main(argv: list[str]) -> int:
    """Trains, measures, prints the table, and writes demo.png, study.* and the runs; returns the exit code."""
    options = _parse(argv)
    if options.write_evaluation:
        return _write_evaluation(options.write_evaluation)
    if options.data_only:
        return _write_training_data(options.out)
    require("superclip demo", "report", "matplotlib", "scipy")
    from ..runs.process import Stopped, stopped_by_signals

    try:
        with stopped_by_signals():
            results = run_demo(options.out, 1 if options.quick else options.seeds, options.samples, options.jobs)
    except Stopped as stop:
        print(f"superclip demo: stopped by {stop}; the same command resumes", file=sys.stderr, flush=True)
        return stop.exit_code
    print(f"\n{results}")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip demo",
        description="Composes scenes of real drawings, trains CLIP and SuperCLIP on them with OpenCLIP by paired seeds "
        "(equal initial weights of the towers, equal order of the data, equal crops), and prints the difference on "
        "scenes that neither has seen, with its 95 % interval. It is the study 'demo' of superclip study.",
        epilog="example: superclip demo --quick",
    )
    parser.add_argument("--quick", action="store_true", help="one seed: some minutes, and no result")
    parser.add_argument("--seeds", type=int, metavar="N", help="paired seeds (default: 4, ten minutes on two cores)")
    parser.add_argument("--samples", type=int, metavar="N", help="samples of a run (default: 40960)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything (default: %(default)s)")
    parser.add_argument(
        "--write-evaluation", type=Path, metavar="DIR",
        help="train nothing: write the held-out scenes as data sets for superclip evaluate",
    )  # fmt: skip
    parser.add_argument(
        "--data-only", action="store_true", help="train nothing: write the model and the shards of the demo's recipes"
    )
    options = parser.parse_args(argv)
    at_least(options, seeds=1, samples=BATCH_SIZE, jobs=1)
    if options.quick and options.seeds not in (None, 1):
        raise InputError(f"--quick trains one seed, and --seeds is {options.seeds}: leave one of them out")
    return options


def _write_training_data(folder: Path) -> int:
    from ..demo.data import write_training_data

    make_folder(folder, "--out")
    model, shards = write_training_data(folder)
    print(f"{model} and {shards}: superclip run demo/superclip_demo-model_8k_bs64 --device cpu")
    return 0


def _write_evaluation(folder: Path) -> int:
    from ..demo.data import write_evaluation_data
    from ..demo.scenes import write_dense_scenes

    make_folder(folder, "--write-evaluation")
    names = " ".join(write_evaluation_data(folder))
    dense = " ".join(place.name for place in write_dense_scenes(folder))
    print(f"superclip evaluate CHECKPOINT --data {folder} --datasets {names} --suite zeroshot,retrieval,probe")
    print(f"superclip evaluate CHECKPOINT --data {folder} --datasets {dense} --suite dense")
    return 0
