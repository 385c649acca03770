"""Trains and measures the runs of head_rate (README.md) that have no complete result.

`python run_study.py --work FOLDER --jobs 2 --commit` makes the trials, decides the head's weight
decay, and then works seed by seed, part B first. It can be stopped and started again: a run without
a complete file in runs/ is trained from its start. No score of the study is printed. `--status`
only says how many results are complete. `--check-plugin` shows that the plugin changes nothing
with `lr_scale` 1.
"""

import argparse
import csv
import fcntl
import importlib.util
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SPEC = importlib.util.spec_from_file_location(
    "longer", HERE.parent / "longer_fine_tuning/run_study.py"
)
longer = importlib.util.module_from_spec(SPEC)
sys.modules["longer"] = longer  # where dataclasses look for it
SPEC.loader.exec_module(longer)

SEEDS = {"B": range(500, 508), "A": range(408, 416)}  # in this order
RATES = ("1e-4", "3e-4", "1e-3")
ARMS = ("clip", "superclip")
HEAD_LR = "3e-3"
DECAYS = ("0.2", "0.02")  # of the head, which the trials choose from
TRIAL_SEED = 990
CHECK_SEED = 989  # of the short runs that check the plugin: scenes of their own
TRIAL_RATE = "3e-4"
TOTAL = 96
A_MEASURES = {*longer.MEASURES, "choice"}
B_MEASURES = {"image_to_text_R@1", "text_to_image_R@1", "choice"}
NUM_CHOICE = 500  # scenes of part A that choose the rate
CHOICE_PAIRS = 250  # of part B
DATA = "fa7153c034b62d4a87a0637a483522c9e7c24ff7d5c70ff397640cf29637ee74"  # of prepare_data.py
PASSES = 8  # of part B
BATCH = 64
STEPS = 33  # of a pass of part B, without the last, incomplete batch
LEAST_CAPTIONS = 5  # that contain a name of part B
FUNCTION_WORDS = set(
    "about above after all also and any are around based been before being below between both but "
    "can could does each etc for from had has have her here his how into its just like made make "
    "many may more most new not now off one only onto other our out over own same see she should "
    "some such than that the their them then there these they this those through too two under "
    "use used using very was were what when where which while who will with without you your".split()
)


@dataclass(frozen=True)
class Run:
    part: str
    seed: int
    rate: str
    arm: str
    decay: str = ""  # of a trial's head

    @property
    def name(self) -> str:
        decay = f"_wd-{self.decay}" if self.decay else ""
        return f"{self.part}_{self.arm}_lr-{self.rate}_seed{self.seed}{decay}"


def study_runs() -> list[Run]:
    """Returns all runs of the study, those of a seed together."""
    return [
        Run(part, *values)
        for part, seeds in SEEDS.items()
        for values in itertools.product(seeds, RATES, ARMS)
    ]


def trials() -> list[Run]:
    return [Run(part, TRIAL_SEED, TRIAL_RATE, "superclip", decay) for part in "BA" for decay in DECAYS]


