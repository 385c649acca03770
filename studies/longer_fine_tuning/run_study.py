"""Trains and measures the runs of longer_fine_tuning (README.md) that have no complete result.

`python run_study.py --work FOLDER --jobs 2 --commit` works seed by seed and can be stopped and
started again: a run without a complete file in runs/ is trained from its start. No score is
printed. `--status` only says how many result files are complete and finite.
"""

import argparse
import fcntl
import itertools
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMIT = "862e4331"  # of the package, installed with `pip install -e` from a clone
START = "00c29edb425934c536e8dbcacf0122e0fc0b1367b6a3ff9a3c6eb19447a17943"  # of the joined weights
SEEDS = range(400, 408)
RATES = ("3e-4", "1e-3")
ARMS = ("clip", "superclip")
TOTAL = len(SEEDS) * len(RATES) * len(ARMS)
MEASURES = {
    "zero_shot", "new_combinations", "image_to_text_R@1", "text_to_image_R@1",
    "image_to_long_text_R@1", "long_text_to_image_R@1", "tagging", "linear_probe",
    "seen_zero_shot",
}  # fmt: skip
IMAGES = ("several_seen", "several_unseen", "single_seen", "single_unseen")
GIT = threading.Lock()


@dataclass(frozen=True)
class Sizes:
    """How much is trained and measured; the defaults are the study's."""

    shards: int = 10
    shard_size: int = 1024
    passes: int = 4
    warmup: int = 64
    scenes_per_concept: int = 5
    num_scenes: int = 1000
    num_probe_scenes: int = 3000
    least_images: int = 5  # of an object whose average precision counts

    @property
    def data_samples(self) -> int:
        return self.shards * self.shard_size


STUDY = Sizes()
TRIAL = Sizes(2, 128, 2, 2, 1, 100, 300, 2)


@dataclass(frozen=True)
class Run:
    seed: int
    rate: str
    arm: str

    @property
    def name(self) -> str:
        return f"{self.arm}_lr-{self.rate}_seed{self.seed}"


def study_runs(seeds=SEEDS) -> list[Run]:
    """Returns all runs, those of a seed together."""
    return [Run(*values) for values in itertools.product(seeds, RATES, ARMS)]


