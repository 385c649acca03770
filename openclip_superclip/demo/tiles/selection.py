"""Draw the demo's emoji, twice 100: `python selection.py NODE_MODULES` rewrites the folders beside it.

NODE_MODULES is where `npm install emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
@iconify-json/fluent-emoji-flat@1.2.6` put its packages. fluent/ is drawn by rsvg-convert, of librsvg.
"""

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent


DESIGNERS = ("google", "twitter")


GROUPS = {"Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities"}


NUM_TILES = 100


# Series whose members differ in details that 26 pixels do not show: clock faces, hotels, mailboxes, loudspeakers.
SERIES = {"time", "place-building", "place-other", "place-religious", "mail", "book-paper", "office", "sound"}


# Drawn like one already chosen (oden like dango, pouch like purse), or named as few would name the drawing.
LEFT_OUT = {"ODEN", "POUCH", "MOYAI", "HAMSA", "DIRECT HIT", "MANS SHOE", "WOMANS SANDAL"}


def eligible(emoji: dict) -> bool:
    """True for an emoji of our groups that both designers drew and whose name is one or two plain words."""
    return (
        emoji["category"] in GROUPS
        and emoji["subcategory"] not in SERIES
        and all(emoji[f"has_img_{designer}"] for designer in DESIGNERS)
        and re.fullmatch(r"[A-Z]+( [A-Z]+)?", emoji["name"]) is not None
    )


def draw(emojis: list[dict], seed: int = 0, without: Sequence[dict] = ()) -> list[dict]:
    """The first NUM_TILES of the shuffled emoji whose names share no word: no "bear" beside "teddy bear".

    Those of `without` are left out.
    """
    emojis = sorted((one for one in emojis if eligible(one) and one not in without), key=lambda emoji: emoji["name"])
    random.Random(seed).shuffle(emojis)
    chosen, taken = [], set()
    for emoji in emojis:
        words = set(emoji["name"].split())
        if len(chosen) < NUM_TILES and emoji["name"] not in LEFT_OUT and not words & taken:
            chosen.append(emoji)
            taken |= words
    return chosen


def main(node_modules: Path) -> None:
    packages = {designer: node_modules / f"emoji-datasource-{designer}" for designer in DESIGNERS}
    emojis = json.loads((packages["google"] / "emoji.json").read_text(encoding="utf-8"))
    first = draw(emojis)
    copy(first, packages, HERE)
    copy(draw(emojis, seed=1, without=first), packages, HERE / "second")
    draw_fluent(first, node_modules / "@iconify-json" / "fluent-emoji-flat")


def copy(chosen: list[dict], packages: dict[str, Path], parent: Path) -> None:
    """Copies the emoji's drawings into a folder below `parent` for each designer."""
    for designer, package in packages.items():
        folder = parent / designer
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for emoji in chosen:
            name = emoji["name"].lower().replace(" ", "-")
            shutil.copyfile(package / "img" / designer / "64" / emoji["image"], folder / f"{name}.png")


def draw_fluent(chosen: list[dict], package: Path) -> None:
    """Writes those of the emoji that Fluent Emoji has, 64 pixels wide and high."""
    icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))["icons"]
    names = json.loads((package / "chars.json").read_text(encoding="utf-8"))
    folder = HERE / "fluent"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for emoji in chosen:
        code = emoji["unified"].lower()
        name = names.get(code) or names.get(code.replace("-fe0f", ""))
        if name is not None:
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{icons[name]["body"]}</svg>'
            out = folder / f"{emoji['name'].lower().replace(' ', '-')}.png"
            subprocess.run(["rsvg-convert", "-w", "64", "-h", "64", "-o", out], input=svg.encode(), check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