def is_complete(file: Path, run: Run) -> bool:
    """Returns whether a result is that of the run and has all scores, which are finite."""
    try:
        result = json.loads(file.read_text())
        scores = [result["measures"][name] for name in (A_MEASURES if run.part == "A" else B_MEASURES)]
        images = longer.IMAGES if run.part == "A" else ("test",)
        kinds = ("cosine", "softmax", "head") if run.arm == "superclip" else ("cosine", "softmax")
        scores += [result["words"][name][kind]["mAP"] for name in images for kind in kinds]
        identity = [result[name] for name in ("part", "seed", "rate", "arm")]
        return (
            identity == [run.part, run.seed, run.rate, run.arm]
            and all(isinstance(score, float) and math.isfinite(score) for score in scores)
            and all(result[name] for name in ("started", "ended", "processor", "versions"))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def num_complete(results: Path) -> int:
    return sum(is_complete(results / f"{run.name}.json", run) for run in study_runs())


# --- one run, in a process of its own -----------------------------------------------------------


def train_and_measure(run: Run, decay: str, results: Path, short: bool) -> None:
    """Trains a run in the current folder, measures it, and writes its result."""
    import torch
    from openclip_superclip.lab.words.open_checkpoint import open_checkpoint

    from openclip_superclip.checkpoints.began_with import versions_of_run
    from openclip_superclip.checkpoints.weights import read_checkpoint
    from openclip_superclip.environment import keep_freed_memory, processor
    from openclip_superclip.files import content_digest

    torch.set_num_threads(1)
    keep_freed_memory()
    started = longer.now()
    sizes = longer.TRIAL if short else longer.STUDY
    if run.part == "A":
        arguments, epochs = arguments_of_a(run, sizes)
    else:
        arguments, epochs = arguments_of_b(run, short)
    folder = Path("runs") / run.name
    shutil.rmtree(folder, ignore_errors=True)
    environment = dict(os.environ)
    if run.arm == "superclip":
        environment |= {"HEAD_LR": HEAD_LR, "HEAD_WD": decay}
    command = [sys.executable, "-m", "openclip_superclip", "train", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=environment)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    trained = longer.now()

    checkpoint = folder / "checkpoints" / f"epoch_{epochs}.pt"
    opened = open_checkpoint(read_checkpoint(checkpoint), "local-dir:two-towers")
    measure = measure_a if run.part == "A" else measure_b
    measures, words = measure(opened, run, sizes)
    kept = Path("weights") / f"{run.name}.pt"
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    torch.save({"state_dict": content["state_dict"]}, kept)
    own = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "part": run.part,
        "seed": run.seed,
        "rate": run.rate,
        "arm": run.arm,
        "head": {"lr": HEAD_LR, "wd": decay} if run.arm == "superclip" else None,
        "commit": longer.COMMIT,
        "started": started,
        "trained": trained,
        "ended": longer.now(),
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
    longer.write_text_whole(results / f"{run.name}.json", json.dumps(result, indent=1) + "\n")
    shutil.rmtree(folder / "checkpoints")


def arguments_of_a(run: Run, sizes) -> tuple[list[str], int]:
    """Writes the scenes of a seed, and returns the arguments of `superclip train` and the number
    of epochs."""
    from openclip_superclip.lab.demo import natural
    from openclip_superclip.lab.demo.scenes import write_scenes

    from openclip_superclip.plans.plan import make_run
    from openclip_superclip.plans.recipe_files import read_recipe

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
    if sizes != longer.STUDY:
        settings |= {
            "shards": f"{data}/{{000000..{sizes.shards - 1:06d}}}.tar",
            "data_samples": str(sizes.data_samples),
            "samples": str(sizes.data_samples * sizes.passes),
            "warmup": str(sizes.warmup),
        }
    plan = make_run(read_recipe(str(HERE / "recipe.yaml"), settings), device="cpu")
    arguments = [*plan.openclip_arguments(), "--logs", "runs", "--name", run.name]
    return [*arguments, "--save-frequency", str(plan.num_slices)], plan.num_slices


def measure_a(opened, run: Run, sizes) -> tuple[dict, dict]:
    """Returns the measures of longer_fine_tuning with the one that chooses the rate, and how good
    the words are."""
    from openclip_superclip.lab.demo import natural
    from openclip_superclip.lab.demo.scenes import different

    measures, words = longer.measure(opened, run, sizes)
    world = natural.World(run.seed)
    others = (world.scene("train", index) for index in itertools.count(longer.STUDY.data_samples))
    num = NUM_CHOICE if sizes == longer.STUDY else 50
    shown = different(num, others, caption="short")
    images = [scene.image for scene in shown]
    recalls = retrieval(opened, images, [scene.captions["short"] for scene in shown])
    return measures | {"choice": mean(recalls)}, words


def pairs_of_b(seed: int) -> dict[str, list[tuple[str, str]]]:
    """Returns image files and captions by part: to train on, to choose the rate, and to test."""

    def rows(file: str) -> list[tuple[str, str]]:
        with open(Path("clip_art") / file, newline="") as table:
            return [(row["image"], row["caption"]) for row in csv.DictReader(table)]

    known = rows(f"train-{seed}.csv")
    order = random.Random(f"choose {seed}").sample(known, len(known))
    return {
        "train": sorted(order[CHOICE_PAIRS:]),
        "choose": sorted(order[:CHOICE_PAIRS]),
        "test": rows(f"val-{seed}.csv"),
    }


def arguments_of_b(run: Run, short: bool) -> tuple[list[str], int]:
    """Writes the table of a seed, and returns the arguments of `superclip train` and the number of
    epochs."""
    table = Path("runs") / f"{run.name}.csv"
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *pairs_of_b(run.seed)["train"]])
    passes = 1 if short else PASSES
    arguments = f"""
        --model local-dir:two-towers --dataset-type csv --csv-separator , --csv-img-key image
        --csv-caption-key caption --train-data {table} --epochs {passes} --batch-size {BATCH}
        --workers 0 --lr {run.rate} --warmup 30 --beta1 0.9 --beta2 0.98 --eps 1e-06 --wd 0.2
        --precision fp32 --seed {run.seed} --device cpu --log-every-n-steps 16
        --save-frequency {passes} --logs runs --name {run.name}
    """.split()
    if run.arm == "superclip":
        arguments += ["--superclip", "--superclip-head-warmup", str(STEPS * BATCH)]  # one pass
    return arguments, passes


