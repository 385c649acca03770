"""What shards hold, as far as training needs it."""

import functools
import os
import tarfile
from typing import NamedTuple

from tqdm import tqdm

from .caption_tokens import long_caption
from .forked_workers import work_on
from .shard_reader import read_samples

IMAGES = ("png", "jpg", "jpeg", "webp")  # OpenCLIP's


class Look(NamedTuple):
    """What was found in a shard; `problem` says why training would find nothing in it, or not all, and is "" if not."""

    shard: str
    num_samples: int  # with picture and caption, up to where it can be read
    num_long: int  # of them, with a long caption
    members: str  # of all samples
    problem: str


def look_at(shards: list[str], place: str, jobs: int | None = None) -> list[Look]:
    """Returns a look at each of the local shards, from `jobs` processes (None: one a core) where they are many."""
    if len(shards) <= 2:
        return [look(shard, place) for shard in shards]
    looks = work_on(functools.partial(look, place=place), shards, jobs or os.cpu_count() or 1, "--jobs")
    return list(tqdm(looks, total=len(shards), desc="reading shards", unit=" shards"))


def look(shard: str, place: str = "", until_found: bool = False) -> Look:
    """Reads a local shard, its pictures passed over.

    Args:
        place: the long caption's, "" for none.
        until_found: whether to stop once there was a caption, and a long one, instead of at the shard's end.
    """
    num_samples = num_long = 0
    members, problem, has_caption = {}, "", False
    try:
        for sample in read_samples(shard, place):
            if "txt" in sample and any(image in sample for image in IMAGES):
                num_samples += 1
                has_caption = has_caption or bool(sample["txt"].strip())
                num_long += bool(place) and _has_long_caption(sample, place)
            members |= dict.fromkeys(name for name in sample if not name.startswith("__"))
            if until_found and has_caption and (num_long or not place):
                break
    except (OSError, EOFError, tarfile.TarError) as error:
        problem = f"not a whole tar file ({str(error).partition(':')[0]})"  # tarfile goes on with what it has tried
    found = ", ".join(members) or "nothing"
    if not problem and not num_samples:
        problem = f"no sample has a picture (.{', .'.join(IMAGES)}) and a caption (.txt); its members are {found}"
    elif not problem and not has_caption:
        problem = "all of its captions (.txt) are empty"
    return Look(shard, num_samples, num_long, found, problem)


def _has_long_caption(sample: dict, place: str) -> bool:
    try:
        return bool(long_caption(sample, place))
    except ValueError:  # cannot be read: OpenCLIP skips it
        return False
