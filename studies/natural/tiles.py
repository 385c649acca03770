"""Builds the demo's drawings: `python tiles.py NODE_MODULES` rewrites the archives and emoji.tsv of
demo/tiles.

NODE_MODULES is the folder that

    npm install emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    @iconify-json/fluent-emoji-flat@1.2.6
        @iconify-json/emojione@1.2.3 cldr-annotations-full@48.2.0

fills. rsvg-convert (librsvg 2.60) draws the SVG sets. The archives are the same bytes each time.
"""

import json
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

TILES = Path(__file__).resolve().parents[3] / "openclip_superclip" / "demo" / "tiles"
GROUPS = {"Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities"}

# Series whose members differ in details that 26 pixels do not show: clock faces, mailboxes, books,
# loudspeakers.
SERIES = {"time", "mail", "book-paper", "office", "sound"}
# left out of the demo's objects, too
BUILDINGS = {"place-building", "place-other", "place-religious"}
# Drawn like another one, or with a name that few people would use.
LEFT_OUT = {"ODEN", "POUCH", "MOYAI", "HAMSA", "DIRECT HIT", "MANS SHOE", "WOMANS SANDAL"}
COLOURS = {
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
    "grey",
}
NUM_DEMO_OBJECTS = 100


def demo_objects(emojis: list[dict], seed: int, without: list[dict]) -> list[dict]:
    """Returns the first 100 of the shuffled emoji that both raster sets drew and whose names
    share no word."""
    names = re.compile(r"[A-Z]+( [A-Z]+)?")
    emojis = [
        one
        for one in emojis
        if one["category"] in GROUPS
        and one["subcategory"] not in SERIES | BUILDINGS
        and one not in without
        and one["has_img_google"]
        and one["has_img_twitter"]
        and names.fullmatch(one["name"])
    ]
    emojis.sort(key=lambda one: one["name"])
    random.Random(seed).shuffle(emojis)
    drawn, taken = [], set()
    for one in emojis:
        words = set(one["name"].split())
        if len(drawn) < NUM_DEMO_OBJECTS and one["name"] not in LEFT_OUT and not words & taken:
            drawn.append(one)
            taken |= words
    return drawn


class IconSet:
    """An SVG set of iconify, whose names follow CLDR's."""

    def __init__(self, folder: Path):
        found = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        self.icons, self.aliases = found["icons"], found.get("aliases", {})
        self.size = found["width"]
        self.by_code = json.loads((folder / "chars.json").read_text(encoding="utf-8"))

    def find(self, emoji: dict, cldr_name: str) -> str | None:
        """Returns the SVG of an emoji, None if the set lacks it."""
        code = emoji["unified"].lower()
        slug = re.sub("[^a-z0-9]+", "-", cldr_name.lower().replace("’", "")).strip("-")
        name = self.by_code.get(code) or self.by_code.get(code.replace("-fe0f", "")) or slug
        name = self.aliases.get(name, {}).get("parent", name)
        if name not in self.icons:
            return None
        body = self.icons[name]["body"]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.size} '
            f'{self.size}">{body}</svg>'
        )


def annotation(annotations: dict, emoji: dict) -> dict | None:
    character = "".join(chr(int(code, 16)) for code in emoji["unified"].split("-"))
    return annotations.get(character) or annotations.get(character.replace("\ufe0f", ""))


def concepts(
    emojis: list[dict], annotations: dict, sets: list[IconSet]
) -> dict[str, tuple[str, list[str]]]:
    """Returns the CLDR name and keywords of the emoji that all designers drew, by emoji-data's
    name.

    A name is one to three plain words. One that begins or ends with another's name is left out: no
    "polar bear" beside "bear". Keywords are plain words that are not part of the name. Neither
    holds a colour, which scenes add.
    """
    plain = re.compile(r"[a-z]+([ -][a-z]+){0,2}")
    found = {}
    for emoji in emojis:
        entry = annotation(annotations, emoji)
        if entry is None or emoji["category"] not in GROUPS or emoji["subcategory"] in SERIES:
            continue
        name = entry["tts"][0].lower().replace("’", "")
        drawn = (
            emoji["has_img_google"]
            and emoji["has_img_twitter"]
            and all(s.find(emoji, entry["tts"][0]) for s in sets)
        )
        if drawn and plain.fullmatch(name) and emoji["name"] not in LEFT_OUT:
            words = set(re.split("[ -]", name))
            known = words | COLOURS
            keywords = [
                word
                for word in entry["default"]
                if re.fullmatch("[a-z]{3,}", word) and word not in known
            ]
            if not words & COLOURS:
                found[emoji["name"]] = (name, keywords)
    names = {name for name, _ in found.values()}

    def extends_another(name: str) -> bool:
        words = re.split("[ -]", name)
        return any(
            " ".join(words[i:]) in names or " ".join(words[:i]) in names
            for i in range(1, len(words))
        )

    return {key: value for key, value in found.items() if not extends_another(value[0])}


def rasterised(svg: str) -> bytes:
    return subprocess.run(
        ["rsvg-convert", "-w", "64", "-h", "64"], input=svg.encode(), stdout=-1, check=True
    ).stdout


def main(node_modules: Path) -> None:
    packages = {
        designer: node_modules / f"emoji-datasource-{designer}"
        for designer in ("google", "twitter")
    }
    emojis = json.loads((packages["google"] / "emoji.json").read_text(encoding="utf-8"))
    cldr = node_modules / "cldr-annotations-full" / "annotations" / "en" / "annotations.json"
    annotations = json.loads(cldr.read_text(encoding="utf-8"))["annotations"]["annotations"]
    icons = {
        "emojione": IconSet(node_modules / "@iconify-json" / "emojione"),
        "fluent": IconSet(node_modules / "@iconify-json" / "fluent-emoji-flat"),
    }
    first = demo_objects(emojis, 0, [])
    second = demo_objects(emojis, 1, first)
    draws = {
        one["name"]: str(draw) for draw, objects in enumerate((first, second), 1) for one in objects
    }
    named = concepts(emojis, annotations, list(icons.values()))
    chosen = sorted(
        (one for one in emojis if one["name"] in {*draws, *named}), key=lambda one: one["name"]
    )
    lines = ["object\tdemo\tname\tkeywords"]
    for one in chosen:
        name, keywords = named.get(one["name"], ("", []))
        key = one["name"].lower().replace("-", " ")
        lines.append("\t".join([key, draws.get(one["name"], ""), name, ",".join(keywords)]))
    (TILES / "emoji.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for designer in (*packages, *icons):
        with zipfile.ZipFile(TILES / f"{designer}.zip", "w", zipfile.ZIP_STORED) as archive:
            for one in chosen:
                if designer in packages:
                    image = (
                        packages[designer] / "img" / designer / "64" / one["image"]
                    ).read_bytes()
                else:
                    if one["name"] not in named and not (
                        designer == "fluent" and draws[one["name"]] == "1"
                    ):
                        continue
                    svg = icons[designer].find(
                        one, (annotation(annotations, one) or {"tts": [one["name"]]})["tts"][0]
                    )
                    image = rasterised(svg) if svg else None
                if image:
                    archive.writestr(
                        zipfile.ZipInfo(f"{one['name'].lower().replace(' ', '-')}.png"), image
                    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