def measure_b(opened, run: Run, sizes) -> tuple[dict, dict]:
    """Returns the measures of part B, and how good the words are."""
    import torch
    from openclip_superclip.lab.demo import natural
    from openclip_superclip.lab.demo.scene_measures import encode, name_classifier
    from PIL import Image

    def images(rows) -> list:
        return [Image.open(file).convert("RGB") for file, _ in rows]

    pairs = pairs_of_b(run.seed)
    choice = retrieval(opened, images(pairs["choose"]), [text for _, text in pairs["choose"]])
    shown = images(pairs["test"])
    captions = [caption for _, caption in pairs["test"]]
    measures = retrieval(opened, shown, captions) | {"choice": mean(choice)}

    words_of = [set(re.findall(r"[^\W\d_]+", caption)) for caption in captions]
    counts = {word: sum(word in words for words in words_of) for word in set().union(*words_of)}
    names = sorted(
        word
        for word, count in counts.items()
        if count >= LEAST_CAPTIONS and len(word) >= 3 and word not in FUNCTION_WORDS
    )
    labels = torch.tensor([[word in words for word in names] for words in words_of])  # [S, N]
    model, preprocess = opened.model, opened.preprocess()
    with torch.inference_mode():
        classifier = name_classifier(model, opened.tokenizer, names, natural.TEMPLATES)

        def prepare(batch):
            return torch.stack([preprocess(image) for image in batch])

        features = encode(model.encode_image, prepare, shown)
        cosine = (features @ classifier).double()  # [S, N]
        scale = model.logit_scale.exp().double()
        scores = {"cosine": cosine, "softmax": (scale * cosine).softmax(dim=1)}
        if run.arm == "superclip":
            scenes = [argparse.Namespace(image=image) for image in shown]
            scores["head"] = longer.head_scores(opened, preprocess, names, scenes)
    words = {"images": len(shown), "objects": len(names)}
    for kind, of_kind in scores.items():
        precisions = [
            longer.average_precision(of_kind[:, index], labels[:, index])
            for index in range(len(names))
        ]
        words[kind] = {"mAP": 100 * mean(precisions)}
    return measures, {"test": words}


def retrieval(opened, images: list, captions: list[str]) -> dict[str, float]:
    """Returns both R@1 among pairs, in percent, as OpenCLIP computes them."""
    import torch
    from openclip_superclip.lab.demo.scene_measures import encode

    from openclip_superclip.openclip import retrieval_metrics

    preprocess = opened.preprocess()

    def prepare(batch):
        return torch.stack([preprocess(image) for image in batch])

    with torch.inference_mode():
        image_features = encode(opened.model.encode_image, prepare, images)
        text_features = encode(opened.model.encode_text, opened.tokenizer, captions)
        recalls = retrieval_metrics(image_features, text_features)
    return {name: 100 * float(recalls[name]) for name in ("image_to_text_R@1", "text_to_image_R@1")}


def mean(values) -> float:
    values = list(values.values() if isinstance(values, dict) else values)
    return sum(values) / len(values)


# --- all runs ------------------------------------------------------------------------------------


def check_data(work: Path) -> None:
    """Ends the command unless the pictures and captions are those of the study."""
    about = json.loads((work / "clip_art/data.json").read_text())
    if about["pixels and captions"] != DATA:
        sys.exit(f"{work}/clip_art has other pictures or captions than the study's")


def commit(results: Path) -> None:
    """Commits the finished results and their number in README.md; the next call commits what one
    has failed to."""
    with longer.GIT:
        readme = HERE / "README.md"
        text = f"{num_complete(results)} of {TOTAL} runs"
        longer.write_text_whole(
            readme, re.sub(rf"\d+ of {TOTAL} runs", text, readme.read_text())
        )
        git = ["git", "-C", str(HERE)]
        paths = ["--", str(HERE)]
        if subprocess.call([*git, "add", *paths]) == 0:
            message = "studies: add finished runs of head_rate"
            subprocess.call([*git, "commit", "-q", "-m", message, *paths])


