"""The verdicts of docs/evidence.md, computed from the records of the studies alone.

`python docs/studies/verdicts.py` writes verdicts.csv (one row per comparison and measure) and the
tables between the markers in docs/evidence.md and in each study's README.md. It reads the runs in
study.json, which study.csv repeats with two decimals, and docs/audit/train_again.csv.

Holm's correction: the comparisons of a study by its primary measure are one family, and those by
its other measures are another. Studies that cannot answer are in no family. Comparisons of the same
runs count once. A verdict counts at 5 % after the correction. Until November 2026, the primary
comparisons of all studies were one family, which most protocols name; where that rule gives another
verdict, the tables state both.
"""

import csv
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import nct, t

from openclip_superclip.lab.studies.study_file import TUNING_SEEDS

HERE = Path(__file__).parent
DOCS = HERE.parent
AUDIT = "train_again"
EARLIER, EARLIER_FLIP, EARLIER_BATCH = "vit/earlier", "flip/earlier", "batch_size/earlier"
AFTER_REVIEW = "added after the results were known"
CANNOT_ANSWER = {  # why, by study, and by measure if only one is concerned
    EARLIER: "unequal rates",
    EARLIER_FLIP: "unequal rates",
    "flip_longer": "unequal rates",
    EARLIER_BATCH: "wrong contrast",
    ("vit_dense", "mIoU"): "scores near chance",
}
LOWER_IS_BETTER = ("depth_RMSE",)
TITLES = {
    "zero_shot": "zero-shot",
    "image_to_text_R@1": "image→text R@1",
    "text_to_image_R@1": "text→image R@1",
    "tagging": "tagging",
    "linear_probe": "linear probe",
    "mIoU": "mIoU",
    "depth_RMSE": "depth RMSE, cm",
    "new_combinations": "new combinations",
    "image_to_long_text_R@1": "image→long text R@1",
    "long_text_to_image_R@1": "long text→image R@1",
    "seen_zero_shot": "seen: zero-shot",
    "seen_image_to_text_R@1": "seen: image→text R@1",
    "seen_text_to_image_R@1": "seen: text→image R@1",
    "seen_tagging": "seen: tagging",
    "seen_linear_probe": "seen: linear probe",
}


@dataclass
class Comparison:
    """A measure's differences of two arms, paired by seed."""

    study: str
    arm: str
    baseline: str
    # a value of the swept field, "mean …" or "per doubling"; empty if the study sweeps nothing
    where: str
    measure: str
    is_primary: bool
    seeds: list[int]
    differences: list[float]
    means: tuple[float, float] | None = None  # of the baseline and of the arm
    note: str = ""
    holm: float = 1.0  # the corrected p-value in the study's family
    holm_of_all: float | None = None  # in the family of the primary comparisons of all studies

    @property
    def flaw(self) -> str:
        """Why the numbers of the study cannot answer; empty if they can."""
        return CANNOT_ANSWER.get(self.study, "") or CANNOT_ANSWER.get(
            (self.study, self.measure), ""
        )

    @property
    def depends_on_family(self) -> bool:
        """Whether it is significant in only one of the two families."""
        return self.holm_of_all is not None and (self.holm <= 0.05) != (self.holm_of_all <= 0.05)

    @property
    def name(self) -> str:
        return f"{self.arm} − {self.baseline}" + (f", {self.where}" if self.where else "")

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return statistics.mean(self.differences)

    @property
    def std(self) -> float:
        return statistics.stdev(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean, by Student's t over the seeds."""
        half = t.ppf(0.975, self.n - 1) * self.std / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """The two-sided p-value of the paired t-test; 1 if all differences are zero."""
        if self.std == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * t.sf(abs(self.mean) / (self.std / math.sqrt(self.n)), self.n - 1))

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.interval[0]:+.1f}, {self.interval[1]:+.1f}]"

    def verdict(self, claimed: int = 1) -> str:
        """Whether the difference has the claimed sign (1 or -1), at 5 % after Holm's correction."""
        if self.flaw:
            return "cannot answer"
        if not any(self.differences):
            return "equal"
        if self.holm <= 0.05:
            return "shown" if self.mean * claimed > 0 else "opposite"
        return "not after correction" if self.p <= 0.05 else "not shown"


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's step-down correction for their number, in their order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def power(effect: float, std: float, n: int) -> float:
    """The probability that the 95 % interval of n paired differences excludes zero."""
    edge, shift = t.ppf(0.975, n - 1), effect / std * math.sqrt(n)
    return float(nct.sf(edge, n - 1, shift) + nct.cdf(-edge, n - 1, shift))


