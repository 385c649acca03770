"""When a run learned each word, by how often captions hold it."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data.captions import TokenizerIdentity, token_texts, tokenizer_identity
from ..errors import InputError
from ..files import whole_file, write_json, write_text
from ..method.word_knowledge import EpochWords
from ..pages import markdown_table, pyplot, run_names

FOLDER, TOKENS = "words", "tokens.json"
_NAME = re.compile(r"epoch_([1-9]\d*)\.safetensors")
_HELP = "copy it again, or move it away: the course is told without it"


class CourseFiles(NamedTuple):
    """What a run has recorded of its words."""

    run: Path
    identity: TokenizerIdentity
    texts: list[str]  # of the tokens, for people
    epochs: list[int]

    def read(self, epoch: int) -> EpochWords:
        """Returns what was recorded of an epoch; InputError where its file is damaged, or of another tokenizer."""
        path = self.run / FOLDER / f"epoch_{epoch}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                all_observed = "num_trained" not in file.keys()  # noqa: SIM118  written by version 0.1
                words = EpochWords(
                    *map(file.get_tensor, ("captions", "share_where_label", "share_where_not")),
                    num_captions=int(file.get_tensor("num_captions")),
                    num_trained=int(file.get_tensor("num_captions" if all_observed else "num_trained")),
                )
                vocabulary = about["vocabulary"]
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{path} is no file of words ({' '.join(str(error).split())}): {_HELP}") from error
        if vocabulary != self.identity.vocabulary:
            raise InputError(f"{path} is of another tokenizer than the folder's {TOKENS}: {_HELP}")
        for name, values in words._asdict().items():
            if isinstance(values, Tensor) and values.shape != (len(self.texts),):
                raise InputError(
                    f"{path} holds {name} of shape {list(values.shape)}, where {TOKENS} names {len(self.texts):,} "
                    "tokens: copy the damaged file of the two again"
                )
        fewest, most = words.captions.aminmax()
        if (
            words.captions.is_floating_point()
            or fewest < 0
            or not words.num_trained >= words.num_captions >= max(most, 1)
        ):
            raise InputError(f"{path} holds impossible counts of captions: {_HELP}")
        return words


def write_epoch_words(run: Path, epoch: int, words: EpochWords, tokenizer) -> None:
    """Writes the file of an epoch, counted from 1, and once what the tokens are.

    Args:
        tokenizer: OpenCLIP's.
    """
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    identity = tokenizer_identity(tokenizer)
    tokens = folder / TOKENS
    if not _tells(tokens, identity, len(words.captions)):
        write_json(tokens, {**identity._asdict(), "tokens": token_texts(tokenizer, len(words.captions))})
    tensors = {
        "captions": words.captions,
        "share_where_label": words.share_where_label,
        "share_where_not": words.share_where_not,
        "num_captions": words.captions.new_tensor(words.num_captions),
        "num_trained": words.captions.new_tensor(words.num_trained),
    }
    about = {"epoch": str(epoch), "tokenizer": identity.name, "vocabulary": identity.vocabulary}
    with whole_file(folder / f"epoch_{epoch}.safetensors") as file:
        file.write(_with_sorted_header(save(tensors, about)))


def _with_sorted_header(data: bytes) -> bytes:
    """Returns a file of safetensors with the names in its header sorted: their order is random otherwise."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def find_course(run: Path) -> CourseFiles | None:
    """Returns what the run in a folder has recorded of its words, None where it has nothing; InputError if broken."""
    folder = run / FOLDER
    found = (_NAME.fullmatch(path.name) for path in folder.glob("epoch_*.safetensors"))
    epochs = sorted(int(match[1]) for match in found if match)
    if not epochs:
        return None
    return CourseFiles(run, *_read_tokens(folder / TOKENS), epochs)


def _read_tokens(path: Path) -> tuple[TokenizerIdentity, list[str]]:
    """Returns the tokenizer and the texts of its tokens; InputError where the file is not there or broken."""
    try:
        tokens = json.loads(path.read_text())
        identity, texts = TokenizerIdentity(tokens["name"], tokens["vocabulary"]), tokens["tokens"]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError("tokens is no list of texts")
        return identity, texts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not say what the tokens are ({error}): copy it again, or that of another run of the same "
            "tokenizer"
        ) from error


def _tells(path: Path, identity: TokenizerIdentity, num_tokens: int) -> bool:
    """Returns whether a file of tokens is whole and of this tokenizer."""
    try:
        written, texts = _read_tokens(path)
    except InputError:
        return False
    return written.vocabulary == identity.vocabulary and len(texts) == num_tokens


NAME = "word_course"
SHOWN = 12  # words of a list


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
    num_captions: int  # observed in the recorded epochs
    captions: Tensor  # int64 [V], of those, that contain the token
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


def course_text(course: WordCourse) -> str:
    """Returns what people are told of a run's words, in Markdown."""
    rows = [
        [
            summary.band, f"{summary.words:,}",
            "–" if summary.half_known_after is None else f"{summary.half_known_after:,}",
            f"{summary.learned:,}", f"{summary.not_yet:,}", f"{summary.forgotten:,}",
        ]
        for summary in band_summaries(course)
    ]  # fmt: skip
    heads = ["in … of captions", "words", "half known after", "learned", "not yet", "forgotten"]
    num_rare = int(((course.captions > 0) & (course.band < 0)).sum())
    lines = [
        f"{course.name}: {course.samples[-1]:,} captions in {course.epochs[-1]:,} epochs; a word is known where its "
        f"share is {KNOWN:g} × that in other pictures; {num_rare:,} words are in fewer than {NUM_LOOKED_AT} of "
        f"the {course.num_captions:,} captions observed",
        markdown_table(heads, rows),
    ]
    lists = [("first", _by_time(course)), ("last", _by_time(course)[::-1]), *_states(course)]
    told = [f"{what}: {_shortened(course, tokens)}" for what, tokens in lists if tokens]
    return "\n\n".join([*lines, "\n".join(told)]) + "\n"


