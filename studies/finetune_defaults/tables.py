"""Prints the tables of README.md from runs.csv, and draws figure.png: `python tables.py`."""

import csv
import statistics
from pathlib import Path
from typing import NamedTuple

from openclip_superclip.lab.reports.paired_differences import PairedDifference, Spread

from openclip_superclip.rendering import markdown_table, png, pyplot

HERE = Path(__file__).parent
RATE_STAGES = ("grid", "border", "second border")
BOTH = ("image_to_text_R@1", "text_to_image_R@1")
KEPT = {  # by head: the column of runs.csv after `last` or `half`
    "score, last pass": "",
    "test images, %": "same class, test pictures",
    "emoji, %": "same class, other drawings",
    "captions": "captions' similarity",
}
COLORS = {
    "all weights": "#d1495b",
    "LoRA 16, text tower": "#4f6d7a",
    "text tower locked": "#d08700",
}


class Setting(NamedTuple):
    """The columns of runs.csv that name an arm."""

    stage: str
    data: str
    towers: str
    lr: str
    method: str
    passes: str


class Arm:
    """The runs of one setting, by seed."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.runs: dict[int, dict[str, str]] = {}

    def values(self, column: str) -> dict[int, float]:
        return {seed: float(run[column]) for seed, run in self.runs.items() if run[column]}

    def rate(self) -> str:
        return f"{float(self.setting.lr):.0e}".replace("e-0", "e-")

    def mean(self, column: str) -> float:
        return Spread(self.values(column).values()).mean

    def spread(self, column: str) -> str:
        return str(Spread(self.values(column).values()))

    def minus(self, other: "Arm", column: str) -> str:
        return str(PairedDifference.by_seed(self.values(column), other.values(column)))

    def score(self, weights: str) -> float:
        """Returns the mean R@1 of both directions of the `last` weights or `half` of them."""
        return statistics.mean(self.mean(f"{weights} {name}") for name in BOTH)


def read_arms(file: Path = HERE / "runs.csv") -> list[Arm]:
    arms: dict[Setting, Arm] = {}
    with file.open(encoding="utf-8") as content:
        for run in csv.DictReader(content):
            setting = Setting(*(run[name] for name in Setting._fields))
            arms.setdefault(setting, Arm(setting)).runs[int(run["seed"])] = run
    return list(arms.values())


def of_stages(arms: list[Arm], *stages: str) -> list[Arm]:
    return [arm for arm in arms if arm.setting.stage in stages]


def grid(arms: list[Arm]) -> list[Arm]:
    """Returns the arms of the grid and its border, by setting of the towers and by rate."""
    return sorted(of_stages(arms, *RATE_STAGES), key=towers_and_rate)


def towers_and_rate(arm: Arm) -> tuple[int, float]:
    return list(COLORS).index(arm.setting.towers), float(arm.setting.lr)


def of_scenes(arms: list[Arm], *stages: str) -> list[list[str]]:
    """Returns the cells of arms that train on scenes, by setting of the towers and by rate."""
    return [
        [arm.setting.towers, arm.rate(), *scores(arm), *kept(arm, "last")]
        for arm in sorted(of_stages(arms, *stages), key=towers_and_rate)
    ]


def best_of_grid(arms: list[Arm]) -> Arm:
    return max(grid(arms), key=lambda arm: arm.mean("best"))


def scores(arm: Arm) -> list[str]:
    """Returns the cells of an arm's scores at the best pass, which pass that was, and the time."""
    passes = sorted(int(value) for value in arm.values("best_pass").values())
    return [
        arm.spread("best"),
        *(f"{arm.mean(f'best {name}'):.1f}" for name in BOTH),
        ", ".join(map(str, passes)),
        f"{arm.mean('cpu_seconds'):.0f}",
    ]


def kept(arm: Arm, weights: str) -> list[str]:
    """Returns the cells of the score of the `last` weights or `half` of them, and what the towers
    keep."""
    *classes, similarity = (arm.mean(f"{weights} {name}") for name in list(KEPT.values())[1:])
    return [
        f"{arm.score(weights):.1f}",
        *(f"{value:.0f}" for value in classes),
        f"{similarity:.2f}",
    ]


