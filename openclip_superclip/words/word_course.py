"""When a run learned each word, summarized in bands of word frequency."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.epoch_words import CourseFiles
from ..errors import listed
from ..files import write_bytes, write_json, write_text
from ..rendering import aligned_table, csv_text, png, pyplot

NAME = "word_course"
MARK = '"known_from_lift"'  # in the JSON
KNOWN = 4.0  # lift at and above which a word is known
FORGOTTEN = KNOWN / 2  # lift below which a previously known word is forgotten
NUM_LOOKED_AT = 20  # a word's lift is evaluated whenever this many more captions contain it
BANDS = {  # minimum fraction of captions that contain the word, and the band's colour
    "10 % or more": (1e-1, "#3b0f70"),
    "1 to 10 %": (1e-2, "#8c2981"),
    "0.1 to 1 %": (1e-3, "#de4968"),
    "0.01 to 0.1 %": (1e-4, "#fe9f6d"),
    "less than 0.01 %": (0.0, "#e8c500"),
}


class WordCourse(NamedTuple):
    """How a run learned its words, over its E recorded epochs.

    A word's lift is its mean probability for images with the word in their caption, divided by its
    mean probability for other images; it is 1 if the head has learned nothing about the word. The
    lift is evaluated at the end of an epoch, once NUM_LOOKED_AT captions have contained the word
    since the last evaluation. A missing epoch is assumed to have as many captions as the next
    recorded one.
    """

    name: str
    texts: list[str]  # [V], the text of each token
    epochs: list[int]
    samples: list[int]  # [E], captions trained on by the end of each epoch
    num_captions: int  # captions observed in the recorded epochs
    captions: Tensor  # int64 [V], observed captions that contain the token
    band: Tensor  # int64 [V], index in BANDS; -1 for tokens in too few captions
    # int64 [V], index of the first epoch with a lift of at least KNOWN; -1 if there is none
    learned: Tensor
    lift: Tensor  # float64 [V], last evaluated lift; NaN if never evaluated
    # float64 [BANDS, E], fraction of a band's words with a lift of at least KNOWN; NaN for empty
    # bands
    known: Tensor
    median_lift: Tensor  # float64 [BANDS, E]

    def learned_after(self, token: int) -> int | None:
        """Returns the number of captions trained on before the token was first known, or None if
        it never was."""
        epoch = int(self.learned[token])
        return self.samples[epoch] if epoch >= 0 else None

    def state(self, token: int) -> str:
        """Returns the state of a token: learned, forgotten, not yet learned, or too rare to
        judge."""
        if self.band[token] < 0:
            return "too rare to judge"
        if self.learned[token] < 0:
            return "not yet learned"
        return "forgotten" if self.lift[token] < FORGOTTEN else "learned"


def word_course(name: str, files: CourseFiles) -> WordCourse:
    """Returns how a run learned its words, ignoring punctuation."""
    is_word = torch.tensor([any(map(str.isalnum, text)) for text in files.texts])
    records = []
    for epoch in files.epochs:
        record = files.read(epoch)
        records.append(record._replace(captions=record.captions * is_word))
    totals = sum(record.captions for record in records)
    num_captions = sum(record.num_captions for record in records)
    num_epochs = np.diff(files.epochs, prepend=0)  # since the previous record
    num_trained = [record.num_trained for record in records]
    bounds = torch.tensor([bound for bound, _ in BANDS.values()], dtype=torch.float64)
    band = ((totals.double() / num_captions)[:, None] < bounds).sum(dim=1)
    band = torch.where(totals >= NUM_LOOKED_AT, band, -1)
    members = band == torch.arange(len(BANDS))[:, None]  # [BANDS, V]

    # captions with and without each word since its last evaluation, and the sums of its
    # probabilities in both
    sums = torch.zeros(2, 2, len(totals), dtype=torch.float64)
    lift = torch.full_like(sums[0, 0], torch.nan)
    learned = torch.full_like(totals, -1)
    known = []
    median_lift = []
    for index, record in enumerate(records):
        counts = torch.stack([record.captions, record.num_captions - record.captions]).double()
        shares = torch.stack([record.share_where_label, record.share_where_not]).double()
        sums += torch.stack([counts, (shares * counts).nan_to_num(0.0)])
        with_word, without_word = sums[1] / sums[0]
        is_due = sums[0, 0] >= NUM_LOOKED_AT
        lift = torch.where(is_due, with_word / without_word, lift)
        sums[..., is_due] = 0.0
        is_known = lift >= KNOWN
        learned[is_known & (learned < 0)] = index
        known.append((members & is_known).sum(dim=1).double() / members.sum(dim=1))
        median_lift.append(torch.where(members, lift, torch.nan).nanmedian(dim=1).values)
    return WordCourse(
        name=name,
        texts=files.texts,
        epochs=files.epochs,
        samples=np.cumsum(num_epochs * num_trained).tolist(),
        num_captions=num_captions,
        captions=totals,
        band=band,
        learned=learned,
        lift=lift,
        known=torch.stack(known, dim=1),
        median_lift=torch.stack(median_lift, dim=1),
    )


def course_record(course: WordCourse) -> dict:
    """Returns the non-empty bands of a run's words, most frequent words first, and their curves,
    for JSON."""

    def numbers(curve: Tensor) -> list[float | None]:
        return [round(value, 6) if math.isfinite(value) else None for value in curve.tolist()]

    bands = []
    for index in course.band[course.band >= 0].unique().tolist():
        tokens = (course.band == index).nonzero().flatten().tolist()
        states = Counter(map(course.state, tokens))
        half = (course.known[index] >= 0.5).nonzero().flatten().tolist()
        bands.append(
            {
                "band": list(BANDS)[index],
                "words": len(tokens),
                "learned": states["learned"],
                "forgotten": states["forgotten"],
                "not_yet": states["not yet learned"],
                "half_known_after": course.samples[half[0]] if half else None,
                "known": numbers(course.known[index]),
                "median_lift": numbers(course.median_lift[index]),
            }
        )
    return {
        "run": course.name,
        "known_from_lift": KNOWN,
        "captions_for_a_look": NUM_LOOKED_AT,
        "epochs": course.epochs,
        "captions": course.samples,
        "bands": bands,
    }


def course_text(course: WordCourse) -> str:
    """Returns the summary of a run's words for a terminal."""
    numbers = ("words", "half_known_after", "learned", "not_yet", "forgotten")
    heads = ["in … of captions", *(name.replace("_", " ") for name in numbers)]
    rows = []
    for band in course_record(course)["bands"]:
        cells = ["–" if band[name] is None else f"{band[name]:,}" for name in numbers]
        rows.append([band["band"], *cells])
    num_rare = int(((course.captions > 0) & (course.band < 0)).sum())
    summary = (
        f"{course.name}: {course.samples[-1]:,} captions in {course.epochs[-1]:,} epochs; a word "
        f"is known if its probability is {KNOWN:g} × that in other images; {num_rare:,} words are "
        f"in fewer than {NUM_LOOKED_AT} of the {course.num_captions:,} observed captions"
    )
    by_frequency = course.captions.argsort(descending=True, stable=True).tolist()
    by_time = sorted(
        (token for token in by_frequency if course.learned[token] >= 0), key=course.learned_after
    )
    lists = {"first": by_time, "last": by_time[::-1]}
    for state in ("not yet learned", "forgotten"):
        lists[state] = [token for token in by_frequency if course.state(token) == state]
    words = []
    for title, tokens in lists.items():
        if tokens:
            words.append(f"{title}: {listed(course.texts[token] for token in tokens)}")
    return "\n\n".join([summary, aligned_table(heads, rows), "\n".join(words)]) + "\n"


