"""The data set `natural`: drawings with human-made names, a long tail of concepts, and noisy
captions.

Each seed defines a separate data set with its own concepts, frequencies, training scenes and test
scenes. All random numbers are integers, so that a seed gives the same scenes on every processor.
"""

import itertools
import zlib
from bisect import bisect
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image

from .scenes import CORNERS, IMAGE_SIZE, QUADRANT, Scene, emoji, split_of, tile

TRAINING_DESIGNERS = ("google", "twitter", "emojione")
UNSEEN_DESIGNERS = ("fluent",)
NUM_CONCEPTS = 300  # concepts per seed, drawn from those that all four designers drew
VERSION = 1  # raise it if the same seed gives other scenes

COLOURS = {
    "red": (215, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 215, 50),
    "green": (50, 160, 70),
    "blue": (50, 90, 210),
    "purple": (140, 60, 180),
    "pink": (245, 130, 180),
    "gray": (120, 120, 120),
}
# pixels, for an object in a quarter of the image
SIZES = {"small": range(19, 24), "large": range(28, 33)}
SIZES_ALONE = {"small": range(32, 41), "large": range(48, 61)}  # pixels, for a scene's only object
PLACES = (
    "at the top left",
    "at the top right",
    "at the bottom left",
    "at the bottom right",
    "in the middle",
)
NUM_OBJECTS = (1, 1, 1, 2, 2, 3)  # objects per scene, equally likely
CONTEXT = 28  # tokens: nearly all captions fit
MIDDLE = PLACES.index("in the middle")
DETERMINERS = ("a", "the", "one", "this")
FRAMES = ("{}", "{}", "there is {}", "a drawing of {}", "{} on a card")
LINKS = (" and ", ", ", " with ", " next to ")
MEASURES = (
    "zero_shot",
    "new_combinations",
    "image_to_text_R@1",
    "text_to_image_R@1",
    "image_to_long_text_R@1",
    "long_text_to_image_R@1",
    "tagging",
    "linear_probe",
)
TEMPLATES = ("a {}", "the {}", "a drawing of a {}")  # for zero-shot classification
UNKNOWN = "something"  # in captions that name no object


class Concept(NamedTuple):
    """An object: file name of its drawings, name, and keywords (from Unicode CLDR)."""

    object: str
    name: str
    keywords: tuple[str, ...]


class Thing(NamedTuple):
    """A concept in a scene. If `colour` is None, the drawing is not recoloured."""

    concept: Concept
    size: str
    colour: str | None
    # index in PLACES: a quarter in the order of CORNERS, or the middle for a single object
    place: int


def all_concepts() -> list[Concept]:
    return [
        Concept(row["object"], row["name"], tuple(filter(None, row["keywords"].split(","))))
        for row in emoji()
        if row["name"]
    ]


def vocabulary() -> list[str]:
    """Returns all words that captions may contain, for all seeds."""
    phrases = [*DETERMINERS, *FRAMES, *LINKS, *PLACES, *SIZES, *COLOURS, *TEMPLATES, UNKNOWN, "an"]
    for concept in all_concepts():
        phrases += [concept.name, *concept.keywords]
    return sorted(set(" ".join(phrases).replace("{}", " ").split()))