def read_study(folder: Path) -> list[Comparison]:
    """The comparisons of a recorded study, of every measure, without Holm's correction."""
    record = json.loads((folder / "study.json").read_text())
    name, runs, primary = folder.relative_to(HERE).as_posix(), record["runs"], record["primary"]
    swept = next(iter(record["study"]["cells"]), None)
    measures = [primary, *(measure for measure in runs[0]["measures"] if measure != primary)]
    scores = {(run["arm"], run["cell"], run["seed"]): run["measures"] for run in runs}
    values = list(dict.fromkeys(run["cell"] for run in runs))
    found: list[Comparison] = []

    def difference(arm: str, baseline: str, value, measure: str, seed: int) -> float:
        return scores[arm, value, seed][measure] - scores[baseline, value, seed][measure]

    def add(
        pair, where: str, measure: str, over: Sequence, combine: Callable, note: str = ""
    ) -> None:
        seeds = sorted(
            set.intersection(
                *(
                    {s for a, v, s in scores if (a, v) == (arm, value)}
                    for arm in pair
                    for value in over
                )
            )
        )
        differences = [
            combine([difference(*pair, value, measure, seed) for value in over]) for seed in seeds
        ]
        means = None
        if len(over) == 1:
            arm, baseline = (
                statistics.mean(scores[one, over[0], s][measure] for s in seeds) for one in pair
            )
            means = baseline, arm
        found.append(
            Comparison(
                name, *pair, where, measure, measure == primary, seeds, differences, means, note
            )
        )

    def slope(differences: list[float]) -> float:
        return statistics.linear_regression(
            [math.log2(value) for value in values], differences
        ).slope

    for pair, note in _pairs(record["differences"], name):
        for measure in measures:
            for value in values:
                add(
                    pair,
                    f"{swept} {value}" if swept else "",
                    measure,
                    [value],
                    statistics.mean,
                    note,
                )
            if swept:
                add(pair, "mean", measure, values, statistics.mean, note)
                add(pair, "per doubling", measure, values, slope, note)
            if name == "learning_rate":
                add(
                    pair,
                    "mean up to CLIP's best rate",
                    measure,
                    values[:2],
                    statistics.mean,
                    AFTER_REVIEW,
                )
    return found


def _pairs(recorded: list[dict], name: str) -> list[tuple[tuple[str, str], str]]:
    pairs = dict.fromkeys(((one["arm"], one["baseline"]) for one in recorded), "")
    if name == "vit":
        pairs["pooled", "SuperCLIP at CLIP's rate"] = AFTER_REVIEW
    if name == "captions":
        pairs["SuperCLIP, dual", "SuperCLIP, short"] = AFTER_REVIEW
    return list(pairs.items())


def read_audit(file: Path) -> list[Comparison]:
    """The comparisons of training again on the pairs that an audit keeps."""
    rows = list(csv.DictReader(file.read_text().splitlines()))
    scores = {
        (r["method"], r["trained on"], r["measure"], int(r["seed"])): float(r["percent"])
        for r in rows
    }
    measures, seeds = (
        list(dict.fromkeys(r["measure"] for r in rows)),
        sorted({int(r["seed"]) for r in rows}),
    )
    clip, loss, both = (
        f"kept by {score}"
        for score in (
            "CLIP score of CLIP",
            "class loss of SuperCLIP",
            "CLIP score and support of SuperCLIP",
        )
    )
    pairs = [(kept, "all pairs") for kept in (clip, loss, both)]
    pairs += [
        (loss, clip),
        (both, clip),
        (loss, "the pairs left alone"),
        (both, "the pairs left alone"),
    ]
    found = []
    for method in ("CLIP", "SuperCLIP"):
        for kept, other in pairs:
            for measure in measures:
                ours, theirs = (
                    [scores[method, data, measure, seed] for seed in seeds]
                    for data in (kept, other)
                )
                differences = [one - another for one, another in zip(ours, theirs, strict=True)]
                means = statistics.mean(theirs), statistics.mean(ours)
                is_primary = measure == "zero_shot"
                found.append(
                    Comparison(
                        AUDIT,
                        kept,
                        other,
                        f"{method}",
                        measure,
                        is_primary,
                        seeds,
                        differences,
                        means,
                    )
                )
    return found


