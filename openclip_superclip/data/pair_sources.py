"""Pictures with captions where people keep them: a table, a folder, COCO's JSON, a Hugging Face data set on disk."""

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .caption_tokens import is_empty
from .table_check import rows_of
from .table_columns import Columns, is_table_file

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Keys(NamedTuple):
    """The columns of a table or data set, or the fields of a JSON, that hold what belongs to a pair."""

    columns: Columns
    label: str = ""  # of a class; "" where there is none
    long: str = ""  # of a second, longer caption


class Pair(NamedTuple):
    """A picture, by its file or its row, and its words; a caption that is missing is ""."""

    where: str  # for people: "row 3"
    picture: str
    caption: str
    label: str = ""
    long: str = ""


class Source(NamedTuple):
    """All pairs, and what reads a picture's file, as bytes."""

    pairs: list[Pair]
    read: Callable[[str], bytes]


def read_source(path: str, keys: Keys, images: Path | None) -> Source:
    """Returns the pairs of a table, a folder, COCO's JSON or a Hugging Face data set; InputError where there are none.

    Args:
        images: the folder of the pictures that COCO's JSON names; beside it where it is None.
    """
    place = Path(path)
    if is_table_file(path):
        source = Source(list(pairs_of_table(path, keys)), _read_file)
    elif place.is_dir() and any((place / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        source = _of_data_set(place, keys)
    elif place.is_dir():
        source = Source(list(pairs_of_folder(place, keys)), _read_file)
    elif path.endswith(".json"):
        source = Source(list(_of_coco(place, images or place.parent)), _read_file)
    else:
        raise InputError(
            f"{path} is no table (.csv, .tsv), folder of pictures, COCO's .json or Hugging Face data set on disk"
            + ("" if place.exists() else ": there is no such file or folder")
        )
    if not source.pairs:
        raise InputError(f"{path} holds no pair: expected pictures with a .txt or .json of the same name beside them")
    return source


def _read_file(picture: str) -> bytes:
    return Path(picture).read_bytes()


def pairs_of_table(path: str, keys: Keys, flag: str = "SOURCE") -> Iterator[Pair]:
    """Yields the rows of a table; InputError, which names `flag`, where it cannot be read as it is meant."""
    columns = keys.columns
    wanted = {"--label-key": keys.label, "--long-key": keys.long}
    for number, row in enumerate(rows_of(path, columns, flag), 1):
        for flag, key in wanted.items():
            if key and key not in row:
                raise InputError(f"{flag}: {path} has no column '{key}'; its columns are {', '.join(map(str, row))}")
        yield Pair(f"row {number}", _word(row[columns.image]), _word(row[columns.caption]), *_others(row, keys))


def pairs_of_folder(folder: Path, keys: Keys) -> Iterator[Pair]:
    """Yields the pictures below a folder that have a .txt or .json beside them."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        there = set(files)
        for name in sorted(files):
            stem, extension = os.path.splitext(name)
            if extension.lower() not in PICTURES or not {f"{stem}.txt", f"{stem}.json"} & there:
                continue
            beside, fields = Path(place, stem), {}
            if f"{stem}.json" in there:
                fields = _object(beside.with_name(f"{stem}.json"))
            caption = _word(fields.get(keys.columns.caption))
            if f"{stem}.txt" in there:
                caption = beside.with_name(f"{stem}.txt").read_text(errors="replace").strip()
            picture = str(Path(place, name))
            yield Pair(picture, picture, caption, *_others(fields, keys))


def _of_coco(file: Path, images: Path) -> Iterator[Pair]:
    """Yields a pair a caption of a JSON with `images` and `annotations`, as COCO's captions are."""
    content = _object(file)
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for number, one in enumerate(content["annotations"], 1):
            yield Pair(f"annotation {number}", str(images / names[one["image_id"]]), _word(one["caption"]))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not as COCO's captions are ({type(error).__name__}: {error}): expected images with id and "
            "file_name, and annotations with image_id and caption"
        ) from error


def _of_data_set(folder: Path, keys: Keys) -> Source:
    from ..optional_dependencies import check_datasets

    check_datasets(str(folder), "data")
    import datasets

    found = datasets.load_from_disk(str(folder))
    if isinstance(found, datasets.DatasetDict):
        raise InputError(
            f"{folder} holds the splits {', '.join(found)}: give one, such as {folder}/{next(iter(found))}"
        )
    columns = keys.columns
    named = {
        "--csv-img-key": columns.image, "--csv-caption-key": columns.caption, "--label-key": keys.label,
        "--long-key": keys.long,
    }  # fmt: skip
    for flag, key in named.items():
        if key and key not in found.column_names:
            raise InputError(f"{flag}: {folder} has no column '{key}'; its columns are {', '.join(found.column_names)}")
    pictures = found.select_columns([columns.image])
    if isinstance(found.features[columns.image], datasets.Image):
        pictures = pictures.cast_column(columns.image, datasets.Image(decode=False))
    names = getattr(found.features[keys.label], "int2str", None) if keys.label else None
    words = found.remove_columns([columns.image])

    def read(row: str) -> bytes:
        value = pictures[int(row)][columns.image]
        if isinstance(value, dict):
            return value["bytes"] or Path(value["path"]).read_bytes()
        return value if isinstance(value, bytes) else Path(str(value)).read_bytes()

    def pair(number: int, row: dict) -> Pair:
        if names is not None and row[keys.label] is not None:
            row = {**row, keys.label: names(row[keys.label])}
        return Pair(f"row {number + 1}", str(number), _word(row[columns.caption]), *_others(row, keys))

    return Source([pair(number, row) for number, row in enumerate(words)], read)


def _others(row: dict, keys: Keys) -> tuple[str, str]:
    return _word(row.get(keys.label)) if keys.label else "", _word(row.get(keys.long)) if keys.long else ""


def _word(value) -> str:
    """Returns a cell as text, "" where it is empty."""
    return "" if value is None or is_empty(value) else str(value).strip()


def _object(file: Path) -> dict:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no readable JSON ({' '.join(str(error).split())})") from error
    return content if isinstance(content, dict) else {}


def picture_extension(data: bytes) -> str:
    """Returns the extension under which a shard holds a picture's file, "" where OpenCLIP reads no such file.

    Raises whatever Pillow raises for a file that is no whole picture.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}.get(image.format, "")


def as_png(data: bytes) -> bytes:
    """Returns a picture of another kind, the first frame of a film, as a PNG."""
    from PIL import Image

    written = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGBA" if "transparency" in image.info or image.mode == "RGBA" else "RGB").save(written, "PNG")
    return written.getvalue()
