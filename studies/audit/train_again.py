"""Training again on the pairs that `superclip audit --keep` keeps, on the demo's scenes, seed by
seed.

`python docs/audit/train_again.py OUT NUM_SEEDS [FIRST_SEED]` exchanges three eighths of the
captions, trains CLIP and SuperCLIP on all pairs, audits the same pairs with both, and trains both
from scratch, with as many samples, on the five eighths that each score keeps, on the pairs with
unchanged captions, and on the clean scenes. Run it in the folder of `superclip demo --data-only`;
it resumes where it stopped. It writes train_again.csv, train_again.json, train_again.md and
train_again.png into OUT. The record beside it has no "kept by CLIP score of SuperCLIP", a control
added later.
"""

import csv
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import yaml

from openclip_superclip.demo.data import NUM_SHARDS, SHARD_SIZE
from openclip_superclip.files import atomic_write, write_json, write_text
from openclip_superclip.rendering import markdown_table
from openclip_superclip.reports.paired_differences import PairedDifference, Spread

SWAPPED = 3 / 8  # of the captions; what is kept fills whole slices of whole steps
PATTERN = f"{{000000..{NUM_SHARDS - 1:06d}}}.tar"
CLEAN, DIRTY, TRUE = "the clean scenes", "all pairs", "the pairs left alone"
# rates that the study one_batch chose
METHODS = {"CLIP": {"method": "clip"}, "SuperCLIP": {"lr": 1e-3}}
SCORES = {  # what is kept: by whose score
    "kept by CLIP score of CLIP": ("CLIP", "clip-score"),
    "kept by CLIP score of SuperCLIP": ("SuperCLIP", "clip-score"),
    "kept by class loss of SuperCLIP": ("SuperCLIP", "class-loss"),
    "kept by CLIP score and support of SuperCLIP": ("SuperCLIP", "both"),
}
DATA = [CLEAN, DIRTY, *SCORES, TRUE]
PRIMARY = "zero_shot"
COMPARED = [
    ("kept by class loss of SuperCLIP", "kept by CLIP score of SuperCLIP"),
    ("kept by class loss of SuperCLIP", "kept by CLIP score of CLIP"),
    ("kept by CLIP score and support of SuperCLIP", "kept by CLIP score of CLIP"),
    ("kept by CLIP score and support of SuperCLIP", TRUE),
]


def write_swapped(clean: Path, dirty: Path, left_alone: Path, seed: int) -> list[str]:
    """Writes the scenes with three eighths of the captions exchanged, and those whose captions were
    not, as shards.

    Returns the keys of the latter. A folder that holds its keys.txt is finished.
    """
    keys = left_alone / "keys.txt"
    if not keys.exists():
        num = NUM_SHARDS * SHARD_SIZE
        chosen = np.random.default_rng((seed, num)).permutation(num)[: round(SWAPPED * num)]
        taken_from = np.arange(num)
        taken_from[chosen] = np.roll(chosen, 1)
        captions = [
            text for shard in range(NUM_SHARDS) for text in _captions(clean / f"{shard:06d}.tar")
        ]
        kept = []
        for shard in range(NUM_SHARDS):
            places = range(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE)
            replaced = {
                f"{place:09d}": captions[taken_from[place]]
                for place in places
                if taken_from[place] != place
            }
            _rewrite(clean / f"{shard:06d}.tar", dirty / f"{shard:06d}.tar", replaced, set())
            _rewrite(clean / f"{shard:06d}.tar", left_alone / f"{shard:06d}.tar", {}, set(replaced))
            kept += [f"{place:09d}" for place in places if taken_from[place] == place]
        write_text(keys, "".join(f"{key}\n" for key in kept))
    return keys.read_text().split()


def _captions(shard: Path) -> list[bytes]:
    with tarfile.open(shard) as tar:
        return [
            tar.extractfile(member).read()
            for member in tar
            if member.name.split(".", 1)[1] == "txt"
        ]


