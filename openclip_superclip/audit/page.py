"""report.html of an audit: the worst pairs and why, the scores, the words that are doubted, captions that repeat."""

import base64
import heapq
import io
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..data.images import as_seen, open_image
from ..data.shards import IMAGES, is_remote
from ..files import whole_file
from ..pages import html_template
from .pairs import AuditedFiles, AuditedShards, numbered_members
from .scorer import WORD
from .store import FUNCTION_WORDS, SCORES, ScoredPairs, caption_digest, read_scores

THUMBNAIL = 160  # pixels
MAX_LETTERS = 600  # of a caption on the page
DIRECTIONS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C])
KEEP = (0.95, 0.9, 0.8, 0.7, 0.5)  # fractions whose cut-off is shown
NUM_BINS, NUM_WORDS, NUM_REPEATED, NUM_PROBLEMS = 40, 40, 20, 20
BOTH = "support and CLIP score"
TITLES = {
    "class_loss": "class loss (nats; the lower the better)",
    "support": "support (1: just this caption; below 0: the picture speaks against it)",
    "clip_score": "CLIP score (cosine)",
}


def write_page(
    file: Path,
    data: AuditedFiles | AuditedShards,
    model: Path,
    scored: ScoredPairs,
    scores: Path,
    goodness: np.ndarray,
    by: str,
    num_worst: int,
) -> None:
    """Writes the page, one file that asks for no other and runs no script.

    Args:
        scores: the file of scores, which is read again for the pairs that are shown.
        goodness: [N], sorts the pairs; −∞ for one that is not scored.
        num_worst: pairs to show.
    """
    places = _worst(goodness, num_worst)
    repeated = scored.repeated(NUM_REPEATED)
    records: dict[int, dict] = {}
    captions: dict[int, str] = {}
    problems = []
    wanted = set(places)
    for place, record in enumerate(read_scores(scores)):
        if place in wanted:
            records[place] = record
        digest = int(scored.captions[place])
        if digest in repeated and digest not in captions and caption_digest(record) == digest:
            captions[digest] = record["caption"]
        if "problem" in record and len(problems) < NUM_PROBLEMS:
            problems.append(record)
    worst = [records[place] for place in places]
    pictures = _pictures(data, worst)
    template = html_template(Path(__file__).with_name("audit.html"), segments=_segments, percent=_percent)
    page = template.render(
        data=data.given, model=str(model), by=BOTH if by == "both" else by.replace("-", " "), scored=scored,
        problems=problems, worst=worst, pictures=pictures,
        histograms=[_histogram(TITLES[name], scored.scores[name]) for name in SCORES if _any(scored.scores[name])],
        words=[row for row in scored.words.rows()[:NUM_WORDS] if row.num_doubted],
        cut_offs=cut_offs(scored, goodness), against=against(scored),
        repeated=[(number, _shown(captions[digest])) for digest, number in repeated.items()], thumbnail=THUMBNAIL,
    )  # fmt: skip
    with whole_file(file) as opened:
        opened.write(page.encode("utf-8", "replace"))


def against(scored: ScoredPairs) -> float | None:
    """Returns the fraction of pairs with support below 0, the image against the caption; None without support."""
    support = scored.scores["support"][np.isfinite(scored.scores["support"])]
    return float((support < 0).mean()) if len(support) else None


def _worst(goodness: np.ndarray, number: int) -> list[int]:
    """Returns the places of the worst pairs that are scored, the worst first."""
    found = np.flatnonzero(np.isfinite(goodness))
    return heapq.nsmallest(number, found.tolist(), key=lambda place: goodness[place])


def _any(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _histogram(title: str, values: np.ndarray) -> dict:
    """Returns bars as heights in percent, between the lowest and the highest value."""
    values = values[np.isfinite(values)].astype(np.float64)
    numbers, edges = np.histogram(values, bins=NUM_BINS)
    bars = [
        {"height": 100 * number / max(1, numbers.max()), "number": number, "low": low, "high": high}
        for number, (low, high) in zip(numbers.tolist(), itertools.pairwise(edges.tolist()), strict=True)
    ]
    return {"title": title, "bars": bars, "low": edges[0], "high": edges[-1], "median": float(np.median(values))}


def _segments(record: dict) -> Iterator[tuple[str, dict | None]]:
    """Yields the caption in pieces, each doubtful word with its scores; function words are never marked."""
    doubted = {word["word"]: word for word in record.get("words", []) if word["support"] < 0}
    doubted = {word: found for word, found in doubted.items() if word not in FUNCTION_WORDS}
    end = 0
    caption = _shown(record["caption"])
    for match in WORD.finditer(caption):
        word = doubted.get(match[0].casefold())
        if word is not None:
            yield caption[end : match.start()], None
            yield match[0], word
            end = match.end()
    yield caption[end:], None


def _shown(caption: str) -> str:
    """Returns a caption for the page: cut, and without characters that change the direction of what follows."""
    caption = caption.translate(DIRECTIONS)
    return caption if len(caption) <= MAX_LETTERS else f"{caption[:MAX_LETTERS]} … ({len(caption):,} letters)"


def cut_offs(scored: ScoredPairs, goodness: np.ndarray) -> list[dict]:
    """Returns for some fractions to keep how many pairs would go, and the scores of the last pair that stays."""
    order = np.flatnonzero(np.isfinite(goodness))
    order = order[np.argsort(-goodness[order], kind="stable")]
    rows = []
    for keep in KEEP:
        last = max(1, round(keep * len(order))) - 1
        scores = {name: float(values[order[last]]) for name, values in scored.scores.items() if _any(values)}
        rows.append({"keep": keep, "left_out": len(order) - last - 1, "scores": scores})
    return rows


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.2%}"


def _pictures(data: AuditedFiles | AuditedShards, worst: Iterable[dict]) -> dict[tuple, str]:
    """Returns thumbnails by the pairs' places, as data: addresses; none for a shard that is no file here."""
    found = {}
    if isinstance(data, AuditedFiles):
        for record in worst:
            found[tuple(record["place"])] = _thumbnail(record["key"])
        return {place: picture for place, picture in found.items() if picture}
    by_shard: dict[int, set[int]] = {}
    for record in worst:
        place, number = record["place"]
        by_shard.setdefault(place, set()).add(number)
    for place, numbers in by_shard.items():
        shard = data.shards[place]
        if not is_remote(shard) and os.path.exists(shard):
            found |= {(place, number): _thumbnail(content) for number, content in _pictures_of(shard, numbers)}
    return {place: picture for place, picture in found.items() if picture}


def _pictures_of(shard: str, numbers: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yields the pictures of samples of a shard by their numbers; others are passed over unread."""
    try:
        with tarfile.open(shard) as tar:
            for number, extension, member in numbered_members(tar):
                if number > max(numbers):
                    return
                if number in numbers and extension in IMAGES:
                    yield number, tar.extractfile(member).read()
    except (OSError, EOFError, tarfile.TarError):  # what is broken was told
        return


def _thumbnail(picture: str | bytes) -> str:
    """Returns a picture, small, as a data: address; "" where it cannot be read any more."""
    try:
        image = as_seen(open_image(picture))
    except Exception:  # it was read when it was scored; a page without it is still one
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