def comparisons() -> list[Comparison]:
    """All comparisons of all records, with Holm's correction."""
    found = [one for file in sorted(HERE.rglob("study.json")) for one in read_study(file.parent)]
    found += read_audit(DOCS / "audit" / "train_again.csv")
    able = [one for one in found if not one.flaw]
    for one, corrected in corrected_by_family(able, lambda one: (one.study, one.is_primary)):
        one.holm = corrected
    for one, corrected in corrected_by_family(found, lambda one: "" if one.is_primary else None):
        one.holm_of_all = corrected
    return found


def corrected_by_family(
    found: Sequence[Comparison], family_of: Callable
) -> Iterator[tuple[Comparison, float]]:
    """Yields comparisons with their corrected p-values; `family_of` returns a comparison's
    family, or None."""
    families: dict[object, dict[tuple, list[Comparison]]] = {}
    for one in found:
        family = family_of(one)
        if family is not None and any(one.differences):  # equal runs are no test
            families.setdefault(family, {}).setdefault(tuple(one.differences), []).append(one)
    for family in families.values():
        p_values = holm([same[0].p for same in family.values()])
        for same, corrected in zip(family.values(), p_values, strict=True):
            for one in same:
                yield one, corrected


@dataclass(frozen=True)
class Claim:
    """A row of the evidence page: a claim, the paper's figure, and the comparison that tests it."""

    text: str
    paper: str
    study: str
    comparison: str
    sign: int = 1  # of the claimed difference
    measure: str = ""  # if it is not the study's primary measure
    page: str = ""

    @property
    def link(self) -> str:
        return self.page or f"studies/{self.study}/README.md"


