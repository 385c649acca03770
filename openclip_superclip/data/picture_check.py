"""Whether pictures can be read, as training would open them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from tqdm import tqdm

from .shard_pattern import is_remote

THREADS = 8  # Pillow decodes outside Python's lock


def picture_problem(picture: str, whole: bool = True) -> str:
    """Returns why a picture cannot be read, "" where it can; `whole` decodes it, not its header alone. URLs pass."""
    if is_remote(picture):
        return ""
    if not os.path.exists(picture):
        return "no such file"
    try:
        with Image.open(picture) as image:
            if whole:
                image.load()
    except Exception as error:  # of a broken file Pillow's decoders raise anything
        return f"no readable picture ({' '.join(str(error).split()) or type(error).__name__})"
    return ""


def picture_problems(
    pictures: Sequence[str], num_whole: int | None = None, threads: int = THREADS, quiet: bool = True
) -> list[str]:
    """Returns each picture's problem, "" where it has none. The first `num_whole` are decoded, None: all of them."""
    last = len(pictures) if num_whole is None else num_whole
    with ThreadPoolExecutor(threads) as pool:
        problems = pool.map(picture_problem, pictures, [place < last for place in range(len(pictures))])
        return list(tqdm(problems, total=len(pictures), desc="reading pictures", unit=" pictures", disable=quiet))
