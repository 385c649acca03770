"""superclip demo: CLIP and SuperCLIP, trained here by OpenCLIP on real drawings, and the difference by paired seeds."""

import argparse
import sys
from pathlib import Path

from ..atomic_files import make_folder
from ..errors import InputError
from ..optional_dependencies import check_matplotlib, check_scipy
from .least_values import check_least

BATCH_SIZE = 32  # of the demo's recipe


def main(argv: list[str]) -> int:
    """Trains, measures, prints the table, and writes demo.png, study.* and the runs; returns the exit code."""
    options = _parse(argv)
    if options.write_evaluation:
        return _write_evaluation(options.write_evaluation)
    if options.data_only:
        return _write_training_data(options.out)
    check_matplotlib("superclip demo")
    check_scipy("superclip demo")
    from ..running.stop_signals import Stopped, stopped_by_signals
    from ..study.demo_study import run_demo

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
    check_least(options, seeds=1, samples=BATCH_SIZE, jobs=1)
    if options.quick and options.seeds not in (None, 1):
        raise InputError(f"--quick trains one seed, and --seeds is {options.seeds}: leave one of them out")
    return options


def _write_training_data(folder: Path) -> int:
    from ..demo.training_data import write_training_data

    make_folder(folder, "--out")
    model, shards = write_training_data(folder)
    print(f"{model} and {shards}: superclip run demo/superclip_demo-model_8k_bs64 --device cpu")
    return 0


def _write_evaluation(folder: Path) -> int:
    from ..demo.dense_scenes import write_dense_scenes
    from ..demo.evaluation_data import write_evaluation_data

    make_folder(folder, "--write-evaluation")
    names = " ".join(write_evaluation_data(folder))
    dense = " ".join(place.name for place in write_dense_scenes(folder))
    print(f"superclip evaluate CHECKPOINT --data {folder} --datasets {names} --suite zeroshot,retrieval,probe")
    print(f"superclip evaluate CHECKPOINT --data {folder} --datasets {dense} --suite dense")
    return 0