def write_word_courses(out: Path, courses: Sequence[WordCourse]) -> None:
    """Writes word_course.csv (one row per run and word), .json (the curves of each band) and
    .png (a plot of them)."""
    rows = [
        ["run", "token", "word", "captions", "share of captions", "state", "learned after", "lift"]
    ]
    for course in courses:
        for token in (course.captions > 0).nonzero().flatten().tolist():
            captions = int(course.captions[token])
            lift = float(course.lift[token])
            rows.append(
                [
                    course.name,
                    token,
                    course.texts[token],
                    captions,
                    f"{captions / course.num_captions:.6g}",
                    course.state(token),
                    course.learned_after(token),
                    "" if math.isnan(lift) else f"{lift:.4g}",
                ]
            )
    write_json(out / f"{NAME}.json", {"runs": [course_record(course) for course in courses]})
    write_text(out / f"{NAME}.csv", csv_text(rows))
    write_bytes(out / f"{NAME}.png", draw_word_courses(courses))


def draw_word_courses(courses: Sequence[WordCourse]) -> bytes:
    """Returns a PNG with one column per run: each band's fraction of known words above, its
    median lift below."""
    plt = pyplot()
    size = (max(5.5, 4.4 * len(courses)), 5.6)
    figure, grid = plt.subplots(
        2, len(courses), figsize=size, squeeze=False, sharex="col", sharey="row"
    )
    for (above, below), course in zip(grid.T, courses, strict=True):
        for index, (band, (_, colour)) in enumerate(BANDS.items()):
            num_words = int((course.band == index).sum())
            if num_words:
                style = {"color": colour, "marker": ".", "label": f"{band}: {num_words:,}"}
                above.plot(course.samples, 100 * course.known[index], **style)
                below.plot(course.samples, course.median_lift[index], **style)
        below.set_yscale("log")
        below.yaxis.set_major_formatter("{x:g}")  # not 4 × 10⁰
        below.yaxis.set_minor_formatter("{x:g}")
        below.axhline(KNOWN, color="#888", linewidth=0.8, linestyle=":")
        below.set_xlabel("captions trained on")
        above.set_title(course.name, fontsize=10)
        above.legend(title="in … of captions: words", fontsize=7, title_fontsize=7)
        above.grid()
        below.grid()
    grid[0, 0].set_ylabel("words known, %")
    grid[1, 0].set_ylabel("median lift")
    return png(figure)
