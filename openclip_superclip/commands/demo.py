"""superclip demo: CLIP and SuperCLIP, trained here by OpenCLIP on real drawings, measured side by side."""

import argparse
import math
from pathlib import Path

from ..atomic_files import make_folder
from ..errors import InputError
from ..optional_dependencies import check_matplotlib

QUICK = {"seeds": 1, "samples": 5000, "learning_rates": [5e-4]}
FULL = {"seeds": 3, "samples": 12000, "learning_rates": [2.5e-4, 5e-4, 1e-3]}


def main(argv: list[str]) -> int:
    """Trains, measures, prints the table, and writes demo.png, demo.json and the runs; returns the exit code."""
    options = _parse(argv)
    if options.write_evaluation:
        return _write_evaluation(options.write_evaluation)
    if options.data_only:
        return _write_recipe_data(options.out)
    from ..demo.training_pool import DemoSettings

    settings = DemoSettings(**{name: getattr(options, name) for name in DemoSettings._fields})
    return _compare_captions(settings) if len(options.captions) > 1 else _compare_methods(settings)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip demo",
        description="Composes scenes of emoji drawings, trains CLIP and SuperCLIP on them with OpenCLIP, and compares "
        "both at equal samples and at equal time on scenes that neither has seen.",
        epilog="example: superclip demo --quick",
    )
    parser.add_argument("--quick", action="store_true", help="one seed and few samples: minutes, not a result")
    parser.add_argument("--seeds", type=int, help=f"runs of each method (default: {FULL['seeds']}; --quick: 1)")
    parser.add_argument(
        "--samples", type=int, help=f"samples of a run (default: {FULL['samples']}; --quick: {QUICK['samples']})"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", metavar="LR",
        help="each method takes its best of these, on scenes kept for that (default: 2.5e-4 5e-4 1e-3; --quick: 5e-4)",
    )  # fmt: skip
    parser.add_argument(
        "--captions", nargs="+", default=["long"], metavar="KIND",
        help="name all objects of a scene, one, or some: long (the default), short, raw. Of several kinds, mixed:P and "
        "dual among them, it prints one table, at the first learning rate",
    )  # fmt: skip
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
    for name, default in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    for name in ("seeds", "samples", "batch_size", "jobs"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}; expected 1 or more")
    for kind in options.captions:
        if kind not in ("long", "short", "raw") and (len(options.captions) == 1 or not _is_mode(kind)):
            raise InputError(
                f"--captions is {' '.join(options.captions)}; expected long, short or raw, or several of these, "
                "mixed:P and dual"
            )
    if options.samples < 10 * options.batch_size:
        raise InputError(f"--samples is {options.samples}; expected at least ten batches of {options.batch_size}")
    if not all(math.isfinite(rate) and rate > 0 for rate in options.learning_rates):
        raise InputError(f"--learning-rates are {options.learning_rates}; expected numbers above 0")
    if not (options.write_evaluation or options.data_only):
        check_matplotlib("superclip demo")
    return options


def _write_recipe_data(folder: Path) -> int:
    from ..demo.recipe_data import write_recipe_data

    make_folder(folder, "--out")
    model, shards = write_recipe_data(folder)
    print(f"{model} and {shards}: superclip run demo/superclip_demo-model_8k_bs64 --device cpu")
    return 0


def _write_evaluation(folder: Path) -> int:
    from ..demo.evaluation_data import write_evaluation_data

    make_folder(folder, "--write-evaluation")
    names = " ".join(write_evaluation_data(folder))
    print(f"superclip evaluate CHECKPOINT --data {folder} --datasets {names} --suite zeroshot,retrieval,probe")
    return 0


def _is_mode(captions: str) -> bool:
    from ..config import Config

    try:
        return bool(Config(captions=captions, long_caption="long.txt"))
    except InputError:
        return False


def _compare_captions(settings) -> int:
    from ..demo.caption_comparison import compare_modes, modes_table

    print(f"\n{modes_table(compare_modes(settings))}\n\n{settings.out}/captions.json and runs/ hold the rest.")
    return 0


def _compare_methods(settings) -> int:
    from ..demo.method_comparison import compare_methods, methods_table

    report = compare_methods(settings)
    print(f"\n{methods_table(report)}\n\n{settings.out}/demo.png, demo.json and runs/ hold the rest.")
    return 0
