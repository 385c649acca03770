"""The class head that an export keeps beside the weights which OpenCLIP is to load."""

from pathlib import Path

from open_clip.factory import parse_model_name
from open_clip.pretrained import download_pretrained_from_hf
from torch import Tensor

from . import HEAD_NAME, WEIGHTS_NAMES
from .checkpoint import read_head


def kept_head(model: str, pretrained: str | None, cache_dir: str | None = None) -> dict[str, Tensor] | None:
    """Returns class head and counts of what OpenCLIP's --model and --pretrained name; None where no file keeps them."""
    schema, place = parse_model_name(model)
    if pretrained and Path(pretrained).is_file():  # it comes before the weights in a folder
        if Path(pretrained).name not in WEIGHTS_NAMES.values():
            return None
        file = Path(pretrained).with_name(HEAD_NAME)
    elif schema == "hf-hub":
        return _head_on_the_hub(place, cache_dir)
    elif schema == "local-dir":
        file = Path(place, HEAD_NAME)
    else:
        return None
    return read_head(file)[0] if file.is_file() else None


def _head_on_the_hub(repo: str, cache_dir: str | None) -> dict[str, Tensor] | None:
    try:
        file = download_pretrained_from_hf(repo, filename=HEAD_NAME, cache_dir=cache_dir)
    except FileNotFoundError:  # as OpenCLIP tells that there is none
        return None
    return read_head(Path(file))[0]
