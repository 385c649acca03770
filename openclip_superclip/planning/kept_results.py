"""What was counted of a model once, kept between commands: importing OpenCLIP to count it again takes seconds."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from ..atomic_files import write_json
from ..shipped_files import PACKAGE
from ..versions import versions

COUNTED_BY = ("method", "planning")  # folders of this package


def kept(what: str, inputs: dict, count: Callable[[], dict]) -> dict:
    """Returns `count()`, or what an earlier call with the same `inputs`, versions and model files returned.

    Kept in $XDG_CACHE_HOME/openclip-superclip, ~/.cache where it is not set; a folder that cannot be written keeps
    nothing.

    Args:
        what: that is counted, a word.
        inputs: all that the result follows from, for JSON; its "model" is OpenCLIP's --model.
    """
    code = [
        (path.name, path.stat().st_mtime_ns) for name in COUNTED_BY for path in sorted((PACKAGE / name).glob("*.py"))
    ]
    depends_on = versions("python", "open_clip_torch", "torch", "timm"), code, _model_file(inputs["model"])
    key = hashlib.sha256(json.dumps([what, inputs, depends_on]).encode()).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openclip-superclip"
    file = cache / "counts" / f"{what}-{key}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text())
    result = count()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, result)
    return result


def _model_file(model: str) -> str:
    """Returns the configuration that lies in a folder or file of the user's, "" for a model that OpenCLIP brings."""
    folder = model.removeprefix("local-dir:")
    file = Path(folder, "open_clip_config.json") if folder != model else Path(model)
    try:
        return file.read_text() if file.is_file() else ""
    except (OSError, ValueError):
        return ""
