"""Reads pairs of images and captions: from a table, a folder or COCO's JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import json_or_empty, read_json
from .caption_text import text_of
from .images import images_below
from .tables import Columns, is_table, rows_of


class Keys(NamedTuple):
    """The columns of a table, or the fields of a JSON file, that make up a pair."""

    columns: Columns
    label: str = ""  # the class; "" if there is none
    long: str = ""  # a second, longer caption


class Pair(NamedTuple):
    """The path of an image, and its texts; a missing text is ""."""

    where: str  # for messages: "row 3"
    image: str
    caption: str
    label: str = ""
    long: str = ""


def read_pairs(path: str, keys: Keys, images: Path | None) -> list[Pair]:
    """Returns the pairs of a table, a folder or COCO's JSON with its images in `images`;
    InputError for none."""
    source = Path(path)
    if is_table(path):
        pairs = list(pairs_of_table(path, keys))
    elif source.is_dir():
        pairs = list(_pairs_of_folder(source, keys))
    elif path.endswith(".json"):
        pairs = list(_pairs_of_coco(source, images or source.parent))
    else:
        raise InputError(
            f"SOURCE is {path}; expected a table (.csv, .tsv), an existing folder of images or "
            "COCO's .json"
        )
    if not pairs:
        raise InputError(f"{path} holds no image")
    for name in ("label", "long"):
        key = getattr(keys, name)
        if key and not any(getattr(pair, name) for pair in pairs):
            raise InputError(f"--{name}-key: no pair of {path} has a '{key}'")
    return pairs


def pairs_of_table(path: str, keys: Keys, flag: str = "SOURCE") -> Iterator[Pair]:
    """Yields the rows of a table; InputError, which names `flag`, if it cannot be read."""
    rows = rows_of(path, keys.columns, flag, dtype=str, exact=[keys.label])
    for number, row in enumerate(rows, 1):
        yield _pair(f"row {number}", text_of(row[keys.columns.image]), row, keys)


def _pairs_of_folder(folder: Path, keys: Keys) -> Iterator[Pair]:
    """Yields the images below a folder, with the texts of the .txt or .json file of the same name,
    if there is one."""
    for image in images_below(folder):
        text = image.with_suffix(".txt")
        fields = json_or_empty(image.with_suffix(".json"))
        pair = _pair(str(image), str(image), fields, keys)
        if text.is_file() and not keys.columns.caption:  # a field of the .json
            try:
                caption = text.read_text("utf-8-sig").strip()
            except UnicodeDecodeError:
                raise InputError(f"{text} is not UTF-8: save it as UTF-8") from None
            pair = pair._replace(caption=caption)
        yield pair


def _pairs_of_coco(file: Path, images: Path) -> Iterator[Pair]:
    """Yields a pair for each caption of a JSON in COCO's format."""
    content = read_json(file)
    try:
        names = {image["id"]: str(images / image["file_name"]) for image in content["images"]}
        for number, annotation in enumerate(content["annotations"], 1):
            image = names[annotation["image_id"]]
            caption = text_of(annotation["caption"])
            yield Pair(f"annotation {number}", image, caption)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{file} does not have the format of COCO's captions ({error!r})"
        ) from error


def _pair(where: str, image: str, row: dict, keys: Keys) -> Pair:
    """Returns the pair of a row, with its label in one line."""
    return Pair(
        where,
        image,
        caption=text_of(row.get(keys.columns.caption or "caption")),
        label=" ".join(text_of(row.get(keys.label)).split()),
        long=text_of(row.get(keys.long)),
    )
