"""The text of captions in shards and tables: where it is, and whether there is any."""

import json
from numbers import Number


def caption_place(long_caption: str) -> str:
    """Returns `json:FIELD` unchanged, and an extension in WebDataset's spelling."""
    return long_caption if long_caption.startswith("json:") else long_caption.lower().lstrip(".")


def caption_member(long_caption: str) -> str:
    """Returns the extension of the member that contains the long caption."""
    return caption_place(long_caption).partition(":")[0]


def long_caption(sample: dict, key: str) -> str:
    """Returns the caption at `key`, an extension, a column or a JSON field `json:a.b`; "" if
    missing."""
    if not key.startswith("json:"):
        return text_of(sample.get(key, sample.get(caption_place(key))))
    value = sample.get("json")
    if isinstance(value, (bytes, str)):
        value = json.loads(value)
    for name in key.removeprefix("json:").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return text_of(value)


def has_long_caption(sample: dict, key: str) -> bool:
    """Returns whether there is a readable long caption at `key`."""
    try:
        return bool(long_caption(sample, key))
    except ValueError:
        return False


def text_of(value) -> str:
    """Returns a stripped string, or a number as text; "" for anything else, such as an empty
    cell."""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, Number) and value == value:  # NaN is pandas' empty cell
        value = str(value)
    # JSON may hold half of a surrogate pair, which UTF-8 cannot encode
    return value.strip().encode(errors="replace").decode() if isinstance(value, str) else ""
