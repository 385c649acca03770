"""Writes report.html: histograms of the scores, cut-offs, and the worst pairs with their doubtful words."""

import contextlib
import heapq
import itertools
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..data.images import load_image
from ..data.shards import BROKEN, IMAGES, is_remote
from ..files import whole_file
from ..pages import data_url, html_template
from .pairs import AuditedFiles, AuditedShards, numbered_members
from .scorer import WORD
from .store import FUNCTION_WORDS, SCORES, ScoredPairs, read_scores

THUMBNAIL = 160  # pixels
MAX_LETTERS = 600  # longer captions are truncated
DIRECTIONS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C])
KEEP = (0.95, 0.9, 0.8, 0.7, 0.5)  # fractions for which the page shows the cut-off
NUM_BINS, NUM_WORDS, NUM_PROBLEMS = 40, 40, 20
TITLES = {
    "class_loss": "class loss (nats; lower is better)",
    "support": "support (1: exactly this caption; below 0: the image speaks against it)",
    "clip_score": "CLIP score (cosine)",
}


def write_page(
    file: Path, data: AuditedFiles | AuditedShards, model: Path, scored: ScoredPairs, scores: Path,
    goodness: np.ndarray, by: str, num_worst: int,
) -> None:  # fmt: skip
    """Writes the page as a single file without scripts or external resources.

    Args:
        scores: the file of scores, from which the records of the worst pairs are read.
        goodness: float64 [N], higher for better pairs; −∞ for pairs without a score.
        num_worst: number of pairs to show.
    """
    numbers = np.flatnonzero(np.isfinite(goodness)).tolist()
    numbers = heapq.nsmallest(num_worst, numbers, key=lambda number: goodness[number])
    wanted, records, problems = set(numbers), {}, []
    for number, record in enumerate(read_scores(scores)):
        if number in wanted:
            records[number] = record
        if "problem" in record and len(problems) < NUM_PROBLEMS:
            problems.append(record)
    worst = [records[number] for number in numbers]
    template = html_template(Path(__file__).with_name("audit.html"), segments=_segments, percent=_percent)
    page = template.render(
        data=data.given, model=str(model), by="support and CLIP score" if by == "both" else by.replace("-", " "),
        scored=scored, problems=problems, worst=worst, images=_images(data, worst), thumbnail=THUMBNAIL,
        histograms=[_histogram(TITLES[name], scored.finite(name)) for name in SCORES if len(scored.finite(name))],
        words=[row for row in scored.words.rows()[:NUM_WORDS] if row.num_doubted], titles=TITLES,
        cut_offs=cut_offs(scored, goodness),
    )  # fmt: skip
    with whole_file(file) as opened:
        opened.write(page.encode("utf-8", "replace"))


def _histogram(title: str, values: np.ndarray) -> dict:
    """Returns the title, the bars (heights in percent), the range and the median of a histogram."""
    numbers, edges = np.histogram(values.astype(np.float64), bins=NUM_BINS)
    bars = [
        {"height": 100 * number / max(1, numbers.max()), "number": number, "low": low, "high": high}
        for number, (low, high) in zip(numbers.tolist(), itertools.pairwise(edges.tolist()), strict=True)
    ]
    return {"title": title, "bars": bars, "low": edges[0], "high": edges[-1], "median": float(np.median(values))}


def cut_offs(scored: ScoredPairs, goodness: np.ndarray) -> list[dict]:
    """Returns, for each fraction in KEEP, the number of pairs left out and the scores of the last pair kept."""
    order = np.flatnonzero(np.isfinite(goodness))
    order = order[np.argsort(-goodness[order], kind="stable")]
    rows = []
    for keep in KEEP:
        last = max(1, round(keep * len(order))) - 1
        scores = {
            name: float(values[order[last]]) for name, values in scored.scores.items() if np.isfinite(values).any()
        }
        rows.append({"keep": keep, "left_out": len(order) - last - 1, "scores": scores})
    return rows


def _segments(record: dict) -> Iterator[tuple[str, dict | None]]:
    """Yields the caption in pieces, doubtful words with their scores. Function words are never marked."""
    words = {word["word"]: word for word in record.get("words", []) if word["word"] not in FUNCTION_WORDS}
    end, caption = 0, _shown(record["caption"])
    for match in WORD.finditer(caption):
        word = words.get(match[0].casefold())
        if word is not None and word["support"] < 0:
            yield caption[end : match.start()], None
            yield match[0], word
            end = match.end()
    yield caption[end:], None


def _shown(caption: str) -> str:
    """Returns a caption for the page: truncated, and without Unicode characters that change the text direction."""
    caption = caption.translate(DIRECTIONS)
    return caption if len(caption) <= MAX_LETTERS else f"{caption[:MAX_LETTERS]} … ({len(caption):,} letters)"


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction >= 0.1 else f"{fraction:.2%}"


def _images(data: AuditedFiles | AuditedShards, worst: Iterable[dict]) -> dict[tuple, str]:
    """Returns thumbnails of local images as data: URLs, by place of the pair."""
    found, by_shard = {}, defaultdict(set)
    for record in worst:
        shard, number = record["place"]
        if isinstance(data, AuditedFiles):
            found[shard, number] = _thumbnail(record["key"])
        elif not is_remote(data.shards[shard]):
            by_shard[shard].add(number)
    for shard, numbers in by_shard.items():
        with contextlib.suppress(*BROKEN), tarfile.open(data.shards[shard]) as tar:
            for number, extension, member in numbered_members(tar):
                if number > max(numbers):
                    break
                if number in numbers and extension in IMAGES:
                    found[shard, number] = _thumbnail(tar.extractfile(member).read())
    return found


def _thumbnail(source: str | bytes) -> str:
    """Returns a thumbnail as a data: URL, or "" if the image can no longer be read."""
    image = load_image(source, THUMBNAIL).image
    return data_url(image, THUMBNAIL) if image else ""
