"""An OpenCLIP plugin for the study held_out_words: names of half of the objects are no labels of
the class loss."""

import random
from collections.abc import Callable, Sequence

import open_clip
import pluggy

hookimpl = pluggy.HookimplMarker("open_clip")


def held_out_objects(seed: int, number: int = 50) -> list[str]:
    """Returns the objects whose words are left out, drawn by a seed from the demo's 100 names."""
    from openclip_superclip.lab.demo.scenes import NAMES

    return sorted(random.Random(f"held-out words {seed}").sample(NAMES, number))


def held_out_tokens(tokenizer: Callable, held_out: Sequence[str]) -> list[int]:
    """Returns the token ids of the held-out names; ValueError if another name has one of them."""
    from openclip_superclip.lab.demo.scenes import NAMES

    tokens = {token for name in held_out for token in tokenizer.encode(name)}
    for name in set(NAMES).difference(held_out):
        if not tokens.isdisjoint(tokenizer.encode(name)):
            raise ValueError(f"'{name}' has a token of a held-out name")
    return sorted(tokens)


@hookimpl
def open_clip_add_options(parser):
    parser.add_argument(
        "--held-out-words",
        type=int,
        metavar="NUMBER",
        help="Leaves the words of NUMBER random objects out of SuperCLIP's class loss.",
    )


@hookimpl
def open_clip_check_options(args):
    if args.held_out_words and not args.superclip:
        raise SystemExit("error: --held-out-words: expected --superclip")


@hookimpl
def open_clip_model_created(args, model):
    if args.held_out_words:
        held_out = held_out_objects(args.seed, args.held_out_words)
        tokens = held_out_tokens(open_clip.get_tokenizer(args.model), held_out)
        model.statistics.counted[tokens] = False
