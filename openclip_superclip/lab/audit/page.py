"""Writes report.html: histograms of the scores, and the worst pairs with their doubtful words."""

import contextlib
import heapq
import itertools
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...data.images import as_trained, read_image
from ...data.tar_shards import BROKEN, IMAGES, numbered_members
from ...files import write_text
from ...rendering import data_url, html_template
from ..evaluation.intervals import Estimate, wilson
from .reading import AuditedData
from .scores import SCORES, WORD, ScoredPairs, read_scores

THUMBNAIL = 160  # pixels
NUM_BINS, NUM_WORDS, NUM_PROBLEMS = 40, 40, 20
TITLES = {
    "class_loss": "class loss (nats; lower is better)",
    "support": "support (1: exactly this caption; below 0: the image speaks against it)",
    "clip_score": "CLIP score (cosine)",
}

# Words that images do not show, so their support is not informative.
FUNCTION_WORDS = frozenset(
    """a an the this that these those and or but nor of in on at by for from to into onto over under
    up down with without as is are was were be been being it its he she his her they their them we
    our you your i my me him us who which what there here not no so than then very just also s t
    """.split()  # noqa: SIM905
)


def write_page(
    file: Path,
    data: AuditedData,
    model: Path,
    scored: ScoredPairs,
    scores: Path,
    goodness: np.ndarray,
    by: str,
    num_worst: int,
) -> None:
    """Writes the page as a single file without scripts or external resources.

    It shows the `num_worst` pairs with the lowest `goodness`, float64 [N], with their records from
    the file of scores.
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
    template = html_template(
        Path(__file__).with_name("audit.html"),
        segments=_segments,
        percent=lambda fraction: f"{fraction:.0%}" if fraction >= 0.1 else f"{fraction:.2%}",
    )
    page = template.render(
        data=data.given,
        model=str(model),
        by="support and CLIP score" if by == "both" else by.replace("-", " "),
        num_pairs=len(goodness),
        left_out=scored.problems,
        has_head=len(scored.finite("class_loss")) > 0,
        suggestion=scored.suggestion,
        warning=scored.warning,
        problems=problems,
        worst=worst,
        images=_images(data, worst),
        thumbnail=THUMBNAIL,
        histograms=[
            _histogram(TITLES[name], scored.finite(name))
            for name in SCORES
            if len(scored.finite(name))
        ],
        words=[
            row
            for row in most_doubtful(scored.counts, scored.doubted)[:NUM_WORDS]
            if row.num_doubted
        ],
    )
    write_text(file, page)


class WordRow(NamedTuple):
    """A word of the audited captions."""

    word: str
    num_captions: int  # captions that contain the word
    num_doubted: int  # captions in which its support is negative
    fraction: Estimate  # of the captions; its lower bound is small for words in few captions


def most_doubtful(counts: Counter, doubted: Counter) -> list[WordRow]:
    """Returns the words, except function words, by the lower bound of the fraction of captions that
    are doubtful.

    `counts` are the numbers of captions with each word, and `doubted` those in which its support is
    negative.
    """
    rows = [
        WordRow(word, count, doubted[word], wilson(doubted[word] / count, count))
        for word, count in counts.items()
        if word not in FUNCTION_WORDS
    ]
    return sorted(rows, key=lambda row: (-row.fraction.low, -row.num_captions, row.word))


def _histogram(title: str, values: np.ndarray) -> dict:
    """Returns the title, the bars (heights in percent), the range and the median of a histogram."""
    numbers, edges = np.histogram(values.astype(np.float64), bins=NUM_BINS)
    bars = [
        {"height": 100 * number / max(1, numbers.max()), "number": number, "low": low, "high": high}
        for number, (low, high) in zip(
            numbers.tolist(), itertools.pairwise(edges.tolist()), strict=True
        )
    ]
    return {
        "title": title,
        "bars": bars,
        "low": edges[0],
        "high": edges[-1],
        "median": float(np.median(values)),
    }


def _segments(record: dict) -> Iterator[tuple[str, dict | None]]:
    """Yields the caption in pieces, doubtful words with their scores.

    Function words are never marked."""
    words = {
        word["word"]: word for word in record.get("words", []) if word["word"] not in FUNCTION_WORDS
    }
    end, caption = 0, record["caption"]
    for match in WORD.finditer(caption):
        word = words.get(match[0].casefold())
        if word is not None and word["support"] < 0:
            yield caption[end : match.start()], None
            yield match[0], word
            end = match.end()
    yield caption[end:], None


def _images(data: AuditedData, worst: Iterable[dict]) -> dict[tuple, str]:
    """Returns thumbnails as data: URLs, by place of the pair."""
    found, by_shard = {}, defaultdict(set)
    for record in worst:
        shard, number = record["place"]
        if data.columns is not None:
            found[shard, number] = _thumbnail(record["key"])
        else:
            by_shard[shard].add(number)
    for shard, numbers in by_shard.items():
        with contextlib.suppress(*BROKEN), tarfile.open(data.files[shard]) as tar:
            for number, _, extension, member in numbered_members(tar):
                if number > max(numbers):
                    break
                if number in numbers and extension in IMAGES:
                    found[shard, number] = _thumbnail(tar.extractfile(member).read())
    return found


def _thumbnail(source: str | bytes) -> str:
    """Returns a thumbnail as a data: URL, or "" if the image can no longer be read."""
    image, _ = read_image(source, as_trained)
    return data_url(image, THUMBNAIL) if image else ""
