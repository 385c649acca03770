"""What a data check warns of: training would start, but not on what its user has in mind."""

from collections.abc import Sequence

from .shard_arithmetic import TOLERANCE
from .shard_contents import Look


def all_of(checked: dict, looks: Sequence[Look], listed: dict[str, int], long_caption: str) -> list[str]:
    """Returns the warnings that follow from the findings of a data check."""
    return [
        *_bad(checked),
        *_without_long_caption(looks, long_caption),
        *_wrong_list(looks, listed),
        *_other_number(checked),
    ]


def remote(num_remote: int, num_shards: int) -> list[str]:
    """Returns the warning that shards which are not files cannot be looked at."""
    return [
        f"{num_remote:,} of {num_shards:,} shards are URLs or pipes: that they exist and what they hold is not checked"
    ]


def _bad(checked: dict) -> list[str]:
    if not checked["bad"]:
        return []
    seen = "" if checked["full"] else ", and the first and the last alone were read: --check reads all"
    return [f"training passes over {len(checked['bad']):,} shards that are missing or broken{seen}"]


def _without_long_caption(looks: Sequence[Look], long_caption: str) -> list[str]:
    num_samples = sum(look.num_samples for look in looks)
    without = num_samples - sum(look.num_long for look in looks)
    if not long_caption or not without:
        return []
    return [f"{without:,} of {num_samples:,} samples looked at have no long caption '{long_caption}'"]


def _wrong_list(looks: Sequence[Look], listed: dict[str, int]) -> list[str]:
    wrong = [
        look for look in looks if not look.problem and listed.get(look.shard, look.num_samples) != look.num_samples
    ]
    if not wrong:
        return []
    first = wrong[0]
    return [
        f"sizes.json is wrong about {len(wrong):,} shards: {first.shard} holds {first.num_samples:,} samples, not "
        f"{listed[first.shard]:,}"
    ]


def _other_number(checked: dict) -> list[str]:
    expected = checked["samples_expected"]
    found = checked["samples"] or checked["samples_listed"]
    if not expected or not found or abs(found - expected) <= TOLERANCE * expected:
        return []
    where = "the shards hold" if checked["samples"] else "sizes.json lists"
    return [f"{where} {found:,} samples, and the recipe says {expected:,}: --set data_samples={found} plans with those"]
