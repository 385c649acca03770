"""The folder of `superclip words`: the contact sheet, the lines of JSON and the heat maps of many pictures."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ..atomic_files import whole_file
from .contact_sheet import write_contact_sheet
from .tagged_picture import TaggedPicture, tag_pictures
from .tagger import Tagger
from .unfinished_words import UnfinishedWords

SHEET, LINES = "index.html", "words.jsonl"


def unfinished_words(
    out: Path, model: Path, words: str | None, tagger: Tagger, pictures: list[Path], heatmap: bool
) -> UnfinishedWords:
    """Returns what an earlier call that was stopped has left in the folder, if it asked for the same."""
    files = [file for file in sorted(model.rglob("*")) if file.is_file()] if model.is_dir() else [model]
    settings = {
        "model": [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "words": words and tagger.lexicon.words,
        "top": tagger.top,
        "heat maps": heatmap and [str(path) for path in pictures],  # whose names depend on each other
    }
    return UnfinishedWords(out / f"{LINES}.part", settings)


def write_words_folder(
    out: Path, paths: list[Path], tagger: Tagger, model: str, heatmap: bool, unfinished: UnfinishedWords,
    tell: Callable[[TaggedPicture], None],
) -> None:  # fmt: skip
    """Writes the contact sheet and the lines of JSON, each picture as soon as it is tagged.

    Args:
        heatmap: whether heat maps are drawn into the folder.
        tell: called with each picture, in order.
    """
    with unfinished, whole_file(out / LINES) as lines, whole_file(out / SHEET) as sheet:

        def tagged() -> Iterator[TaggedPicture]:
            for picture in tag_pictures(paths, tagger, out if heatmap else None, unfinished.earlier):
                lines.write(f"{picture.json()}\n".encode())
                unfinished.add(picture)
                tell(picture)
                yield picture

        write_contact_sheet(sheet, f"The words of {len(paths):,} pictures", model, heatmap, tagged())