def _keys(shard: Path) -> set[str]:
    with tarfile.open(shard) as tar:
        return {name.partition(".")[0] for name in tar.getnames()}


def _rewrite(source: Path, target: Path, replaced: dict[str, bytes], left_out: set[str]) -> None:
    """Copies the images and captions of a shard; `replaced` are captions by key."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tarfile.open(source) as tar,
        atomic_write(target) as file,
        tarfile.open(fileobj=file, mode="w") as out,
    ):
        for member in tar:
            key, extension = member.name.split(".", 1)
            if key in left_out or extension not in ("png", "txt"):
                continue
            content = replaced.get(key) if extension == "txt" else None
            content = tar.extractfile(member).read() if content is None else content
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))


def superclip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "openclip_superclip", *arguments], check=True)


def study(out: Path, seed: int, name: str, data: dict[str, Path]) -> list[dict]:
    """Trains both methods on data, and returns the records of their runs."""
    arms = {}
    for trained_on, folder in data.items():
        of_data = {} if trained_on == CLEAN else {"shards": f"{folder}/{PATTERN}"}
        if trained_on not in (CLEAN, DIRTY):
            of_data["data_samples"] = round((1 - SWAPPED) * NUM_SHARDS * SHARD_SIZE)
        arms |= {
            f"{method}, {trained_on}": {**fields, **of_data} for method, fields in METHODS.items()
        }
    file = out / f"seed{seed}" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    asked = {
        "question": "What does training again win back?",
        "primary": PRIMARY,
        "arms": arms,
        "seeds": 1,
        "first_seed": seed,
        "recipe": "demo/superclip_demo-model_40k_bs32",
        "measures": "demo",
    }
    file.write_text(yaml.safe_dump(asked, allow_unicode=True, sort_keys=False))
    folder = file.with_suffix("")
    superclip("study", str(file), "--jobs", "2", "--out", str(folder), "--runs", str(out / "runs"))
    return json.loads((folder / "study.json").read_text())["runs"]


def audit(
    out: Path, seed: int, records: list[dict], true: set[str]
) -> tuple[dict[str, Path], dict[str, float]]:
    """Audits the pairs; returns the shards of what each score keeps, and the percentage of it
    that is wrong."""
    shards, wrong = {}, {}
    runs = {record["arm"]: out / "runs" / record["run"] for record in records}
    for kept_by, (method, score) in SCORES.items():
        shards[kept_by] = out / "data" / f"seed{seed}-{method}-{score}".lower()
        if not shards[kept_by].exists():
            folder = out / f"seed{seed}" / f"audit-{method}".lower()
            superclip(
                "audit",
                f"{out}/data/seed{seed}-dirty/{PATTERN}",
                "--model",
                str(runs[f"{method}, {DIRTY}"]),
                "--out",
                str(folder),
                "--by",
                score,
                "--keep",
                str(1 - SWAPPED),
            )
            (folder / "kept").rename(shards[kept_by])
        kept = [key for shard in shards[kept_by].glob("*.tar") for key in _keys(shard)]
        wrong[kept_by] = 100 * sum(key not in true for key in kept) / len(kept)
    return shards, wrong


def of_seed(out: Path, seed: int) -> dict:
    """Returns one seed's measures of each method on each data, and the wrong captions that each
    score left in."""
    file = out / f"seed{seed}" / "found.json"
    if not file.exists():
        data = out / "data"
        dirty, left_alone = data / f"seed{seed}-dirty", data / f"seed{seed}-left-alone"
        true = set(write_swapped(Path("demo/data/scenes"), dirty, left_alone, seed))
        kept, wrong = audit(out, seed, study(out, seed, "dirty", {DIRTY: dirty}), true)
        records = study(out, seed, "again", {CLEAN: Path(), DIRTY: dirty, **kept, TRUE: left_alone})
        measures = {record["arm"]: record["measures"] for record in records}
        versions = records[0]["versions"]
        write_json(file, {"seed": seed, "measures": measures, "wrong": wrong, "versions": versions})
    return json.loads(file.read_text())


def tables(found: list[dict]) -> str:
    """Returns what was found in the primary measure, zero-shot, in Markdown."""
    rows, recorded = [], recorded_data(found)
    for data in recorded:
        wrong = str(_wrong(found, data))
        columns = [
            (str(_spread(found, method, data, PRIMARY)), difference(found, method, data, DIRTY))
            for method in METHODS
        ]
        rows.append(
            [
                data,
                wrong,
                *(
                    cell
                    for mean, gain in columns
                    for cell in (mean, "" if data == DIRTY else str(gain))
                ),
            ]
        )
    heads = [head for method in METHODS for head in (f"{method}, zero-shot", f"{method} − {DIRTY}")]
    parts = [markdown_table(["trained on", "wrong captions, %", *heads], rows)]
    rows = [
        [f"{one} − {other}", *(str(difference(found, method, one, other)) for method in METHODS)]
        for one, other in COMPARED
        if {one, other} <= {*recorded}
    ]
    parts.append(markdown_table(["zero-shot, difference paired by seed", *METHODS], rows))
    parts.append(
        f"Mean ± standard deviation over {len(found)} seeds; 95 % intervals by Student's t."
    )
    return "\n\n".join(parts)


def recorded_data(found: list[dict]) -> list[str]:
    """Returns the data that every seed was trained on."""
    return [data for data in DATA if all(f"CLIP, {data}" in of["measures"] for of in found)]


def _wrong(found: list[dict], data: str) -> Spread:
    """Returns the percentage of wrong captions in what was trained on."""
    return Spread([of["wrong"].get(data, 100 * SWAPPED if data == DIRTY else 0.0) for of in found])


def _spread(found: list[dict], method: str, data: str, measure: str) -> Spread:
    return Spread([of["measures"][f"{method}, {data}"][measure] for of in found])


def difference(
    found: list[dict], method: str, one: str, other: str, measure: str = PRIMARY
) -> PairedDifference:
    """Returns what a method gains by one data over another."""
    ours, theirs = (_spread(found, method, data, measure) for data in (one, other))
    return PairedDifference([our - their for our, their in zip(ours, theirs, strict=True)])


def draw(found: list[dict], path: Path) -> None:
    """Draws zero-shot by method and data: a dot per seed, a bar at the mean."""
    recorded = recorded_data(found)
    figure, grid = plt.subplots(1, len(METHODS), figsize=(11, 3), layout="constrained", sharey=True)
    for axes, method in zip(grid, METHODS, strict=True):
        for place, data in enumerate(recorded):
            values = _spread(found, method, data, PRIMARY).values
            axes.plot(
                values,
                [place] * len(values),
                ".",
                color="#7d7d7d" if method == "CLIP" else "#d1495b",
            )
            axes.plot(
                [sum(values) / len(values)] * 2,
                [place - 0.3, place + 0.3],
                color="black",
                linewidth=1.5,
            )
        axes.set_yticks(range(len(recorded)), recorded, fontsize=8)
        axes.set_title(f"{method} trained on", fontsize=9)
        axes.set_xlabel("zero-shot, %", fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    grid[0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(out: Path, num_seeds: int, first_seed: int = 0) -> None:
    found = []
    for seed in range(first_seed, first_seed + num_seeds):
        found.append(of_seed(out, seed))
        write_results(out, found)
    print(tables(found))


def write_results(out: Path, found: list[dict]) -> None:
    with open(out / "train_again.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "method", "trained on", "measure", "percent"])
        for of in found:
            for arm, measures in of["measures"].items():
                rows = (
                    [of["seed"], *arm.split(", ", 1), name, f"{value:.4f}"]
                    for name, value in measures.items()
                )
                writer.writerows(rows)
    write_json(out / "train_again.json", found)
    (out / "train_again.md").write_text(tables(found) + "\n")
    draw(found, out / "train_again.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
