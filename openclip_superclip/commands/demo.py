"""superclip demo: CLIP and SuperCLIP, trained here by OpenCLIP on real drawings, measured side by side."""

import argparse
import json
import logging
import math
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import InputError
from ..optional_dependencies import check_matplotlib

EQUAL_TIME = "CLIP, equal time"
QUICK = {"seeds": 1, "samples": 5000, "learning_rates": [5e-4]}
FULL = {"seeds": 3, "samples": 12000, "learning_rates": [2.5e-4, 5e-4, 1e-3]}


def main(argv: list[str]) -> int:
    """Trains, measures, prints the table, and writes demo.png, demo.json and the runs; returns the exit code."""
    try:
        options = _parse(argv)
        if options.write_evaluation:
            return _write_evaluation(options.write_evaluation)
        if options.data_only:
            return _write_recipe_data(options.out)
        if len(options.captions) > 1:
            return _compare_captions(options)
        (options.captions,) = options.captions
        report = _compare(options)
    except (InputError, ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{table(report)}\n\n{options.out}/demo.png, demo.json and runs/ hold the rest.")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip demo",
        description="Composes scenes of emoji drawings, trains CLIP and SuperCLIP on them with OpenCLIP, and compares "
        "both at equal samples and at equal time on scenes that neither has seen.",
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

    model, shards = write_recipe_data(folder)
    print(f"{model} and {shards}: superclip run demo/superclip_demo-model_8k_bs64 --device cpu")
    return 0


def _write_evaluation(folder: Path) -> int:
    from ..demo.evaluation_data import write_evaluation_data

    names = " ".join(write_evaluation_data(folder))
    print(f"superclip evaluate CHECKPOINT --data {folder} --datasets {names} --suite zeroshot,retrieval,probe")
    return 0


def _is_mode(captions: str) -> bool:
    from ..config import Config

    try:
        return bool(Config(captions=captions, long_caption="long.txt"))
    except InputError:
        return False


def _compare_captions(options: argparse.Namespace) -> int:
    """Trains and measures in every mode of captions, prints the table and returns the exit code."""
    from ..demo.caption_comparison import compare_modes, modes_table

    print(f"\n{modes_table(compare_modes(options))}\n\n{options.out}/captions.json and runs/ hold the rest.")
    return 0


def _compare(options: argparse.Namespace) -> dict:
    """Makes the data, runs everything and returns what demo.json holds."""
    import torch

    from ..demo.demo_model import write_model
    from ..demo.demo_run import METHODS, DemoRun, train_and_measure, versions
    from ..demo.scenes import write_shards

    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that a model to be trained has no weights
    torch.set_num_threads(1)  # measuring happens in the threads that also wait for the runs
    model = write_model(options.out / "model")
    data = options.out / "data" / f"{options.captions}-{options.samples}"
    train_data = write_shards(data, options.samples, seed=0, caption=options.captions)

    def submit(method, learning_rate, seed, num_samples=options.samples, split="test"):
        run = DemoRun(method, num_samples, options.batch_size, learning_rate, options.captions, seed)
        return pool.submit(train_and_measure, run, train_data, model, options.out, split)

    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            rates, tuning = dict.fromkeys(METHODS, options.learning_rates[0]), []
            if len(options.learning_rates) > 1:
                trials = {m: [submit(m, r, 0, split="tune") for r in options.learning_rates] for m in METHODS}
                for method, futures in trials.items():
                    records = [future.result() for future in futures]
                    best = max(records, key=lambda record: statistics.mean(record["measures"].values()))
                    rates[method] = best["run"]["learning_rate"]
                    tuning += records
            futures = {m: [submit(m, rates[m], seed) for seed in range(options.seeds)] for m in METHODS}
            columns = {method: [future.result() for future in futures[method]] for method in METHODS}
            cpu_seconds = {
                m: statistics.median(r["cpu_seconds"] for r in tuning + columns[m] if r["run"]["method"] == m)
                for m in METHODS
            }
            time_ratio = cpu_seconds["SuperCLIP"] / cpu_seconds["CLIP"]
            num_equal_time = round(options.samples * max(1.0, time_ratio))
            futures = [submit("CLIP", rates["CLIP"], seed, num_equal_time) for seed in range(options.seeds)]
            columns[EQUAL_TIME] = [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or whatever waits in line would still be trained
            raise

    report = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "versions": versions(),
        "learning_rates": rates,
        "tuning": [{k: record[k] for k in ("run", "split", "measures", "cpu_seconds")} for record in tuning],
        "time_superclip_over_clip": time_ratio,
        "summary": {column: _summarise(records) for column, records in columns.items()},
        "runs": columns,
    }
    _write(options.out, report, model)
    return report


def _summarise(records: list[dict]) -> dict:
    """Returns mean and standard deviation over the seeds of every measure."""
    values = {name: [record["measures"][name] for record in records] for name in records[0]["measures"]}
    return {
        name: {"mean": statistics.mean(v), "std": statistics.stdev(v) if len(v) > 1 else None}
        for name, v in values.items()
    }


def table(report: dict) -> str:
    """Returns the report's table in Markdown: mean ± standard deviation over the seeds of every measure, in percent."""
    columns = report["runs"]
    rates = report["learning_rates"]
    heads = [f"{c} ({records[0]['run']['num_samples']:,} samples)" for c, records in columns.items()]
    lines = ["| held-out scenes, % | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for measure in report["summary"]["CLIP"]:
        cells = []
        for column in columns:
            cell = report["summary"][column][measure]
            cells.append(f"{cell['mean']:.1f}" + (f" ± {cell['std']:.1f}" if cell["std"] is not None else ""))
        lines.append(f"| {measure.replace('_', ' ')} | " + " | ".join(cells) + " |")
    seconds = [statistics.median(record["cpu_seconds"] for record in records) for records in columns.values()]
    lines.append("| CPU seconds to train | " + " | ".join(f"{value:.0f}" for value in seconds) + " |")
    settings = report["settings"]
    lines.append(
        f"\n{settings['seeds']} seed(s), batch {settings['batch_size']}, {settings['captions']} captions, "
        f"learning rate {rates['CLIP']:g} (CLIP) and {rates['SuperCLIP']:g} (SuperCLIP); "
        f"SuperCLIP took {report['time_superclip_over_clip']:.2f} × the CPU time of CLIP at equal samples."
    )
    return "\n".join(lines)


def _write(out: Path, report: dict, model: str) -> None:
    from ..atomic_files import whole_file
    from ..demo.demo_run import DemoRun, checkpoint, load
    from ..demo.figure import draw
    from ..demo.measures import describe

    with whole_file(out / "demo.json") as file:
        file.write(json.dumps(report, indent=1).encode())
    said = {}
    for method in ("CLIP", "SuperCLIP"):
        run = DemoRun(**report["runs"][method][0]["run"])
        said[method] = describe(*load(checkpoint(run, out), model))
    pictures = [
        (clip[0], clip[1], {"CLIP": clip[2], "SuperCLIP": ours[2]})
        for clip, ours in zip(said["CLIP"], said["SuperCLIP"], strict=True)
    ]
    title = (
        f"superclip demo: emoji scenes (composed), {report['settings']['samples']:,} samples, "
        f"batch {report['settings']['batch_size']}, {report['settings']['seeds']} seed(s)"
    )
    draw(out / "demo.png", report["runs"], report["summary"], pictures, title)
