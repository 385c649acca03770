"""Writes report.html of an audit: histograms of the scores, and the worst pairs with their
doubtful words."""

import contextlib
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.images import as_trained, read_image
from ..data.tar_shards import IMAGES, numbered_members
from ..data.truncated_tar import BROKEN
from ..evaluation.intervals import Estimate, wilson
from ..files import write_text
from ..rendering import data_url, html_template
from .pair_scores import WORD
from .reading import AuditedData
from .score_file import ScoredPairs, read_scores

THUMBNAIL = 160  # pixels
NUM_BINS = 40
NUM_WORDS = 40
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
    file: Path, data: AuditedData, model: Path, scored: ScoredPairs, num_worst: int
) -> None:
    """Writes the page of the `num_worst` worst pairs as a single file without scripts or external
    resources."""
    # by number, the worst first
    records = dict.fromkeys(scored.ranked[::-1][:num_worst].tolist())
    for number, record in enumerate(read_scores(scored.file)):
        if number in records:
            records[number] = record
    _add_thumbnails(records.values(), data)
    histograms = []
    for name, title in TITLES.items():
        values = scored.finite(name)
        if len(values):
            counts, edges = np.histogram(values.astype(np.float64), bins=NUM_BINS)
            median = np.median(values)
            histograms.append(
                {"title": title, "counts": counts.tolist(), "edges": edges, "median": median}
            )
    words = most_doubtful(scored.counts, scored.doubted)[:NUM_WORDS]
    page = html_template(__file__, segments=_segments).render(
        data=data.source,
        model=str(model),
        scored=scored,
        worst=records.values(),
        thumbnail=THUMBNAIL,
        histograms=histograms,
        words=[row for row in words if row.num_doubted],
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


def _segments(record: dict) -> Iterator[tuple[str, dict | None]]:
    """Yields the caption in pieces, doubtful words with their scores.

    Function words are never marked."""
    doubtful = {
        word["word"]: word
        for word in record.get("words", [])
        if word["support"] < 0 and word["word"] not in FUNCTION_WORDS
    }
    end = 0
    caption = record["caption"]
    for match in WORD.finditer(caption):
        word = doubtful.get(match[0].casefold())
        if word:
            yield caption[end : match.start()], None
            yield match[0], word
            end = match.end()
    yield caption[end:], None


def _add_thumbnails(records: Iterable[dict], data: AuditedData) -> None:
    """Adds the thumbnail of each pair's image to its record."""
    by_shard = defaultdict(dict)
    for record in records:
        shard, number = record["place"]
        if data.columns is not None:
            record["thumbnail"] = _thumbnail(record["key"])
        else:
            by_shard[shard][number] = record
    for shard, by_number in by_shard.items():
        last = max(by_number)
        best = {}  # the index in IMAGES of a pair's thumbnail
        with contextlib.suppress(*BROKEN), tarfile.open(data.files[shard]) as tar:
            for number, _, extension, member in numbered_members(tar):
                if number > last:
                    break
                if number not in by_number or extension not in IMAGES:
                    continue
                index = IMAGES.index(extension)
                if index < best.get(number, len(IMAGES)):
                    best[number] = index
                    image = tar.extractfile(member).read()
                    by_number[number]["thumbnail"] = _thumbnail(image)


def _thumbnail(source: str | bytes) -> str:
    """Returns a thumbnail as a data: URL, or "" if the image can no longer be read."""
    image, _ = read_image(source, as_trained)
    return data_url(image, THUMBNAIL) if image else ""