IMAGENET = "ImageNet 60.5 → 63.5 (Table 2)"
CLAIMS = [
    Claim(
        "Better zero-shot, each method at its own best learning rate",
        IMAGENET,
        "one_batch",
        "SuperCLIP − CLIP",
    ),
    Claim("… than CLIP with 10 % more samples", "", "one_batch", "SuperCLIP − CLIP, equal time"),
    Claim("… both at CLIP's best rate", "", "placebos", "SuperCLIP − CLIP"),
    Claim("… other seeds, another 100 objects", "", "second_draw", "SuperCLIP − CLIP"),
    Claim(
        "… drawings by a designer absent from training", "", "unseen_drawings", "SuperCLIP − CLIP"
    ),
    Claim(
        "… at learning rates up to CLIP's best",
        "",
        "learning_rate",
        "SuperCLIP − CLIP, mean up to CLIP's best rate",
    ),
    Claim(
        "Control: captions of other images remove the gain",
        "",
        "placebos",
        "captions shuffled − CLIP",
        -1,
    ),
    Claim(
        "Control: a head without gradient to the tower is CLIP",
        "",
        "placebos",
        "head detached − CLIP",
    ),
    Claim(
        "Smaller batches gain more, image→text (points per doubling)",
        "zero-shot +5.6 at 1K, +3.1 at 16K (Figure 4)",
        "batch_size",
        "SuperCLIP − CLIP, per doubling",
        -1,
    ),
    Claim(
        "Smaller batches gain more (points per doubling; earlier study)",
        "+5.6 at 1K, +3.1 at 16K (Figure 4)",
        EARLIER_BATCH,
        "SuperCLIP − CLIP, per doubling",
        -1,
    ),
    Claim(
        "Helps with long captions (text→image)",
        "COCO 23.6 → 30.6 (Table 5)",
        "captions",
        "SuperCLIP, long − CLIP, long",
    ),
    Claim("… with short captions", "29.0 → 31.3", "captions", "SuperCLIP, short − CLIP, short"),
    Claim("… with mixed captions", "", "captions", "SuperCLIP, mixed − CLIP, mixed"),
    Claim(
        "Dual captions beat short ones",
        "31.3 → 34.1",
        "captions",
        "SuperCLIP, dual − SuperCLIP, short",
    ),
    Claim(
        "Dual captions beat CLIP on mixed ones",
        "32.7 → 34.1",
        "captions",
        "SuperCLIP, dual − CLIP, mixed",
    ),
    Claim("λ = 1 beats λ = 0.4", "ImageNet 44.1 → 47.1 (Table 9)", "weight", "λ 1 − λ 0.4"),
    Claim(
        "IDF weights help (here: a lower weight of the comma)",
        "ImageNet 44.8 → 47.1 (Table 10)",
        "idf",
        "IDF online − IDF off",
    ),
    Claim("Helps SigLIP", "ImageNet 60.4 → 64.1 (Table 6)", "siglip", "SuperSigLIP − SigLIP"),
    Claim("Helps FLIP", "ImageNet 58.1 → 61.3 (Table 6)", "flip", "SuperFLIP − FLIP"),
    Claim("… with a head on the class token", "", "flip_head", "class token − FLIP"),
    Claim("… which beats the paper's head", "", "flip_head", "class token − SuperFLIP"),
    Claim("… (earlier study)", "", EARLIER_FLIP, "SuperFLIP − FLIP"),
    Claim("… (earlier study) with twice the samples", "", "flip_longer", "SuperFLIP − FLIP"),
    Claim("Small ViT: better zero-shot (earlier study)", "", EARLIER, "SuperCLIP − CLIP"),
    Claim(
        "Small ViT: better zero-shot, each method at its own best rate",
        IMAGENET,
        "vit",
        "SuperCLIP − CLIP",
    ),
    Claim(
        "Small ViT: better zero-shot, both at CLIP's best rate",
        "",
        "vit",
        "SuperCLIP at CLIP's rate − CLIP",
    ),
    Claim(
        "Small ViT: a head on the class token beats the paper's, both at 2e-3",
        "",
        "vit",
        "pooled − SuperCLIP",
    ),
    Claim("… and the paper's at 1e-3", "", "vit", "pooled − SuperCLIP at CLIP's rate"),
    Claim("Small ViT: a head on the class token beats CLIP", "", "vit", "pooled − CLIP"),
    Claim(
        "Small ViT, four times the samples: better zero-shot, CLIP's rate",
        "",
        "vit_samples",
        "SuperCLIP − CLIP",
    ),
    Claim("… a head on the class token beats the paper's", "", "vit_samples", "pooled − SuperCLIP"),
    Claim("… a head on the class token beats CLIP", "", "vit_samples", "pooled − CLIP"),
    Claim(
        "Small ViT with average pooling: better zero-shot, CLIP's rate",
        "",
        "vit_average",
        "SuperCLIP − CLIP",
    ),
    Claim(
        "Small ViT with eight layers: better zero-shot, CLIP's rate",
        "",
        "vit_deep",
        "SuperCLIP − CLIP",
    ),
    Claim("… a head on the class token beats the paper's", "", "vit_deep", "pooled − SuperCLIP"),
    Claim("… a head on the class token beats CLIP", "", "vit_deep", "pooled − CLIP"),
    Claim("Small ViT: λ = 0.25 beats λ = 1", "", "vit_weight", "λ 0.25 − λ 1"),
    Claim("… λ = 0.5 beats λ = 1", "", "vit_weight", "λ 0.5 − λ 1"),
    Claim("… λ = 2 beats λ = 1", "", "vit_weight", "λ 2 − λ 1"),
    Claim("… λ = 1 beats CLIP, other seeds", "", "vit_weight", "λ 1 − CLIP"),
    Claim(
        "Small ViT: beats a class loss with a constant target",
        "",
        "vit_controls",
        "SuperCLIP − constant target",
    ),
    Claim("… a second contrastive loss", "", "vit_controls", "SuperCLIP − second contrastive"),
    Claim("… the class loss alone", "", "vit_controls", "SuperCLIP − class loss alone"),
    Claim("Control: a constant target beats CLIP", "", "vit_controls", "constant target − CLIP"),
    Claim(
        "Control: a second contrastive loss beats CLIP",
        "",
        "vit_controls",
        "second contrastive − CLIP",
    ),
    Claim(
        "Small ViT: a head on the sum of both inputs beats the paper's",
        "",
        "vit_head",
        "both − SuperCLIP",
    ),
    Claim("… and a head on the class token", "", "vit_head", "both − pooled"),
    Claim(
        "Small ViT: better frozen patch tokens: segmentation",
        "Table 7 (tuned towers)",
        "vit_dense",
        "SuperCLIP − CLIP",
    ),
    Claim("… depth", "", "vit_dense", "SuperCLIP − CLIP", -1, measure="depth_RMSE"),
    Claim(
        "Unseen drawings, small ViT: better zero-shot, CLIP's rate",
        "",
        "transfer",
        "SuperCLIP − CLIP",
    ),
    Claim("… a head on the class token beats CLIP", "", "transfer", "pooled − CLIP"),
    Claim("… and the paper's head", "", "transfer", "pooled − SuperCLIP"),
    Claim(
        "Long tail, careless captions, unseen drawings: better zero-shot, small ViT",
        "",
        "natural",
        "SuperCLIP − CLIP",
    ),
    Claim("… with the head on the class token", "", "natural", "pooled − CLIP"),
    Claim(
        "Beyond the paper, same data: equally long gradients beat the paper's recipe",
        "",
        "ideas",
        "equal gradients − SuperCLIP",
    ),
    Claim("… and the head on the class token alone", "", "ideas", "equal gradients − pooled"),
    Claim(
        "Better frozen patch tokens: segmentation",
        "Table 7 (tuned towers)",
        "dense",
        "SuperCLIP − CLIP",
    ),
    Claim("… depth", "", "dense", "SuperCLIP − CLIP", -1, measure="depth_RMSE"),
    Claim(
        "Fine-tuning of two pretrained towers on 512 pictures: better image→text R@1",
        "",
        "stamps",
        "SuperCLIP − CLIP",
    ),
    Claim("… with the head on the pooled vector", "", "stamps", "pooled − CLIP"),
    Claim(
        "Dropping the pairs with the highest class loss repairs CLIP's training on wrong captions",
        "",
        AUDIT,
        "kept by class loss of SuperCLIP − all pairs, CLIP",
        page="audit/README.md",
    ),
    Claim(
        "… better than dropping by CLIP's own CLIP score",
        "",
        AUDIT,
        "kept by class loss of SuperCLIP − kept by CLIP score of CLIP, CLIP",
        page="audit/README.md",
    ),
    Claim(
        "… the same, training SuperCLIP",
        "",
        AUDIT,
        "kept by class loss of SuperCLIP − kept by CLIP score of CLIP, SuperCLIP",
        page="audit/README.md",
    ),
]