def is_complete(file: Path, run: Run) -> bool:
    """Returns whether a result is that of the run and has all scores, which are finite."""
    try:
        result = json.loads(file.read_text())
        scores = dict(result["measures"])
        kinds = ("cosine", "softmax", *(("head",) if run.arm == "superclip" else ()))
        for images, kind in itertools.product(IMAGES, kinds):
            values = result["words"][images][kind]
            scores |= {f"{images} {kind} {name}": values[name] for name in ("mAP", "found")}
        right = (result["seed"], result["rate"], result["arm"]) == (run.seed, run.rate, run.arm)
        return (
            right
            and scores.keys() >= MEASURES
            and all(isinstance(score, float) and math.isfinite(score) for score in scores.values())
            and all(result[name] for name in ("started", "ended", "processor", "versions"))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def num_complete(results: Path) -> int:
    return sum(is_complete(results / f"{run.name}.json", run) for run in study_runs())


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_text_whole(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_text(text)
    part.replace(file)


# --- one run, in a process of its own -----------------------------------------------------------


def train_and_measure(run: Run, sizes: Sizes, results: Path) -> None:
    """Trains a run in the current folder, measures it, and writes its result."""
    import torch
    from openclip_superclip.lab.demo import natural
    from openclip_superclip.lab.demo.scenes import write_scenes
    from openclip_superclip.lab.words.open_checkpoint import open_checkpoint

    from openclip_superclip.checkpoints.began_with import versions_of_run
    from openclip_superclip.checkpoints.weights import read_checkpoint
    from openclip_superclip.environment import keep_freed_memory, processor
    from openclip_superclip.files import content_digest
    from openclip_superclip.plans.plan import make_run
    from openclip_superclip.plans.recipe_files import read_recipe

    torch.set_num_threads(1)
    keep_freed_memory()
    started = now()
    data = Path("natural") / str(run.seed)
    with open(Path("natural") / f"{run.seed}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        facts = {
            "natural": natural.VERSION,
            "seed": run.seed,
            "num_samples": sizes.data_samples,
            "samples_per_shard": sizes.shard_size,
        }
        world = natural.World(run.seed)
        shown = (world.scene("train", index) for index in range(sizes.data_samples))
        write_scenes(data, facts, shown, "short")

    settings = {"method": run.arm, "lr": run.rate, "seed": str(run.seed)}
    if run.arm == "superclip":
        settings["superclip.head_warmup"] = str(sizes.data_samples)
    if sizes != STUDY:
        settings |= {
            "shards": f"{data}/{{000000..{sizes.shards - 1:06d}}}.tar",
            "data_samples": str(sizes.data_samples),
            "samples": str(sizes.data_samples * sizes.passes),
            "warmup": str(sizes.warmup),
        }
    recipe = read_recipe(str(HERE / "recipe.yaml"), settings)
    plan = make_run(recipe, device="cpu")
    folder = Path("runs") / run.name
    shutil.rmtree(folder, ignore_errors=True)
    arguments = [*plan.openclip_arguments(), "--logs", "runs", "--name", run.name]
    arguments += ["--save-frequency", str(plan.num_slices)]  # the last epoch only
    command = [sys.executable, "-m", "openclip_superclip", "train", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    trained = now()

    checkpoint = folder / "checkpoints" / f"epoch_{plan.num_slices}.pt"
    opened = open_checkpoint(read_checkpoint(checkpoint), recipe.model)
    measures, words = measure(opened, run, sizes)
    kept = Path("weights") / f"{run.name}.pt"
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    torch.save({"state_dict": content["state_dict"]}, kept)
    own = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "seed": run.seed,
        "rate": run.rate,
        "arm": run.arm,
        "commit": COMMIT,
        "samples": plan.samples,
        "steps": plan.steps,
        "started": started,
        "trained": trained,
        "ended": now(),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "cpu_seconds_measuring": round(own.ru_utime + own.ru_stime, 1),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "versions": versions_of_run(),
        "weights": content_digest(kept),
        "command": [argument for argument in arguments if argument],
        "measures": measures,
        "words": words,
    }
    write_text_whole(results / f"{run.name}.json", json.dumps(result, indent=1) + "\n")
    shutil.rmtree(folder / "checkpoints")


def measure(opened, run: Run, sizes: Sizes) -> tuple[dict, dict]:
    """Returns the measures of a model, and by images and kind of score how well its words
    are."""
    import torch
    from openclip_superclip.lab.demo import natural
    from openclip_superclip.lab.demo.scene_measures import (
        fraction_found,
        measure_natural,
        name_classifier,
        object_labels,
        scene_features,
    )
    from openclip_superclip.lab.demo.scenes import different

    model = opened.model
    preprocess = opened.preprocess()
    world = natural.World(run.seed)
    parts = (model, preprocess, opened.tokenizer)
    scene_sizes = (sizes.scenes_per_concept, sizes.num_scenes, sizes.num_probe_scenes)
    measures = measure_natural(parts, "test", run.seed, *scene_sizes)

    def singles(split: str, designers) -> list:
        per_concept = sizes.scenes_per_concept
        return [
            world.scene(split, index, (1,), designers, world.concepts[index // per_concept])
            for index in range(len(world.concepts) * per_concept)
        ]

    def several(designers) -> list:
        scenes = (world.scene("test", index, (2, 3), designers) for index in itertools.count())
        return different(sizes.num_scenes, scenes, caption="clean")

    scenes = {
        "several_seen": several(natural.TRAINING_DESIGNERS),
        "several_unseen": several(natural.UNSEEN_DESIGNERS),
        "single_seen": singles("tune", natural.TRAINING_DESIGNERS),
        "single_unseen": singles("test", natural.UNSEEN_DESIGNERS),
    }
    words = {}
    with torch.inference_mode():
        classifier = name_classifier(model, opened.tokenizer, world.names, natural.TEMPLATES)
        scale = model.logit_scale.exp().double()
        for images, shown in scenes.items():
            labels = object_labels(shown, world.names)  # [S, N]
            cosine = (scene_features(model, preprocess, shown) @ classifier).double()  # [S, N]
            scores = {"cosine": cosine, "softmax": (scale * cosine).softmax(dim=1)}
            if run.arm == "superclip":
                scores["head"] = head_scores(opened, preprocess, world.names, shown)
            least = sizes.least_images if images.startswith("several") else 1
            counted = labels.sum(dim=0) >= least  # [N]
            words[images] = {"images": len(shown), "objects": int(counted.sum())}
            for kind, of_kind in scores.items():
                precisions = [
                    average_precision(of_kind[:, index], labels[:, index] > 0)
                    for index in counted.nonzero().squeeze(1).tolist()
                ]
                words[images][kind] = {
                    "mAP": 100 * sum(precisions) / len(precisions),
                    "found": fraction_found(of_kind, labels),
                }
            if images == "single_seen":
                measures["seen_zero_shot"] = fraction_found(cosine, labels)
    return measures, words


def head_scores(opened, preprocess, names: list[str], shown: list):
    """Returns the scores of names in scenes by the class head, float64 [S, N], as `superclip
    words` computes them."""
    import torch
    from openclip_superclip.lab.words.lexicon import WordProbabilities, lexicon

    from openclip_superclip.method.head_input import head_input_map

    model = opened.model
    weights = opened.token_weights.cpu().double()
    chosen = lexicon(list(names), opened.tokenizer, len(weights))
    if chosen.words != list(names):
        raise ValueError("the tokenizer has no tokens for some names")
    probabilities = WordProbabilities(chosen, weights)
    head = model.class_head
    scores = []
    for start in range(0, len(shown), 100):
        batch = torch.stack([preprocess(scene.image) for scene in shown[start : start + 100]])
        patches = head_input_map(model.visual, model.patch_tokens, batch, head.reads).float()
        logits = head.logits(patches.mean(dim=(2, 3))).double()  # [B, V]
        scores.append(probabilities.of(logits.softmax(dim=-1)))
    return torch.cat(scores)


def average_precision(scores, is_in) -> float:
    """Returns the average precision of images ranked by their scores [S]; images of equal
    scores have one rank together."""
    order = scores.argsort(descending=True)
    scores = scores[order]
    found = is_in[order].double().cumsum(dim=0)
    ends = [*(scores[1:] != scores[:-1]).nonzero().squeeze(1).tolist(), len(scores) - 1]
    total = 0.0
    before = 0.0
    for end in ends:
        here = float(found[end])
        total += (here - before) * here / (end + 1)
        before = here
    return total / before


# --- all runs ------------------------------------------------------------------------------------


def check_package() -> None:
    """Ends the command unless the package is the study's commit, unchanged."""
    import openclip_superclip

    clone = Path(openclip_superclip.__file__).resolve().parent.parent
    git = ["git", "-C", str(clone)]
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True)
    changes = subprocess.check_output(
        [*git, "status", "--porcelain", "--untracked-files=no"], text=True
    )
    if not head.startswith(COMMIT) or changes:
        sys.exit(f"the package in {clone} is not commit {COMMIT}, unchanged")


def check_start(work: Path) -> None:
    """Ends the command unless the joined weights are those of the study."""
    import hashlib

    file = work / "two-towers" / "open_clip_model.safetensors"
    if hashlib.sha256(file.read_bytes()).hexdigest() != START:
        sys.exit(f"{file} has other weights than the study's: join the towers as in README.md")


def commit(results: Path, readme: Path, num_complete: Callable[[Path], int]) -> None:
    """Commits the finished results and their number in the study's README.md; the next call
    commits what one has failed to."""
    with GIT:
        text = f"{num_complete(results)} of {TOTAL} runs"
        write_text_whole(readme, re.sub(rf"\d+ of {TOTAL} runs", text, readme.read_text()))
        git = ["git", "-C", str(readme.parent)]
        paths = ["--", str(readme), f"{results}/*.json"]
        message = f"studies: add finished runs of {readme.parent.name}"
        if subprocess.call([*git, "add", *paths]) == 0:
            subprocess.call([*git, "commit", "-q", "-m", message, *paths])


def work_on(run: Run, options: argparse.Namespace) -> None:
    """Trains, measures and commits a run in a process of its own."""
    print(f"{now()} {run.name} starts", flush=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--work", str(options.work)]
    command += ["--results", str(options.results), "--one", str(run.seed), run.rate, run.arm]
    if options.trial:
        command.append("--trial")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(options.work / "logs" / f"{run.name}.log", "w") as log:
        exit_code = subprocess.call(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    file = options.results / f"{run.name}.json"
    good = exit_code == 0 and is_complete(file, run)
    print(f"{now()} {run.name} {'is complete' if good else 'FAILED: see its log'}", flush=True)
    if good and options.commit:
        commit(options.results, HERE / "README.md", num_complete)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("work"), help="contains two-towers")
    parser.add_argument("--results", type=Path, default=HERE / "runs")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--commit", action="store_true", help="commit each finished result")
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--trial", action="store_true", help="a few steps of seed 990")
    parser.add_argument("--one", nargs=3, metavar=("SEED", "RATE", "ARM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.results = options.results.resolve()
    if options.trial and options.results == HERE / "runs":
        sys.exit("--trial needs another --results")
    if options.one:
        seed, rate, arm = options.one
        os.chdir(options.work)
        sizes = TRIAL if options.trial else STUDY
        train_and_measure(Run(int(seed), rate, arm), sizes, options.results)
        return
    runs = study_runs([990] if options.trial else SEEDS)
    left = [run for run in runs if not is_complete(options.results / f"{run.name}.json", run)]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are complete and finite", flush=True)
    if options.status:
        return
    for name in ("natural", "runs", "weights", "logs"):
        (options.work / name).mkdir(parents=True, exist_ok=True)
    options.results.mkdir(exist_ok=True)
    lock = open(options.work / "lock", "w")  # noqa: SIM115 (held until the end)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    check_package()
    check_start(options.work)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: work_on(run, options), left))


if __name__ == "__main__":
    main()
