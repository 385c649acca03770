"""How well `superclip audit` finds errors that were planted into captions of the demo's scenes, seed by seed.

`python docs/audit/measure.py OUT RUNS` measures the last checkpoints of the finished runs RUNS/clip_seedN and
RUNS/superclip_lr-0.001_seedN, as the study one_batch leaves them, and writes planted.csv, planted.json, planted.md and
planted.png into OUT. What OUT/measured.json holds already is not measured again.
"""

import csv
import json
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from openclip_superclip.audit.planted_errors import measure
from openclip_superclip.audit.scorer import PairScorer
from openclip_superclip.demo.scenes import DESIGNERS, UNSEEN_DESIGNERS
from openclip_superclip.environment import versions
from openclip_superclip.pages import markdown_table
from openclip_superclip.studies.statistics import PairedDifference, Spread
from openclip_superclip.words.tagger import open_checkpoint, read_model

ARMS = {"CLIP": "clip", "SuperCLIP": "superclip_lr-0.001"}  # each at its own learning rate, which the study chose
DRAWINGS = {"drawings as in training": DESIGNERS, "drawings by another designer": UNSEEN_DESIGNERS}
SCORES = ("CLIP score", "class loss", "support", "class loss and CLIP score", "support and CLIP score")
PLANTED = {"swapped": "a fifth of the captions swapped", "replaced": "one object wrong in a fifth of the captions"}
COMPARED = [  # (arm, score) with (arm, score)
    (("SuperCLIP", "class loss"), ("CLIP", "CLIP score")),
    (("SuperCLIP", "class loss"), ("SuperCLIP", "CLIP score")),
    (("SuperCLIP", "support"), ("SuperCLIP", "class loss")),
    (("SuperCLIP", "support and CLIP score"), ("SuperCLIP", "CLIP score")),
    (("SuperCLIP", "support and CLIP score"), ("CLIP", "CLIP score")),
]


def measured(out: Path, runs: Path) -> dict[str, dict]:
    """Returns the measures by "arm|seed|drawings"; those that are new are kept as they come."""
    file = out / "measured.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for seed, arm, checkpoint in finished(runs):
        missing = [drawings for drawings in DRAWINGS if f"{arm}|{seed}|{drawings}" not in found]
        if not missing:
            continue
        opened = open_checkpoint(read_model(checkpoint))
        scorer = PairScorer(opened)
        for drawings in missing:
            measures = measure(scorer, opened.preprocess(), seed, designers=tuple(DRAWINGS[drawings]))
            found[f"{arm}|{seed}|{drawings}"] = measures
            file.write_text(json.dumps(found, indent=1))
            print(arm, seed, drawings, file=sys.stderr, flush=True)
    return found


def finished(runs: Path) -> list[tuple[int, str, Path]]:
    """Returns seed, arm and last checkpoint of the finished runs, seed by seed."""
    found = []
    for arm, prefix in ARMS.items():
        for run in runs.glob(f"{prefix}_seed*"):
            seed = re.fullmatch(rf"{re.escape(prefix)}_seed(\d+)", run.name)
            if seed and int(seed[1]) < 1000 and (run / "demo-test.json").exists():  # those from 1000 on chose the rates
                epochs = {int(path.stem.removeprefix("epoch_")): path for path in run.glob("checkpoints/epoch_*.pt")}
                found.append((int(seed[1]), arm, epochs[max(epochs)]))
    return sorted(found)


def values(found: dict, arm: str, drawings: str, name: str) -> dict[int, float]:
    """Returns a measure by seed."""
    rows = {key.split("|")[1]: of for key, of in found.items() if key.startswith(f"{arm}|") and key.endswith(drawings)}
    return {int(seed): of[name] for seed, of in rows.items() if name in of}


