"""Prints the tables of README.md from runs.csv, and draws figure.png: `python tables.py`."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from openclip_superclip.lab.reports.paired_differences import (
    PairedDifference,
    Spread,
    differences_by_seed,
)
from openclip_superclip.rendering import markdown_table, png, pyplot

HERE = Path(__file__).parent
BOTH = ("image_to_text_R@1", "text_to_image_R@1")
KEPT = {
    "kept class, test images, %": "same class, test pictures",
    "kept class, emoji, %": "same class, other drawings",
    "kept similarity of captions": "captions' similarity",
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

    def mean(self, column: str) -> float:
        return Spread(list(self.values(column).values())).mean

    def spread(self, column: str) -> str:
        return str(Spread(list(self.values(column).values())))

    def minus(self, other: "Arm", column: str) -> str:
        differences = differences_by_seed(self.values(column), other.values(column))
        return str(PairedDifference(list(differences.values())))

    def half_score(self) -> float:
        """Returns the mean R@1 of both directions, halfway to the start."""
        return sum(self.mean(f"half {name}") for name in BOTH) / 2

    def kept(self, weights: str) -> list[str]:
        """Returns what the towers keep with the `last` weights or `half` of them."""
        *classes, similarity = (self.mean(f"{weights} {name}") for name in KEPT.values())
        return [*(f"{value:.0f}" for value in classes), f"{similarity:.2f}"]


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
    order = list(COLORS)
    return sorted(
        of_stages(arms, "grid", "border"),
        key=lambda arm: (order.index(arm.setting.towers), float(arm.setting.lr)),
    )


def best_of_grid(arms: list[Arm]) -> Arm:
    return max(grid(arms), key=lambda arm: arm.mean("best"))


def scores(arm: Arm) -> list[str]:
    """Returns the cells of an arm's scores at the best pass, and which pass that was."""
    passes = sorted(int(value) for value in arm.values("best_pass").values())
    return [
        arm.spread("best"),
        *(f"{arm.mean(f'best {name}'):.1f}" for name in BOTH),
        ", ".join(map(str, passes)),
    ]


SCORES = ("score", "image→text", "text→image", "best pass")
HALF = ("score, α = 0.5", *(f"{name}, α = 0.5" for name in KEPT))


def tables(arms: list[Arm]) -> Iterable[str]:
    """Yields the tables of README.md in Markdown, those whose runs exist."""
    base = best_of_grid(arms)
    yield markdown_table(
        ["trained", "rate", *SCORES, *KEPT],
        [
            [arm.setting.towers, arm.setting.lr, *scores(arm), *arm.kept("last")]
            for arm in grid(arms)
        ],
    )
    yield markdown_table(
        ["trained", "rate", *HALF],
        [
            [arm.setting.towers, arm.setting.lr, f"{arm.half_score():.1f}", *arm.kept("half")]
            for arm in grid(arms)
        ],
    )
    yield markdown_table(
        ["method", "score", "− CLIP", "image→text − CLIP", "text→image − CLIP", *KEPT],
        [
            [
                arm.setting.method,
                arm.spread("best"),
                arm.minus(base, "best") if arm is not base else "",
                *(arm.minus(base, f"best {name}") if arm is not base else "" for name in BOTH),
                *arm.kept("last"),
            ]
            for arm in [base, *of_stages(arms, "class loss")]
        ],
    )
    by_passes = sorted([base, *of_stages(arms, "passes")], key=lambda arm: int(arm.setting.passes))
    yield markdown_table(
        ["passes", *SCORES, *KEPT],
        [[arm.setting.passes, *scores(arm), *arm.kept("last")] for arm in by_passes],
    )
    yield markdown_table(
        ["from scratch", *SCORES],
        [[arm.setting.method, *scores(arm)] for arm in of_stages(arms, "scratch")],
    )
    yield markdown_table(
        ["2,048 scenes, rate", *SCORES, *KEPT],
        [[arm.setting.lr, *scores(arm), *arm.kept("last")] for arm in of_stages(arms, "scenes")],
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
        kept = [arm.mean("last same class, other drawings") for arm in of_towers]
        by_kept.plot(kept, means, "o", color=color)
        half_kept = [arm.mean("half same class, other drawings") for arm in of_towers]
        by_kept.plot(
            half_kept, [arm.half_score() for arm in of_towers], "o", color=color, fillstyle="none"
        )
    by_rate.set_xscale("log")
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