def write_word_courses(out: Path, courses: Sequence[WordCourse]) -> None:
    """Writes word_course.csv, a row a run and word; .json, the bands' curves; and .png, which shows them."""

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{NAME}.csv", _csv(courses))
    write_json(out / f"{NAME}.json", {"runs": [course_record(course) for course in courses]}, allow_nan=False)
    with whole_file(out / f"{NAME}.png") as file:
        file.write(draw_word_courses(courses))


def _by_time(course: WordCourse) -> list[int]:
    """Returns the tokens that were learned, the first first, of one time the frequent ones."""
    tokens = (course.learned >= 0).nonzero().flatten().tolist()
    return sorted(tokens, key=lambda token: (int(course.learned[token]), -int(course.captions[token])))


def _states(course: WordCourse) -> list[tuple[str, list[int]]]:
    """Returns the tokens that are not yet learned and those that were forgotten, the frequent ones first."""
    by_state = {"not yet learned": (course.band >= 0) & (course.learned < 0), "forgotten": course.is_forgotten}
    order = course.captions.argsort(descending=True, stable=True)
    return [(state, order[which[order]].tolist()) for state, which in by_state.items()]


def _shortened(course: WordCourse, tokens: list[int]) -> str:
    more = f" and {len(tokens) - SHOWN:,} more" if len(tokens) > SHOWN else ""
    return " ".join(course.texts[token] for token in tokens[:SHOWN]) + more


def _csv(courses: Sequence[WordCourse]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "token", "word", "captions", "share of captions", "state", "learned after", "lift"])
    for course in courses:
        for token in (course.captions > 0).nonzero().flatten().tolist():
            captions, lift = int(course.captions[token]), float(course.lift[token])
            writer.writerow([
                course.name, token, course.texts[token], captions, f"{captions / course.num_captions:.6g}",
                course.state(token), course.learned_after(token), "" if lift != lift else f"{lift:.4g}",
            ])  # fmt: skip
    return file.getvalue()


def course_record(course: WordCourse) -> dict:
    """Returns what JSON tells of a run's words: what became of each band's, and its curves."""
    places = course.band[course.band >= 0].unique().tolist()
    curves = [
        summary._asdict() | {"known": _numbers(course.known[place]), "median_lift": _numbers(course.median_lift[place])}
        for summary, place in zip(band_summaries(course), places, strict=True)
    ]
    return {
        "run": course.name, "known_from_lift": KNOWN, "captions_for_a_look": NUM_LOOKED_AT, "epochs": course.epochs,
        "epochs_not_recorded": course.missing, "captions": course.samples, "bands": curves,
    }  # fmt: skip


def _numbers(curve: torch.Tensor) -> list[float | None]:
    return [round(value, 6) if abs(value) < float("inf") else None for value in curve.tolist()]


KNOWN = 4.0  # lift from which a word is known
FORGOTTEN = KNOWN / 2  # below which one that was known is forgotten
NUM_LOOKED_AT = 20  # captions that hold a word, for a look at it
SHOWN_WORDS = 12  # missing epochs, by number
BANDS = {  # by the share of the captions that hold a word, from the top
    "10 % or more": 1e-1, "1 to 10 %": 1e-2, "0.1 to 1 %": 1e-3, "0.01 to 0.1 %": 1e-4, "less than 0.01 %": 0.0,
}  # fmt: skip


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
        samples.append((epoch - before) * words.num_trained + (samples[-1] if samples else 0))
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
    numbers = ", ".join(str(epoch) for epoch in course.missing[:SHOWN_WORDS])
    more = f" and {len(course.missing) - SHOWN_WORDS:,} more" if len(course.missing) > SHOWN_WORDS else ""
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


COLOURS = ["#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#e8c500"]  # from frequent to rare


def draw_word_courses(courses: Sequence[WordCourse]) -> bytes:
    """Returns a PNG: a column a run, above which part of a band's words is known, below their median lift."""
    plt = pyplot()
    figure, grid = plt.subplots(
        2, len(courses), figsize=(max(5.5, 4.4 * len(courses)), 5.6), squeeze=False, sharex="col", sharey="row",
        layout="constrained",
    )  # fmt: skip
    for (above, below), course in zip(grid.T, courses, strict=True):
        for place, (band, colour) in enumerate(zip(BANDS, COLOURS, strict=True)):
            num_words = int((course.band == place).sum())
            if num_words:
                look = {"color": colour, "marker": ".", "label": f"{band}: {num_words:,}"}
                above.plot(course.samples, 100 * course.known[place], **look)
                below.plot(course.samples, course.median_lift[place], **look)
        below.set_yscale("log")
        below.yaxis.set_major_formatter("{x:g}")  # not 4 × 10⁰
        below.yaxis.set_minor_formatter("{x:g}")
        below.axhline(KNOWN, color="#888", linewidth=0.8, linestyle=":")
        below.set_xlabel("captions trained on")
        above.set_title(course.name, fontsize=10)
        above.legend(title="in … of captions: words", fontsize=7, title_fontsize=7)
        for axes in (above, below):
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("words known, %")
    grid[1, 0].set_ylabel("median lift")
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
    return file.getvalue()