def work_on(run: Run, decay: str, results: Path, options: argparse.Namespace) -> None:
    """Trains, measures and commits a run in a process of its own."""
    print(f"{longer.now()} {run.name} starts", flush=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--work", str(options.work)]
    command += ["--results", str(results), "--decay", decay]
    command += ["--one", run.part, str(run.seed), run.rate, run.arm, run.decay]
    if options.short:
        command.append("--short")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(options.work / "logs" / f"{run.name}.log", "w") as log:
        code = subprocess.call(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    good = code == 0 and is_complete(results / f"{run.name}.json", run)
    print(f"{longer.now()} {run.name} {'is complete' if good else 'FAILED: see its log'}", flush=True)
    if good and options.commit:
        commit(results)


def chosen_decay(folder: Path) -> str:
    """Applies the protocol's rule to the trials, writes trials.json, and returns the head's weight
    decay."""
    scores = {}
    for run in trials():
        result = json.loads((folder / f"{run.name}.json").read_text())
        measures = result["measures"]
        if run.part == "A":
            found = result["words"]["several_seen"]["head"]["mAP"]
            score = measures["zero_shot"] + measures["linear_probe"] + found
        else:
            found = result["words"]["test"]["head"]["mAP"]
            score = (measures["image_to_text_R@1"] + measures["text_to_image_R@1"]) / 2 + found
        scores.setdefault(run.part, {})[run.decay] = score
    default, other = DECAYS
    better = all(of_part[other] > of_part[default] for of_part in scores.values())
    decay = other if better else default
    text = json.dumps({"scores": scores, "weight decay of the head": decay}, indent=1)
    longer.write_text_whole(HERE / "trials.json", text + "\n")
    return decay


def check_plugin(work: Path) -> None:
    """Trains a short run of part A without the plugin's groups and with `lr_scale` 1, and ends with
    an error unless all weights are equal."""
    import torch

    os.chdir(work)
    Path("natural").mkdir(exist_ok=True)
    run = Run("A", CHECK_SEED, TRIAL_RATE, "superclip")
    arguments, epochs = arguments_of_a(run, longer.TRIAL)
    weights = []
    for name, rate in {"plain": {}, "groups": {"HEAD_LR": run.rate, "HEAD_WD": "0.2"}}.items():
        folder = Path("runs") / f"check_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "openclip_superclip", "train", *arguments]
        command[command.index(run.name)] = folder.name
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **rate}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        checkpoint = folder / "checkpoints" / f"epoch_{epochs}.pt"
        weights.append(torch.load(checkpoint, weights_only=True)["state_dict"])
    plain, groups = weights
    different = [name for name in plain if not torch.equal(plain[name], groups[name])]
    sys.exit(f"other weights: {different}" if different else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="has two-towers and clip_art")
    parser.add_argument("--results", type=Path, default=HERE / "runs")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--commit", action="store_true", help="commit each finished result")
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--check-plugin", action="store_true")
    parser.add_argument("--short", action="store_true", help="a few steps of the trials")
    parser.add_argument("--decay", default="", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.results = options.results.resolve()
    if options.one:
        part, seed, rate, arm, decay = options.one
        os.chdir(options.work)
        run = Run(part, int(seed), rate, arm, decay)
        train_and_measure(run, options.decay, options.results, options.short)
        return
    print(f"{num_complete(options.results)} of {TOTAL} runs are complete and finite", flush=True)
    if options.status:
        return
    if options.check_plugin:
        check_plugin(options.work)
    for name in ("natural", "runs", "weights", "logs"):
        (options.work / name).mkdir(parents=True, exist_ok=True)
    options.results.mkdir(exist_ok=True)
    lock = open(options.work / "lock", "w")  # noqa: SIM115 (held until the end)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    longer.check_package()
    longer.check_start(options.work)
    check_data(options.work)
    tried = options.work / "short" if options.short else options.results
    tried.mkdir(exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        left = [run for run in trials() if not is_complete(tried / f"{run.name}.json", run)]
        list(pool.map(lambda run: work_on(run, run.decay, tried, options), left))
        if options.short:
            return
        decay = chosen_decay(tried)
        print(f"weight decay of the head: {decay}", flush=True)
        left = [
            run for run in study_runs() if not is_complete(options.results / f"{run.name}.json", run)
        ]
        list(pool.map(lambda run: work_on(run, decay, options.results, options), left))


if __name__ == "__main__":
    main()