def tested(claim: Claim, found: Sequence[Comparison]) -> Comparison | None:
    """The comparison that tests a claim, None if its study has no record yet."""
    for one in found:
        is_measure = one.measure == claim.measure if claim.measure else one.is_primary
        if is_measure and (one.study, one.name) == (claim.study, claim.comparison):
            return one
    return None


def p_text(p: float) -> str:
    digits = 4 if f"{p:.3f}" == "0.050" else 3 if p < 0.1 else 2
    return "p < 0.001" if p < 0.001 else f"p = {p:.{digits}f}"


# of a study's test images and captions; the others have seen drawings and clean captions
CONDITIONS = {
    "unseen_drawings": "unseen, clean",
    "batch_size": "unseen, clean",
    "natural": "unseen, careless",
    "ideas": "unseen, careless",
    "captions": "seen, as named",
    "transfer": "unseen, clean",
    "stamps": "unseen, human",
    AUDIT: "seen, some wrong",
}


def evidence_table(found: Sequence[Comparison]) -> str:
    """A row per claim; all models train from scratch."""
    lines = [
        "| claim | paper | drawings, captions | here | n | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        one = tested(claim, found)
        if one is None:
            continue
        here = f"{one.means[0]:.1f} → {one.means[1]:.1f}, {one}" if one.means else f"{one}"
        condition = CONDITIONS.get(claim.study, "seen, clean")
        row = [
            f"[{claim.text}]({claim.link})",
            claim.paper,
            condition,
            here,
            f"{one.n}",
            _verdict_text(claim, one),
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _verdict_text(claim: Claim, one: Comparison) -> str:
    if one.flaw:
        return f"cannot answer: {one.flaw}"
    text = f"**{one.verdict(claim.sign)}**"
    if any(one.differences):
        text += f", {p_text(one.holm)}"
    if one.depends_on_family:
        text += f" (over all studies: {p_text(one.holm_of_all)})"
    return f"{text} ‡" if one.note else text


@dataclass(frozen=True)
class Case:
    """A row of docs/when.md: a use, the study nearest to it, and the comparisons with CLIP."""

    text: str
    data: str
    study: str = ""
    paper_head: str = ""
    pooled: str = ""


CASES = [
    Case(
        "from scratch, test images like the training images, ResNet",
        "20,480 scenes, clean captions",
        "placebos",
        "SuperCLIP − CLIP",
    ),
    Case(
        "… small ViT",
        "the same",
        "vit",
        "SuperCLIP at CLIP's rate − CLIP",
        "pooled − CLIP",
    ),
    Case(
        "from scratch, test images of another kind, ResNet",
        "20,480 scenes, clean captions",
        "unseen_drawings",
        "SuperCLIP − CLIP",
    ),
    Case("… small ViT", "the same", "transfer", "SuperCLIP − CLIP", "pooled − CLIP"),
    Case(
        "… small ViT, long tail and careless captions",
        "20,480 scenes, a third of the objects unnamed, a fifth of the captions wrong",
        "natural",
        "SuperCLIP − CLIP",
        "pooled − CLIP",
    ),
    Case(
        "fine-tuning of pretrained towers, few pairs (image→text R@1)",
        "512 pictures, captions by people",
        "stamps",
        "SuperCLIP − CLIP",
        "pooled − CLIP",
    ),
    Case("2,000 pairs from scratch", ""),
    Case("2,000 to 100,000 pairs, fine-tuning of released weights", ""),
]


def cases_table(found: Sequence[Comparison]) -> str:
    """A row for each use: the differences from CLIP by the primary measure, or that there are
    none yet."""
    lines = [
        "| your case | data of the study | CLIP | the paper's head − CLIP | `pooled` − CLIP | n |",
        "|---|---|---|---|---|---|",
    ]
    primary = {(one.study, one.name): one for one in found if one.is_primary}
    for case in CASES:
        one, other = (primary.get((case.study, name)) for name in (case.paper_head, case.pooled))
        data = f"[{case.data}](studies/{case.study}/README.md)" if case.study else ""
        row = [data, "", "not finished" if case.study else "not measured", "", ""]
        if one:
            row = [
                data,
                f"{one.means[0]:.1f}",
                _bold(one),
                _bold(other) if other else "–",
                f"{one.n}",
            ]
        lines.append(f"| {case.text} | {' | '.join(row)} |")
    return "\n".join(lines)


def _bold(one: Comparison) -> str:
    return f"**{one}**" if one.holm <= 0.05 else f"{one}"


def study_table(found: Sequence[Comparison]) -> str:
    """A row per comparison, a column per measure: bold after Holm's correction, † only before
    it."""
    measures = list(dict.fromkeys(one.measure for one in found))
    primary = {one.measure for one in found if one.is_primary}
    heads = [TITLES[measure] + (" (primary)" if measure in primary else "") for measure in measures]
    lines = [f"| points | {' | '.join(heads)} | n |", "|---|" + "---|" * len(heads) + "---|"]
    for name in dict.fromkeys(one.name for one in found):
        row = {one.measure: one for one in found if one.name == name}
        cells = [_marked(row[measure]) for measure in measures]
        lines.append(
            f"| {name}{' ‡' if row[measures[0]].note else ''} | {' | '.join(cells)} | "
            f"{row[measures[0]].n} |"
        )
    note = (
        "Bold: significant at 5 % after Holm's correction. †: the interval excludes zero, "
        "but not after correction."
    )
    if all(one.flaw for one in found):
        note = f"This study cannot answer ({found[0].flaw}), so it has no verdicts."
    elif found[0].flaw:
        note = f"The primary measure cannot answer ({found[0].flaw}), so it has no verdicts. {note}"
    if any(one.depends_on_family for one in found):
        note += " §: not significant if the primary comparisons of all studies are one family."
    if any(one.note for one in found):
        note += f" ‡: {AFTER_REVIEW}."
    return "\n".join([*lines, "", note])


def _marked(one: Comparison) -> str:
    if one.flaw:
        return f"{one}"
    if one.holm <= 0.05:
        return f"**{one}** §" if one.depends_on_family else f"**{one}**"
    return f"{one} †" if one.p <= 0.05 else f"{one}"


@dataclass(frozen=True)
class Welch:
    """The difference of two studies' mean differences, with other seeds, and its 95 % interval
    (Welch's t)."""

    one: Comparison
    other: Comparison

    def __str__(self) -> str:
        errors = [comparison.std**2 / comparison.n for comparison in (self.one, self.other)]
        freedom = sum(errors) ** 2 / (
            errors[0] ** 2 / (self.one.n - 1) + errors[1] ** 2 / (self.other.n - 1)
        )
        half = t.ppf(0.975, freedom) * math.sqrt(sum(errors))
        mean = self.one.mean - self.other.mean
        return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def zero_shot(found: Sequence[Comparison], study: str, name: str) -> Comparison:
    """The comparison of a study by zero-shot accuracy."""
    return next(
        one for one in found if (one.study, one.name, one.measure) == (study, name, "zero_shot")
    )


def average_table(found: Sequence[Comparison]) -> str:
    """The gain with average pooling beside those with a class token."""
    average = zero_shot(found, "vit_average", "SuperCLIP − CLIP")
    patches = zero_shot(found, "vit", "SuperCLIP at CLIP's rate − CLIP")
    token = zero_shot(found, "vit", "pooled − CLIP")
    rows = [
        ("mean patch token", "mean patch token", "5e-4", average, ""),
        ("class token", "mean patch token", "1e-3", patches, Welch(average, patches)),
        ("class token", "class token", "2e-3", token, Welch(average, token)),
    ]
    heads = (
        "the contrastive loss reads | the head reads | learning rate | − CLIP, zero-shot | "
        "this study's gain − it | n"
    )
    lines = [f"| {heads} |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {read} | {head} | {lr} | {one} | {change} | {one.n} |"
        for read, head, lr, one, change in rows
    ]
    return "\n".join(lines)


# comparisons of the paper's head with its baseline at one rate, on the small ViT, in short training
EQUAL_RATES = {
    "vit": "SuperCLIP at CLIP's rate − CLIP",
    "vit_average": "SuperCLIP − CLIP",
    "vit_deep": "SuperCLIP − CLIP",
    "vit_weight": "λ 1 − CLIP",
    "flip": "SuperFLIP − FLIP",
}


def equal_rates_table(found: Sequence[Comparison]) -> str:
    """The paper's head at equal rates, in all measures: the mean over the paired seeds of five
    studies."""
    of_studies = [one for one in found if EQUAL_RATES.get(one.study) == one.name]
    measures = list(dict.fromkeys(one.measure for one in of_studies))
    pooled = []
    for measure in measures:
        same = [one for one in of_studies if one.measure == measure]
        seeds = [seed for one in same for seed in one.seeds]
        differences = [difference for one in same for difference in one.differences]
        pooled.append(Comparison("", "", "", "", measure, False, seeds, differences))
    heads = [TITLES[measure] for measure in measures]
    return "\n".join(
        [
            f"| points | {' | '.join(heads)} | n |",
            "|---|" + "---|" * len(heads) + "---|",
            f"| the paper's head − CLIP or FLIP | {' | '.join(map(str, pooled))} | {pooled[0].n} |",
        ]
    )


def samples_table(found: Sequence[Comparison]) -> str:
    """Scores and gains of the small ViT with two and with eight passes."""
    names = {"vit": "SuperCLIP at CLIP's rate − CLIP", "vit_samples": "SuperCLIP − CLIP"}
    titles = {"vit": "40,960 ([vit](../vit/README.md))", "vit_samples": "163,840"}
    lines = [
        "| samples | CLIP | SuperCLIP | pooled | SuperCLIP − CLIP | pooled − CLIP | n |",
        "|---|---|---|---|---|---|---|",
    ]
    heads = {study: zero_shot(found, study, name) for study, name in names.items()}
    tokens = {study: zero_shot(found, study, "pooled − CLIP") for study in names}
    for study, title in titles.items():
        head, token = heads[study], tokens[study]
        scores = [f"{score:.1f}" for score in (*head.means, token.means[1])]
        lines.append(f"| {title} | {' | '.join(scores)} | {head} | {token} | {head.n} |")
    changes = [Welch(gains["vit_samples"], gains["vit"]) for gains in (heads, tokens)]
    return "\n".join([*lines, f"| change (Welch's t) | | | | {changes[0]} | {changes[1]} | |"])


def power_table(std: float, effects: Sequence[float], numbers: Sequence[int]) -> str:
    """The half-width of the 95 % interval and the power for each number of seeds."""
    heads = [f"power for +{effect:g}" for effect in effects]
    lines = [f"| seeds | half-width | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for n in numbers:
        half = t.ppf(0.975, n - 1) * std / math.sqrt(n)
        lines.append(
            f"| {n} | ±{half:.1f} | {' | '.join(f'{power(e, std, n):.0%}' for e in effects)} |"
        )
    return "\n".join(lines)


def rates_table(trials: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The trials' mean scores by arm and learning rate; the best of each row is bold."""
    rows = {
        (arm, cell): {float(lr): statistics.mean(scores) for lr, scores in rates.items()}
        for arm, cells in trials.items()
        for cell, rates in cells.items()
    }
    rates = sorted({lr for row in rows.values() for lr in row})
    lines = [
        f"| learning rate | {' | '.join(f'{lr:g}' for lr in rates)} |",
        "|---|" + "---|" * len(rates),
    ]
    for (arm, cell), row in rows.items():
        shown = {lr: f"{mean:.1f}" for lr, mean in row.items()}
        shown[max(row, key=row.get)] = f"**{max(row.values()):.1f}**"
        title = arm if cell == "None" else f"{arm}, {cell}"
        lines.append(f"| {title} | {' | '.join(shown.get(lr, '') for lr in rates)} |")
    return "\n".join(lines)


def scores_table(trials: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The scores of trials at one learning rate by arm and seed, best mean first."""
    rows = {
        arm: scores
        for arm, cells in trials.items()
        for rates in cells.values()
        for scores in rates.values()
    }
    seeds = max(map(len, rows.values()))
    heads = [f"seed {TUNING_SEEDS + n}" for n in range(seeds)]
    lines = [f"| arm | {' | '.join(heads)} | mean |", "|---|" + "---|" * (seeds + 1)]
    for arm, scores in sorted(rows.items(), key=lambda row: -statistics.mean(row[1])):
        shown = [f"{score:.1f}" for score in scores] + [""] * (seeds - len(scores))
        lines.append(f"| {arm} | {' | '.join(shown)} | {statistics.mean(scores):.1f} |")
    return "\n".join(lines)


def trials_table(trials: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    tuned = {rate for cells in trials.values() for rates in cells.values() for rate in rates}
    return rates_table(trials) if len(tuned) > 1 else scores_table(trials)


def verdicts_csv(found: Sequence[Comparison]) -> list[list[str]]:
    rows = [
        [
            "study",
            "comparison",
            "measure",
            "primary",
            "n",
            "mean",
            "std",
            "low",
            "high",
            "p",
            "holm_p",
            "all_holm_p",
            "verdict",
        ]
    ]
    for one in found:
        numbers = [f"{value:.3f}" for value in (one.mean, one.std, *one.interval)]
        verdict = one.verdict(-1 if one.measure in LOWER_IS_BETTER else 1)
        primary = "yes" if one.is_primary else "no"
        p_values = [f"{one.p:.3g}", "" if one.flaw else f"{one.holm:.3g}"]
        p_values.append("" if one.holm_of_all is None else f"{one.holm_of_all:.3g}")
        rows.append(
            [one.study, one.name, one.measure, primary, str(one.n), *numbers, *p_values, verdict]
        )
    return rows


def blocks(found: Sequence[Comparison]) -> dict[Path, dict[str, str]]:
    """The generated tables: by page, then by the name of the marker."""
    made = {
        DOCS / "evidence.md": {
            "verdicts": evidence_table(found),
            "equal rates": equal_rates_table(found),
        }
    }
    made[DOCS / "when.md"] = {"cases": cases_table(found)}
    for name in dict.fromkeys(one.study for one in found):
        page = DOCS / "audit/README.md" if name == AUDIT else HERE / name / "README.md"
        made[page] = {"verdicts": study_table([one for one in found if one.study == name])}
    for file in sorted(HERE.rglob("trials.json")):
        made.setdefault(file.with_name("README.md"), {})["trials"] = trials_table(
            json.loads(file.read_text())
        )
    made[HERE / "vit_average/README.md"]["average"] = average_table(found)
    made[HERE / "vit_samples/README.md"]["samples"] = samples_table(found)
    flip = next(one for one in found if one.study == EARLIER_FLIP and one.is_primary)
    made[HERE / f"{EARLIER_FLIP}/README.md"]["power"] = power_table(
        flip.std, (2, 3.2), (5, 10, 20, 36)
    )
    return made


def replaced(text: str, name: str, content: str) -> str:
    """The text with another content between a marker and its end."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"expected the lines {start.strip()} and {end.strip()}")
    return before + start + content + end + after


def main() -> None:
    found = comparisons()
    with open(HERE / "verdicts.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(verdicts_csv(found))
    for page, tables in blocks(found).items():
        text = page.read_text()
        for name, content in tables.items():
            text = replaced(text, name, content)
        page.write_text(text)


if __name__ == "__main__":
    main()
