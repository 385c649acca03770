"""Trains and measures the runs of clip_art_fine_tuning (README.md) that have no complete result.

`python train.py --work FOLDER --jobs 2 --commit` works seed by seed and can be stopped and started
again: a run without a complete file in runs/ is trained from its start. No score is printed.
`--status` only says how many result files are complete and finite.
"""

import argparse
import fcntl
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "longer_fine_tuning"))
from run_study import (  # noqa: E402
    COMMIT,
    Run,
    check_package,
    check_start,
    commit,
    now,
    study_runs,
    write_text_whole,
)

SEEDS = range(500, 508)
TRIAL = 990
PASSES = 8
BATCH = 64
STEPS = 37  # of a pass: 2,379 training pairs, without the last, incomplete batch
DATA = "fa7153c034b62d4a87a0637a483522c9e7c24ff7d5c70ff397640cf29637ee74"  # of prepare_data.py
MEASURES = ("image_to_text_R@1", "text_to_image_R@1")


def is_complete(file: Path, run: Run) -> bool:
    """Returns whether a result is that of the run and has both measures, which are finite."""
    try:
        result = json.loads(file.read_text())
        right = (result["seed"], result["rate"], result["arm"]) == (run.seed, run.rate, run.arm)
        finite = all(math.isfinite(result["measures"][name]) for name in MEASURES)
        return right and finite and bool(result["started"] and result["versions"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def num_complete(results: Path) -> int:
    return sum(is_complete(results / f"{run.name}.json", run) for run in study_runs(SEEDS))


def arguments_of(run: Run) -> list[str]:
    """Returns the arguments of `superclip train`, in the folder --work."""
    passes = 1 if run.seed == TRIAL else PASSES
    arguments = f"""
        --model local-dir:two-towers --dataset-type csv --csv-separator , --csv-img-key image
        --csv-caption-key caption --train-data clip_art/train-{run.seed}.csv
        --val-data clip_art/val-{run.seed}.csv --val-frequency {passes} --epochs {passes}
        --batch-size {BATCH} --workers 0 --lr {run.rate} --warmup 30 --beta1 0.9 --beta2 0.98
        --eps 1e-06 --wd 0.2 --precision fp32 --seed {run.seed} --device cpu
        --log-every-n-steps 16 --save-frequency {passes} --logs runs --name {run.name}
    """.split()
    if run.arm == "superclip":
        warm_up = str(STEPS * BATCH)  # one pass
        arguments += ["--superclip", "--superclip-head-warmup", warm_up]
    return arguments


def train_and_measure(run: Run, results: Path) -> None:
    """Trains a run in the current folder, and writes what OpenCLIP measures after the last pass."""
    from openclip_superclip.checkpoints.began_with import versions_of_run
    from openclip_superclip.environment import processor

    started = now()
    folder = Path("runs") / run.name
    shutil.rmtree(folder, ignore_errors=True)
    arguments = arguments_of(run)
    command = [sys.executable, "-m", "openclip_superclip", "train", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    *_, last = (folder / "checkpoints/results.jsonl").read_text().splitlines()
    measured = json.loads(last)
    if measured["epoch"] != int(arguments[arguments.index("--epochs") + 1]):
        sys.exit("the last pass was not measured")
    result = {
        "seed": run.seed,
        "rate": run.rate,
        "arm": run.arm,
        "commit": COMMIT,
        "data": DATA,
        "started": started,
        "ended": now(),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "versions": versions_of_run(),
        "command": arguments,
        "measures": {name: 100 * measured[name] for name in measured if "R@" in name},
    }
    write_text_whole(results / f"{run.name}.json", json.dumps(result, indent=1) + "\n")
    shutil.rmtree(folder / "checkpoints")


def work_on(run: Run, options: argparse.Namespace) -> None:
    """Trains, measures and commits a run in a process of its own."""
    print(f"{now()} {run.name} starts", flush=True)
    command = [sys.executable, __file__, "--work", options.work, "--results", options.results]
    command += ["--one", str(run.seed), run.rate, run.arm]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(options.work / "logs" / f"{run.name}.log", "w") as log:
        code = subprocess.call(command, env=environment, stdout=log, stderr=log)
    file = options.results / f"{run.name}.json"
    good = code == 0 and is_complete(file, run)
    print(f"{now()} {run.name} {'is complete' if good else 'FAILED: see its log'}", flush=True)
    if good and options.commit:
        commit(options.results, HERE / "README.md", num_complete)


def check_data(work: Path) -> None:
    """Ends the command unless the pictures and captions are those of the study."""
    about = json.loads((work / "clip_art/data.json").read_text())
    if about["pixels and captions"] != DATA:
        sys.exit(f"{work}/clip_art has other pictures or captions than the study's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="has two-towers and clip_art")
    parser.add_argument("--results", type=Path, default=HERE / "runs")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--commit", action="store_true", help="commit each finished result")
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--trial", action="store_true", help="one pass of seed 990")
    parser.add_argument("--one", nargs=3, metavar=("SEED", "RATE", "ARM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.results = options.results.resolve()
    if options.trial and options.results == HERE / "runs":
        sys.exit("--trial needs another --results")
    if options.one:
        seed, rate, arm = options.one
        os.chdir(options.work)
        train_and_measure(Run(int(seed), rate, arm), options.results)
        return
    runs = study_runs([TRIAL] if options.trial else SEEDS)
    left = [run for run in runs if not is_complete(options.results / f"{run.name}.json", run)]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are complete and finite", flush=True)
    if options.status:
        return
    for folder in (options.work / "runs", options.work / "logs", options.results):
        folder.mkdir(exist_ok=True)
    lock = open(options.work / "clip_art/lock", "w")  # noqa: SIM115 (held until the end)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    check_package()
    check_start(options.work)
    check_data(options.work)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: work_on(run, options), left))


if __name__ == "__main__":
    main()
