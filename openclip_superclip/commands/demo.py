"""superclip demo: trains CLIP and SuperCLIP on real drawings, and compares them by paired seeds."""

import argparse
import operator
import shlex
import sys
from pathlib import Path

from ..checkpoints.run_outputs import checkpoints
from ..environment import require
from ..errors import Parser, at_least, no_effect
from ..files import check_results, make_folder
from ..lab.demo.data import SCENES
from ..lab.demo.scene_measures import predicted_names, representative
from ..lab.demo.scenes import scenes
from ..lab.studies.study_file import MARK, RESULTS, study_call
from ..lab.studies.study_results import StudyResults
from ..lab.studies.study_run import open_trained
from ..lab.studies.study_training import run_study
from ..runs.process import Stopped, stopped_by_signals

NUM_SCENES = 1000  # that measure zero-shot
NUM_IMAGES = 16


def main(argv: list[str]) -> int:
    """Trains, measures, prints the table, and writes the figures, study.* and the runs; returns
    the exit code."""
    options = _parse(argv)
    if options.write_evaluation or options.data_only:
        print(_write_data(options))
        return 0
    require("superclip demo", "report", "matplotlib", "scipy")
    out = options.out
    check_results(out, "--out", [*RESULTS, "demo.png"], MARK)
    set_ = {} if options.samples is None else {"samples": str(options.samples)}
    try:
        with stopped_by_signals():
            call = study_call("demo", out, options.seeds, "cpu", None, None, set_, scenes=out)
            results = run_study(call, options.jobs)
            _draw(results, out)
    except Stopped as stop:
        print(
            f"superclip demo: stopped by {stop}; the same command resumes",
            file=sys.stderr,
            flush=True,
        )
        return stop.exit_code
    print(f"\n{results.tables()}")
    if results.study.seeds == 1:
        print("\nOne seed is only a test: superclip demo trains four.")
    print(f"\nMore in {out}: demo.png, demo-images.png, study.csv, study.json and runs/")
    return 0


def _draw(results: StudyResults, out: Path) -> None:
    """Draws demo.png, the scores, and demo-images.png, predictions of the first seed's models."""
    # needs the extra [report]
    from ..lab.studies.figures import demo_images_text, draw_demo, draw_demo_images

    seed = results.study.first_seed
    shown = list(scenes(NUM_SCENES, 0, "test", num_objects=(1,)))
    names = [scene.objects[0] for scene in shown]
    predicted = {}
    for record in results.records:
        if record["seed"] == seed:
            print(
                f"demo-images.png: {record['arm']} classifies {NUM_SCENES:,} scenes",
                file=sys.stderr,
                flush=True,
            )
            *_, weights = checkpoints(out / "runs" / record["run"] / "checkpoints").values()
            opened = open_trained(weights, f"local-dir:{out / SCENES.model}")
            predicted[record["arm"]] = predicted_names(opened, shown)
    is_right = {arm: [*map(operator.eq, answers, names)] for arm, answers in predicted.items()}
    chosen = representative([*zip(*is_right.values(), strict=True)], NUM_IMAGES)
    right = {
        arm: (sum(found[place] for place in chosen), 100 * sum(found) / NUM_SCENES)
        for arm, found in is_right.items()
    }
    examples = [
        (
            shown[place].image,
            names[place],
            {arm: answers[place] for arm, answers in predicted.items()},
        )
        for place in chosen
    ]
    draw_demo_images(
        out / "demo-images.png", examples, demo_images_text(NUM_IMAGES, NUM_SCENES, seed, right)
    )
    draw_demo(out / "demo.png", results)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="superclip demo",
        description="Composes scenes of real drawings, trains CLIP and SuperCLIP on them with "
        "paired seeds (the same "
        "initial weights of the towers, the same order of the data, the same crops), and "
        "prints the difference on held-out scenes with its 95 % interval. The same as "
        "superclip study demo.",
        epilog="example: superclip demo --quick",
    )
    add = parser.add_argument
    seeds = parser.add_mutually_exclusive_group()
    about = "train one seed, as a test: a few minutes"
    seeds.add_argument("--quick", action="store_const", const=1, dest="seeds", help=about)
    seeds.add_argument(
        "--seeds", type=int, metavar="N", help="paired seeds (default: 4, ten minutes on two cores)"
    )
    add("--samples", type=int, metavar="N", help="training samples per run (default: 40960)")
    add(
        "--jobs", type=int, default=2, help="runs at a time, one thread each (default: %(default)s)"
    )
    add(
        "--out",
        type=Path,
        default=Path("demo"),
        help="folder for data, runs and results (default: %(default)s)",
    )
    about = "only write the held-out scenes, as data sets for superclip evaluate"
    add("--write-evaluation", type=Path, metavar="DIR", help=about)
    add(
        "--data-only",
        action="store_true",
        help="only write the model and the shards of the demo's recipes",
    )
    options = parser.parse_args(argv)
    at_least(options, seeds=1, samples=32, jobs=1)  # a batch of the demo's recipe
    return options


def _write_data(options: argparse.Namespace) -> str:
    """Writes the files of --write-evaluation or --data-only and returns the commands that use
    them."""
    from ..lab.demo.data import write_evaluation_data, write_training_data
    from ..lab.demo.scenes import write_dense_scenes

    if not options.write_evaluation:
        no_effect(options, "--data-only", "seeds", "samples")
        make_folder(options.out, "--out")
        model, shards = write_training_data(options.out)
        of_recipes = ": superclip run demo/superclip_demo-model_8k_bs64 --device cpu" * (
            options.out == Path("demo")
        )
        return f"{model} and {shards}{of_recipes}"
    no_effect(options, "--write-evaluation", "data_only", "seeds", "samples")
    folder = options.write_evaluation
    make_folder(folder, "--write-evaluation")
    names = " ".join(write_evaluation_data(folder))
    dense = " ".join(place.name for place in write_dense_scenes(folder))
    evaluate = f"superclip evaluate CHECKPOINT --data {shlex.quote(str(folder))} --datasets"
    return f"{evaluate} {names} --suite zeroshot,retrieval,probe\n{evaluate} {dense} --suite dense"