class World:
    """The concepts of a seed, most frequent first, and its scenes."""

    def __init__(self, seed: int):
        self.seed = seed
        concepts = all_concepts()
        Random(f"natural {VERSION} {seed}").shuffle(concepts)
        self.concepts = concepts[:NUM_CONCEPTS]
        self.names = [concept.name for concept in self.concepts]
        # Zipf-Mandelbrot law
        weights = (10**9 // (rank + 10) for rank in range(1, NUM_CONCEPTS + 1))
        self.cumulative = list(itertools.accumulate(weights))

    def is_new(self, concept: Concept, colour: str) -> bool:
        """Returns whether training never shows the concept in this colour, which holds for one
        in ten combinations."""
        return zlib.crc32(f"{self.seed} {colour} {concept.name}".encode()) % 10 == 0

    def scene(
        self,
        split: str,
        index: int,
        num_objects: Sequence[int] = NUM_OBJECTS,
        designers: Sequence[str] = TRAINING_DESIGNERS,
        concept: Concept | None = None,
        colour: str | None = None,
    ) -> Scene:
        """Returns a scene of 64 by 64 pixels with a "short", a "long" and a "clean" caption.

        A clean caption is a short one that is correct and names at least one object. A set of two
        or more objects occurs in one split only. A scene with a single object may be given its
        concept and its colour; otherwise they are random, the colour among those that training
        shows.
        """
        rng = Random(f"{VERSION} {self.seed} {split} {index} {colour}")
        count = rng.choice(num_objects)
        concepts = [concept] if concept else self._draw(rng, count)
        while len(concepts) > 1 and split_of([drawn.name for drawn in concepts]) != split:
            concepts = self._draw(rng, count)
        places = rng.sample(range(4), len(concepts)) if len(concepts) > 1 else [MIDDLE]
        things = [
            Thing(drawn, rng.choice(list(SIZES)), colour or self._colour(rng, drawn), place)
            for drawn, place in zip(concepts, places, strict=True)
        ]
        background = tuple(rng.randrange(170, 256) for _ in range(3))
        image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), background)
        for thing in things:
            _paste(image, thing, rng, designers)
        captions = {
            "short": self._careless_caption(rng, things),
            "long": _sentence(rng, [_mention(rng, thing, full=True) for thing in things]),
            "clean": self._clean_caption(rng, things),
        }
        return Scene(image, [drawn.name for drawn in concepts], captions, [])

    def _draw(self, rng: Random, count: int) -> list[Concept]:
        """Returns different concepts, drawn by their frequencies."""
        ranks = {}  # in the order in which they are drawn
        while len(ranks) < count:
            ranks[bisect(self.cumulative, rng.randrange(self.cumulative[-1]))] = None
        return [self.concepts[rank] for rank in ranks]

    def _colour(self, rng: Random, concept: Concept) -> str | None:
        """Returns a colour in which training shows the concept, for one in three."""
        known = [colour for colour in COLOURS if not self.is_new(concept, colour)]
        return rng.choice(known) if known and not rng.randrange(3) else None

    def _clean_caption(self, rng: Random, things: Sequence[Thing]) -> str:
        """Returns a correct caption that names each object with probability 2/3, and at least
        one."""
        named = _some(rng, things) or [rng.choice(things)]
        rng.shuffle(named)
        return _sentence(rng, [_mention(rng, thing) for thing in named])

    def _careless_caption(self, rng: Random, things: Sequence[Thing]) -> str:
        """Returns a caption that names each object with probability 2/3.

        One in five names a false object."""
        named = _some(rng, things)
        rng.shuffle(named)
        mentions = [_mention(rng, thing) for thing in named]
        if not rng.randrange(5):
            shown = [thing.concept for thing in things]
            wrong = shown[0]
            while wrong in shown:
                (wrong,) = self._draw(rng, 1)
            # in addition to a correct mention, or instead of it
            index = rng.randrange(len(mentions) + 1)
            size = rng.choice(list(SIZES))
            colour = rng.choice(list(COLOURS))
            phrase = _mention(rng, Thing(wrong, size, colour, rng.randrange(len(PLACES))))
            mentions[index : index + rng.randrange(2)] = [phrase]
        if not mentions:
            first = things[0]
            mentions = [f"{UNKNOWN} {first.colour or first.size} {PLACES[first.place]}"]
        return _sentence(rng, mentions)


def _some(rng: Random, things: Sequence[Thing]) -> list[Thing]:
    """Returns each thing with probability 2/3."""
    return [thing for thing in things if rng.randrange(3)]


def _mention(rng: Random, thing: Thing, *, full: bool = False) -> str:
    """Returns a phrase with name, size and colour if `full`, else with a random subset, or a
    keyword as the name."""
    concept = thing.concept
    name = concept.name
    if concept.keywords and not rng.randrange(5) and not full:
        name = rng.choice(concept.keywords)
    words = [rng.choice(DETERMINERS)]
    if full or not rng.randrange(5):
        words.append(thing.size)
    if thing.colour and (full or rng.randrange(2)):
        words.append(thing.colour)
    words.append(name)
    if not rng.randrange(6):
        words.append(PLACES[thing.place])
    if words[0] == "a" and words[1][0] in "aeiou":
        words[0] = "an"
    return " ".join(words)


def _sentence(rng: Random, mentions: Sequence[str]) -> str:
    """Returns the phrases, linked and framed at random."""
    text = mentions[0]
    for mention in mentions[1:]:
        text += rng.choice(LINKS) + mention
    return rng.choice(FRAMES).format(text)


def _paste(image: Image.Image, thing: Thing, rng: Random, designers: Sequence[str]) -> None:
    """Pastes a random designer's drawing of a thing, scaled, rotated, and possibly mirrored and
    recoloured."""
    if thing.place == MIDDLE:
        sizes = SIZES_ALONE
        corner = (0, 0)
        room = IMAGE_SIZE
    else:
        sizes = SIZES
        corner = CORNERS[thing.place]
        room = QUADRANT
    size = rng.choice(sizes[thing.size])
    drawing = tile(rng.choice(designers), thing.concept.object, size, Image.Resampling.BILINEAR)
    if rng.randrange(2):
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if thing.colour:
        pixels = np.array(drawing, np.int32)  # blended equally with shades of the colour
        shade = np.array(drawing.convert("L"), np.int32)[..., None] + 80
        shades = np.minimum(np.array(COLOURS[thing.colour]) * shade // 255, 255)
        pixels[..., :3] = (pixels[..., :3] + shades) // 2
        drawing = Image.fromarray(pixels.astype(np.uint8))
    drawing = drawing.rotate(rng.randrange(-12, 13), Image.Resampling.BILINEAR)
    left = corner[0] + rng.randrange(room - size + 1)
    top = corner[1] + rng.randrange(room - size + 1)
    image.paste(drawing, (left, top), drawing)
