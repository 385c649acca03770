"""When a run learned each word, by how often captions hold it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..method.word_sums import EpochWords
from ..run_names import run_names
from .word_course_file import CourseFiles, find_course

KNOWN = 4.0  # lift from which a word is known
FORGOTTEN = KNOWN / 2  # below which one that was known is forgotten
NUM_LOOKED_AT = 20  # captions that hold a word, for a look at it
SHOWN = 12  # missing epochs, by number
BANDS = {  # by the share of the captions that hold a word, from the top
    "10 % or more": 1e-1, "1 to 10 %": 1e-2, "0.1 to 1 %": 1e-3, "0.01 to 0.1 %": 1e-4, "less than 0.01 %": 0.0,
}  # fmt: skip


class WordCourse(NamedTuple):
    """How a run's words were learned, over its E recorded epochs.

    An epoch that is not recorded, before the last one that is, counts as many captions as the recorded one after it.
    A word's lift is its mean share where it is a label, divided by its mean share where it is not: 1 where the head
    knows nothing of it. It is looked at after every epoch by whose end another NUM_LOOKED_AT captions hold it.
    """

    name: str
    texts: list[str]  # of the V tokens
    epochs: list[int]
    missing: list[int]  # epochs before the last that are not recorded
    samples: list[int]  # [E], captions trained on by the end of each
    num_captions: int  # of the recorded epochs
    captions: Tensor  # int64 [V], of those, that hold the token
    band: Tensor  # int64 [V], a place in BANDS; -1 for tokens of too few captions for a look
    learned: Tensor  # int64 [V], a place in epochs: the first at whose end the lift is KNOWN; -1 for none
    lift: Tensor  # float64 [V], at the last look; NaN without
    known: Tensor  # float64 [BANDS, E], part of a band's words whose lift is KNOWN; NaN for empty bands
    median_lift: Tensor  # float64 [BANDS, E]

    @property
    def is_forgotten(self) -> Tensor:
        """Tells of each token, bool [V], whether it was known and is not any more."""
        return (self.learned >= 0) & (self.lift < FORGOTTEN)

    def learned_after(self, token: int) -> int | None:
        """Returns how many captions were trained on when the token was known first; None where it never was."""
        epoch = int(self.learned[token])
        return self.samples[epoch] if epoch >= 0 else None

    def state(self, token: int) -> str:
        """Returns what became of a token: learned, forgotten, not yet learned, or too rare to tell."""
        if self.band[token] < 0:
            return "too rare to tell"
        if self.learned[token] < 0:
            return "not yet learned"
        return "forgotten" if self.is_forgotten[token] else "learned"


class _Looks:
    """Collects a word's shares until enough captions hold it, and then takes its lift."""

    def __init__(self, num_words: int):
        self.sums = torch.zeros(4, num_words, dtype=torch.float64)
        self.lift = torch.full((num_words,), torch.nan, dtype=torch.float64)

    def add(self, words: EpochWords) -> None:
        """Adds an epoch."""
        captions, others = words.captions.double(), (words.num_captions - words.captions).double()
        shares = [words.share_where_label.double() * captions, words.share_where_not.double() * others]
        self.sums += torch.stack([captions, others, *(share.nan_to_num(0.0) for share in shares)])
        looked_at = self.sums[0] >= NUM_LOOKED_AT
        captions, others, where_label, where_not = self.sums
        self.lift = torch.where(looked_at, (where_label / captions) / (where_not / others), self.lift)
        self.sums[:, looked_at] = 0.0


def word_course(name: str, files: CourseFiles) -> WordCourse:
    """Returns the course that a run has recorded, without commas and the like; its files are read twice, one by one."""
    is_word = torch.tensor([any(map(str.isalnum, text)) for text in files.texts])

    def read(epoch: int) -> EpochWords:
        words = files.read(epoch)
        return words._replace(captions=words.captions * is_word)

    totals, num_captions, samples, missing = 0, 0, [], []
    for before, epoch in zip([0, *files.epochs], files.epochs, strict=False):
        words = read(epoch)
        totals, num_captions = totals + words.captions, num_captions + words.num_captions
        samples.append((epoch - before) * words.num_captions + (samples[-1] if samples else 0))
        missing += range(before + 1, epoch)
    band = _bands(totals, num_captions)
    looks, learned = _Looks(len(totals)), torch.full_like(totals, -1)
    known, median_lift = [], []
    for place, words in enumerate(map(read, files.epochs)):
        looks.add(words)
        is_known = looks.lift >= KNOWN
        learned[is_known & (learned < 0)] = place
        known.append([is_known[band == one].double().mean() for one in range(len(BANDS))])
        median_lift.append([looks.lift[band == one].nanmedian() for one in range(len(BANDS))])
    return WordCourse(
        name, files.texts, files.epochs, missing, samples, num_captions, totals, band, learned, looks.lift,
        torch.tensor(known).double().T, torch.tensor(median_lift).double().T,
    )  # fmt: skip


def read_word_courses(runs: Sequence[Path]) -> list[WordCourse]:
    """Returns the courses of the runs in folders, by names that tell them apart; InputError where one has none."""
    return [word_course(name, _find(run)) for run, name in zip(runs, run_names(runs), strict=True)]


def _find(run: Path) -> CourseFiles:
    if not run.is_dir():
        raise InputError(f"--course: there is no folder {run}; expected that of a run")
    files = find_course(run)
    if files is None:
        raise InputError(
            f"--course: {run} holds no words/epoch_N.safetensors: expected the folder of a run with --superclip and "
            "--superclip-word-course on"
        )
    return files


def missing_told(course: WordCourse) -> str:
    """Returns what to tell people of the epochs that are not recorded; nothing where all are."""
    if not course.missing:
        return ""
    numbers = ", ".join(str(epoch) for epoch in course.missing[:SHOWN])
    more = f" and {len(course.missing) - SHOWN:,} more" if len(course.missing) > SHOWN else ""
    one = len(course.missing) == 1
    return (
        f"{course.name}: of {'epoch' if one else 'epochs'} {numbers}{more} no words are recorded: "
        f"{'it counts' if one else 'each counts'} as many captions as the recorded one after it"
    )


def _bands(captions: Tensor, num_captions: int) -> Tensor:
    shares = captions.double() / num_captions
    bounds = torch.tensor(list(BANDS.values()), dtype=torch.float64)
    band = (shares[:, None] < bounds).sum(dim=1)
    return torch.where(captions >= NUM_LOOKED_AT, band, -1)


class BandSummary(NamedTuple):
    """What became of the words of a band."""

    band: str
    words: int
    learned: int  # and not forgotten
    forgotten: int
    not_yet: int
    half_known_after: int | None  # captions trained on when half of them were known first


def band_summaries(course: WordCourse) -> list[BandSummary]:
    """Returns a summary of each band that holds words, from frequent to rare."""
    summaries = []
    for place, band in enumerate(BANDS):
        words = course.band == place
        if not words.any():
            continue
        learned, forgotten = ((words & which).sum().item() for which in (course.learned >= 0, course.is_forgotten))
        half = (course.known[place] >= 0.5).nonzero().flatten().tolist()
        after = course.samples[half[0]] if half else None
        num = int(words.sum())
        summaries.append(BandSummary(band, num, learned - forgotten, forgotten, num - learned, after))
    return summaries