def difference(found: dict, kind: str, drawings: str, *of: tuple[str, str]) -> PairedDifference:
    """Returns the differences between two scores, each with its arm, one a seed."""
    ours, theirs = (values(found, arm, drawings, f"{kind}, {score}") for arm, score in of)
    return PairedDifference([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def tables(found: dict) -> str:
    """Returns what was found, in Markdown."""
    parts = []
    for kind, title in PLANTED.items():
        rows = [
            [arm, score, *(_spread(values(found, arm, drawings, f"{kind}, {score}")) for drawings in DRAWINGS)]
            for arm in ARMS
            for score in SCORES
            if arm == "SuperCLIP" or score == "CLIP score"
        ]
        parts.append(f"AUROC in percent, {title}:\n\n" + markdown_table(["model", "score", *DRAWINGS], rows))
        rows = [
            [
                f"{one[1]} of {one[0]} − {other[1]} of {other[0]}",
                *(_interval(difference(found, kind, drawings, one, other)) for drawings in DRAWINGS),
            ]
            for one, other in COMPARED
        ]
        parts.append(markdown_table(["difference, paired by seed", *DRAWINGS], rows))
    names = next(of for key, of in found.items() if key.startswith("SuperCLIP|"))
    names = [name for name in names if name.split(", ", 1)[1] not in SCORES]
    rows = [[name, *(_spread(values(found, "SuperCLIP", drawings, name)) for drawings in DRAWINGS)] for name in names]
    parts.append("Words, in percent, SuperCLIP:\n\n" + markdown_table(["", *DRAWINGS], rows))
    seeds = {arm: len(values(found, arm, next(iter(DRAWINGS)), "swapped, CLIP score")) for arm in ARMS}
    told = " and ".join(f"{number} seeds of {arm}" for arm, number in seeds.items())
    parts.append(f"Mean ± standard deviation over {told}; 95 % intervals by Student's t.")
    return "\n\n".join(parts)


def _spread(by_seed: dict[int, float]) -> str:
    spread = Spread(list(by_seed.values()))
    return f"{spread.mean:.2f}" + (f" ± {spread.std:.2f}" if spread.std is not None else "")


def _interval(found: PairedDifference) -> str:
    low, high = found.interval or (found.mean, found.mean)
    return f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def draw(found: dict, path: Path) -> None:
    """Draws the AUROC of each score: a dot a seed, a bar the mean."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 6), layout="constrained")
    shown = [("CLIP", "CLIP score")] + [("SuperCLIP", score) for score in SCORES]
    for row, (kind, title) in zip(grid, PLANTED.items(), strict=True):
        for axes, drawings in zip(row, DRAWINGS, strict=True):
            for place, (arm, score) in enumerate(shown):
                of = list(values(found, arm, drawings, f"{kind}, {score}").values())
                axes.plot(of, [place] * len(of), ".", color="#7d7d7d" if arm == "CLIP" else "#d1495b", markersize=5)
                axes.plot([sum(of) / len(of)] * 2, [place - 0.3, place + 0.3], color="black", linewidth=1.5)
            axes.set_yticks(range(len(shown)), [f"{arm}: {score}" for arm, score in shown], fontsize=8)
            axes.invert_yaxis()
            axes.set_title(f"{title}; {drawings}", fontsize=9)
            axes.set_xlabel("AUROC, %", fontsize=8)
            axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(out: Path, runs: Path) -> None:
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    found = measured(out, runs)
    with open(out / "planted.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "seed", "drawings", "measure", "percent"])
        for key, measures in sorted(found.items()):
            writer.writerows([*key.split("|"), name, f"{value:.4f}"] for name, value in measures.items())
    record = {"runs": ARMS, "versions": versions("python", "torch", "open_clip_torch", "openclip_superclip", "numpy")}
    (out / "planted.json").write_text(json.dumps({**record, "measured": found}, indent=1) + "\n")
    (out / "planted.md").write_text(tables(found) + "\n")
    draw(found, out / "planted.png")
    print(tables(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