def compared(arm: Arm, base: Arm) -> list[str]:
    """Returns the cells of an arm's score and its differences from CLIP without the class loss."""
    columns = ("best", *(f"best {name}" for name in BOTH))
    differences = ["" if arm is base else arm.minus(base, column) for column in columns]
    seconds = f"{arm.mean('cpu_seconds'):.0f}"
    return [arm.setting.method, arm.spread("best"), *differences, seconds]


SCORES = ("score", "image→text", "text→image", "best pass", "CPU s")


def tables(arms: list[Arm]) -> list[str]:
    """Returns the tables of README.md in Markdown."""
    base = next(arm for arm in arms if is_base(arm, of_stages(arms, "class loss")))
    heads = ["trained", "rate"]
    named = [(arm, [arm.setting.towers, arm.rate()]) for arm in grid(arms)]
    by_passes = sorted(
        [best_of_grid(arms), *of_stages(arms, "passes")], key=lambda arm: int(arm.setting.passes)
    )
    return [
        markdown_table([*heads, *SCORES], [[*name, *scores(arm)] for arm, name in named]),
        markdown_table(
            [*heads, *KEPT, "score, α = 0.5", *(f"{name}, α = 0.5" for name in list(KEPT)[1:])],
            [[*name, *kept(arm, "last"), *kept(arm, "half")] for arm, name in named],
        ),
        markdown_table(
            ["method", "score", *(f"{name} − CLIP" for name in SCORES[:3]), "CPU s"],
            [compared(arm, base) for arm in [base, *of_stages(arms, "class loss")]],
        ),
        markdown_table(
            ["passes", *SCORES, *KEPT],
            [[arm.setting.passes, *scores(arm), *kept(arm, "last")] for arm in by_passes],
        ),
        markdown_table(
            ["method", *SCORES, "score, last pass"],
            [
                [arm.setting.method, *scores(arm), f"{arm.score('last'):.1f}"]
                for arm in of_stages(arms, "scratch")
            ],
        ),
        markdown_table([*heads, *SCORES, *KEPT], of_scenes(arms, "scenes", "rates for scenes")),
        markdown_table([*heads, *SCORES, *KEPT], of_scenes(arms, "more scenes")),
    ]


def is_base(arm: Arm, others: list[Arm]) -> bool:
    """Returns whether `arm` is the arm of the grid to which `others` add the class loss."""
    return any(
        arm.setting.stage in RATE_STAGES
        and (arm.setting.towers, arm.setting.lr) == (other.setting.towers, other.setting.lr)
        for other in others
    )


def draw(arms: list[Arm]) -> bytes:
    """Draws score over rate, and score over what the image tower keeps, as trained and halfway."""
    figure, (by_rate, by_kept) = pyplot().subplots(1, 2, figsize=(10, 4), sharey=True)
    for towers, color in COLORS.items():
        of_towers = [arm for arm in grid(arms) if arm.setting.towers == towers]
        rates = [float(arm.setting.lr) for arm in of_towers]
        means = [arm.mean("best") for arm in of_towers]
        by_rate.plot(rates, means, color=color, marker="o", label=towers)
        for rate, arm in zip(rates, of_towers, strict=True):
            values = list(arm.values("best").values())
            by_rate.plot([rate] * len(values), values, ".", color=color, alpha=0.5)
        for weights, fill in (("last", "full"), ("half", "none")):
            kept = [arm.mean(f"{weights} {KEPT['emoji, %']}") for arm in of_towers]
            scores = [arm.score(weights) for arm in of_towers]
            by_kept.plot(kept, scores, "o", color=color, fillstyle=fill)
    by_rate.set_xscale("log")
    ticks = {float(arm.setting.lr): arm.rate() for arm in grid(arms)}
    by_rate.set_xticks(list(ticks), list(ticks.values()))
    by_rate.minorticks_off()
    by_rate.set_xlabel("learning rate")
    by_rate.set_ylabel("score: mean R@1 of both directions, %")
    by_rate.legend(frameon=False)
    by_kept.set_xlabel("emoji that keep their ImageNet class, % (open: α = 0.5)")
    for axes in (by_rate, by_kept):
        axes.grid()
    return png(figure)


if __name__ == "__main__":
    read = read_arms()
    print(*tables(read), sep="\n\n")
    (HERE / "figure.png").write_bytes(draw(read))
