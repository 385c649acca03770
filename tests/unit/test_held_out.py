"""Pairs held out for validation: no image and no caption is on both
sides."""

import os
import random

import pytest
from support import cases, input_error, table

from openclip_superclip.data.held_out import held_out, image_digests


def split(pairs, fraction=0.2):
    images, captions = zip(*pairs, strict=True)
    return held_out(images, captions, fraction)


def test_no_image_and_no_caption_is_on_both_sides():
    draw = random.Random(0)
    pairs = [(f"image {draw.randrange(600)}", f"caption {draw.randrange(900)}") for _ in range(500)]
    sides = split(pairs)
    for part in (0, 1):
        texts = {False: set(), True: set()}
        for pair, is_held_out in zip(pairs, sides, strict=True):
            texts[is_held_out].add(pair[part])
        assert texts[True] and not texts[False] & texts[True]
    assert sum(sides) / len(sides) == pytest.approx(0.2, abs=0.01)


def test_captions_that_differ_in_case_and_white_space_are_equal_and_missing_ones_are_not():
    pairs = [
        ("1", "a  Caf\u00e9 &amp; tea "),
        ("2", "A cafe\u0301 & tea"),
        *((f"other {n}", f"a dog, {n}") for n in range(8)),
    ]
    assert len({*split(pairs, 0.5)[:2]}) == 1
    pairs = [(f"image {number}", "") for number in range(20)]
    sides = split([*pairs, ("image 1", "a cat"), ("image 2", "a dog")], 0.5)
    assert sum(sides[-2:]) == 1
    assert sum(sides) == 2  # and the row of the same image without a caption


def test_the_order_of_the_pairs_does_not_matter_and_added_pairs_move_few():
    pairs = [(f"image {number}", f"caption {number}") for number in range(400)]
    sides = dict(zip(pairs, split(pairs), strict=True))
    shuffled = random.Random(0).sample(pairs, len(pairs))
    assert dict(zip(shuffled, split(shuffled), strict=True)) == sides
    more = pairs + [(f"new {number}", f"of new {number}") for number in range(100)]
    now = dict(zip(more, split(more), strict=True))
    assert sum(now[pair] != sides[pair] for pair in pairs) < 20


@cases("num_pairs, fraction, num_held_out", table("shards_and_tables: held out"))
def test_the_fraction_is_exact_and_both_sides_have_pairs(num_pairs, fraction, num_held_out):
    pairs = [(f"image {number}", f"caption {number}") for number in range(num_pairs)]
    assert sum(split(pairs, fraction)) == num_held_out


def test_a_number_that_leaves_no_pair_for_training_is_refused():
    with input_error("--val-fraction is 5000: none of the 2 pairs with a caption would be left"):
        split([("1", "a cat"), ("2", "a dog")], 5000)


def test_a_large_group_is_left_for_training_and_without_small_ones_the_smallest_is_held_out():
    large = [(f"image {number}", "a cat") for number in range(60)]
    others = [(f"other {number}", f"caption {number}") for number in range(40)]
    assert not any(split(large + others, 0.3)[:60])
    assert sum(split(large + [(f"other {number}", "a dog") for number in range(40)], 0.1)) == 40


@cases("pairs, reason", table("shards_and_tables: pairs that cannot be split"))
def test_pairs_that_cannot_be_split_are_refused(pairs, reason):
    with input_error(f"--val-fraction is 0.2: {reason}"):
        split(pairs)


def test_equal_files_have_equal_digests_and_other_paths_are_their_own_digest(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    paths = [*(str(tmp_path / name) for name in "a b c pipe missing".split()), "/dev/zero"]
    first, same, other, *no_files = image_digests(paths)
    assert first == same != other
    assert no_files == paths[3:]
