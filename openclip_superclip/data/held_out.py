"""Holds out pairs for validation, so that no image and no caption is on both sides of the split."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ..errors import InputError
from ..files import content_digest

NUM_THREADS = 8  # that read images


def image_digests(paths: Iterable[str]) -> dict[str, str]:
    """Returns a digest of each image's content, or the path itself for an unreadable file."""
    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        digests = pool.map(_digest, paths)
        progress = tqdm(digests, "comparing images", len(paths), unit=" images", disable=None)
        return dict(zip(paths, progress, strict=True))


def _digest(path: str) -> str:
    if not os.path.isfile(path):  # a device may have no end, and a pipe no writer
        return path
    try:
        return content_digest(Path(path))
    except OSError:
        return path


def held_out(
    images: Sequence[str],
    captions: Sequence[str],
    fraction: float,
    flag: str,
) -> list[bool]:
    """Returns for each pair whether it is held out for validation.

    Pairs that share an image or a caption, directly or through other pairs, form a group, and a
    group is on one side. Captions that differ only in case or white space are equal. Groups are
    held out in an order that depends on their content alone, until `fraction` of the pairs with a
    caption is reached; groups that would exceed it are left for training. Paths and the order of
    the pairs do not matter, and adding pairs changes the side of few others.

    Args:
        images: digests of the images, as `image_digests` returns them.
        captions: the captions; "" if missing.
        flag: the option that sets `fraction`, for messages.

    Raises InputError if all pairs with a caption form one group.
    """
    if not fraction:
        return [False] * len(images)
    groups = _groups(images, captions)
    sizes = Counter(group for group, caption in zip(groups, captions, strict=True) if caption)
    num_pairs = sizes.total()
    if not num_pairs:
        raise InputError(f"{flag} is {fraction}: there is no pair with a caption to split")
    if len(sizes) < 2:
        raise InputError(
            f"{flag} is {fraction}: the pairs cannot be split, because all {num_pairs:,} of them "
            "share images or captions; expected different images and captions, or "
            f"{flag} 0 and other data for validation"
        )
    keys: dict[int, str] = {}
    for group, image in zip(groups, images, strict=True):
        keys[group] = min(keys.get(group, image), image)

    def place(group: int) -> bytes:
        return hashlib.sha256(keys[group].encode(errors="replace")).digest()

    wanted = min(max(round(fraction * num_pairs), 1), num_pairs - 1)
    chosen, num_chosen = set(), 0
    for group in sorted(sizes, key=place):
        if num_chosen + sizes[group] <= wanted:
            chosen.add(group)
            num_chosen += sizes[group]
    if not chosen:  # every group is larger than the fraction
        chosen.add(min(sorted(sizes, key=place), key=sizes.get))
    return [group in chosen for group in groups]


def _groups(images: Sequence[str], captions: Sequence[str]) -> list[int]:
    """Returns the group of each pair, as the index of one of the group's pairs."""
    parents = list(range(len(images)))

    def root(pair: int) -> int:
        while parents[pair] != pair:
            parents[pair] = parents[parents[pair]]
            pair = parents[pair]
        return pair

    first_pairs: dict[tuple[str, str], int] = {}
    for pair, (image, caption) in enumerate(zip(images, captions, strict=True)):
        links = [("image", image)]
        if caption:
            links.append(("caption", " ".join(caption.split()).casefold()))
        for link in links:
            parents[root(pair)] = root(first_pairs.setdefault(link, pair))
    return [root(pair) for pair in range(len(images))]
