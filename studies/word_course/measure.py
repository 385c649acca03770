"""Which words are learned first, with and without IDF: SuperCLIP on scenes whose objects differ in
frequency.

`python docs/word-course/measure.py WORK` trains in the folder WORK, resumes where it stopped, and
writes word-course.csv (one row per run and band of words), word-course.json (the differences with
their intervals) and word-course.png. The scenes are the demo's, but the n-th object is drawn 1 / n
times as often as the first; each seed orders the objects differently.

No primary measure was named before the first run: all three measures of three bands of words, and
the rank correlation, are reported.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm
from webdataset import TarWriter

from openclip_superclip.checkpoints.epoch_words import find_course
from openclip_superclip.demo.data import write_model
from openclip_superclip.demo.scenes import NAMES, Scene, draw_image, sample, split_of
from openclip_superclip.reports.paired_differences import PairedDifference
from openclip_superclip.words.word_course import (
    BANDS,
    WordCourse,
    draw_word_courses,
    word_course,
)

NUM_SHARDS, SHARD_SIZE = 20, 1024
SEEDS, IDF = (0, 1, 2), ("online", "off")
RECIPE = "demo/superclip_demo-model_40k_bs32"
MEASURES = ("learned after", "known at 10,240 captions, %", "median lift at the end")


def skewed_scene(seed: int, index: int) -> Scene:
    """One to four objects; the caption names them all.

    No set of objects is one of the demo's test scenes."""
    weights = np.random.default_rng(seed).permutation(1 / np.arange(1, len(NAMES) + 1))
    rng = np.random.default_rng((seed, index))
    count = rng.integers(1, 5)
    while True:
        drawn = rng.choice(len(NAMES), count, replace=False, p=weights / weights.sum())
        objects = [NAMES[place] for place in drawn]
        if count == 1 or split_of(objects) == "train":
            break
    image, layers = draw_image(rng, objects)
    shuffled = ", ".join(objects[place] for place in rng.permutation(count))
    return Scene(image, objects, dict.fromkeys(("long", "short", "raw"), shuffled), layers)


def write_scenes(seed: int, folder: Path) -> None:
    part = folder.with_suffix(".part")
    part.mkdir(parents=True)
    for shard in tqdm(range(NUM_SHARDS), unit=" shards"):
        with TarWriter(str(part / f"{shard:06d}.tar"), mtime=0) as writer:
            for index in range(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE):
                writer.write(
                    {"__key__": f"{index:09d}", **sample(skewed_scene(seed, index), "long")}
                )
    part.rename(folder)


def run_folder(work: Path, idf: str, seed: int) -> Path:
    return work / "runs" / f"idf-{idf}_seed{seed}"


def train(work: Path, seed: int, idf: str) -> WordCourse:
    """The course of the run, which is trained first where it is not there."""
    run = run_folder(Path(), idf, seed)
    if not (work / run / "words/epoch_20.safetensors").is_file():
        if not (work / "skewed" / str(seed)).is_dir():
            write_scenes(seed, work / "skewed" / str(seed))
        shards = f"skewed/{seed}/{{000000..{NUM_SHARDS - 1:06d}}}.tar"
        settings = ["--set", f"seed={seed}", "--set", f"superclip.idf={idf}"]
        command = ["run", RECIPE, "--data", shards, "--device", "cpu", *settings, "--out", str(run)]
        subprocess.run([sys.executable, "-m", "openclip_superclip", *command], cwd=work, check=True)
    return word_course(run.name, find_course(work / run))


def measures(course: WordCourse) -> tuple[list[dict], float]:
    """A row for each band of words, and the rank correlation of frequency and time of learning."""
    words = (course.band >= 0).nonzero().flatten().tolist()
    after = {token: course.learned_after(token) or 2 * course.samples[-1] for token in words}
    rows = []
    for place, band in enumerate(BANDS):
        inside = [token for token in words if course.band[token] == place]
        if inside:
            values = (
                np.mean([after[token] for token in inside]),
                100 * np.mean([after[token] <= 10_240 for token in inside]),
                np.median([float(course.lift[token]) for token in inside]),
            )
            never = sum(course.learned_after(token) is None for token in inside)
            rows.append(
                {
                    "band": band,
                    "words": len(inside),
                    "never learned": never,
                    **dict(zip(MEASURES, values, strict=False)),
                }
            )
    correlation = spearmanr(
        [int(course.captions[token]) for token in words], list(after.values())
    ).statistic
    return rows, float(correlation)


def main(work: Path) -> None:
    if not (work / "demo/model").exists():
        write_model(work / "demo/model")
    rows, correlations, values = [], {idf: [] for idf in IDF}, {}
    courses = {(idf, seed): train(work, seed, idf) for seed in SEEDS for idf in IDF}
    for (idf, seed), course in courses.items():
        of_bands, correlation = measures(course)
        correlations[idf].append(correlation)
        for row in of_bands:
            rows.append({"idf": idf, "seed": seed, **row})
            for measure in MEASURES:
                values[idf, seed, row["band"], measure] = float(row[measure])
    versions = [
        json.loads((run_folder(work, *which) / "run.json").read_text())["versions"]
        for which in courses
    ]
    if any(others != versions[0] for others in versions):
        sys.exit(f"the runs in {work} are of several versions: train them again in another folder")
    differences = {}
    for band in dict.fromkeys(row["band"] for row in rows):
        for measure in MEASURES:
            pairs = PairedDifference(
                [
                    values["online", seed, band, measure] - values["off", seed, band, measure]
                    for seed in SEEDS
                ]
            )
            differences.setdefault(band, {})[measure] = {
                **{
                    idf: float(np.mean([values[idf, seed, band, measure] for seed in SEEDS]))
                    for idf in IDF
                },
                "online - off": pairs.mean,
                "interval": pairs.interval,
                "n": len(pairs),
            }
    record = {
        "command": "python docs/word-course/measure.py WORK",
        "recipe": RECIPE,
        "seeds": SEEDS,
        "versions": versions[0],
        "differences": differences,
        "rank correlation of frequency and time of learning": {
            idf: {
                "mean": float(np.mean(found)),
                "interval": PairedDifference(found).interval,
                "values": found,
            }
            for idf, found in correlations.items()
        },
    }
    here = Path(__file__).parent
    with open(here / "word-course.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}
            )
    (here / "word-course.json").write_text(json.dumps(record, indent=1) + "\n")
    (here / "word-course.png").write_bytes(
        draw_word_courses([courses[idf, SEEDS[0]] for idf in IDF])
    )
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
