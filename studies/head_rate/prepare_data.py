"""Writes the pictures and captions of head_rate (part B of protocol.md), and a table of training
and one of held-out pairs for each seed.

`python prepare_data.py --package DIR --out FOLDER`: DIR is usr/share/openclipart of the unpacked
Debian packages openclipart-png and openclipart-svg 1:0.18+dfsg-19.
"""

import argparse
import csv
import hashlib
import html
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

SEEDS = range(500, 508)
TRIAL = 990
HELD_OUT = 500
SIZE = 96  # pixels of a side
LEFT_OUT = re.compile(r"^special/|^shapes/|/duplicates/|/cards/|flags?/|_flag|flag_|gradient")
PUBLIC_DOMAIN = re.compile(r'license rdf:resource="[^"]*/publicdomain/?"', re.IGNORECASE)
BOOKKEEPING = {"hash", "unsorted", "clip art", "clipart", "image", "media", "public domain", "svg"}
BOOKKEEPING |= {"png", "theme", "icons"}
# more pictures of one title are a collection, whose title does not describe them: the file names do
MOST_OF_A_TITLE = 5
LEAST_SPREAD = 8.0  # standard deviation of the grey values, of 255
THUMBNAIL = 16  # pixels of a side
NEAR = 8.0  # mean difference of two thumbnails, of 255: near-identical


def cleaned(text: str) -> str:
    """Returns a text in lower case without XML, numbers in names, and repeated white space."""
    text = re.sub(r"<[^>]*>", " ", html.unescape(text))
    text = re.sub(r"[_\W]+", " ", re.sub(r"\d+", " ", text))
    return " ".join(text.lower().split())


def caption_parts(svg: Path) -> list[str]:
    """Returns title, description and keywords from an SVG file's metadata; [] if it is not in the
    public domain or has no title."""
    metadata = re.search(r"<metadata.*?</metadata>", svg.read_text(errors="replace"), re.DOTALL)
    text = metadata[0] if metadata else ""
    title = re.search(r"<dc:title>(.*?)</dc:title>", text, re.DOTALL)
    if not PUBLIC_DOMAIN.search(text) or title is None or not cleaned(title[1]):
        return []
    description = re.search(r"<dc:description>(.*?)</dc:description>", text, re.DOTALL)
    subject = re.search(r"<dc:subject>.*?</dc:subject>", text, re.DOTALL)
    keywords = re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", subject[0] if subject else "", re.DOTALL)
    parts = [title[1], description[1] if description else "", *sorted(keywords)]
    parts = [cleaned(part) for part in parts]
    return [part for part in dict.fromkeys(parts) if part and part not in BOOKKEEPING]


def picture(png: Path) -> Image.Image:
    """Returns a picture on white, in a white square of SIZE pixels."""
    with Image.open(png) as opened:
        image = opened.convert("RGBA")
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIZE, SIZE), "white")
    place = ((SIZE - image.width) // 2, (SIZE - image.height) // 2)
    square.alpha_composite(image, place)
    return square.convert("RGB")


def chosen_pairs(package: Path) -> tuple[list[tuple[str, Image.Image, str]], Counter]:
    """Returns name, picture and caption of all pairs, and how many were left out, by reason."""
    counts = Counter()
    described = {}
    for svg in sorted((package / "svg").rglob("*.svg")):
        name = svg.relative_to(package / "svg").with_suffix("").as_posix()
        counts["pictures"] += 1
        if LEFT_OUT.search(name):
            counts["flags, cards, shapes, gradients, duplicates and examples"] += 1
        elif parts := caption_parts(svg):
            described[name] = parts
        else:
            counts["not public domain, or without a title"] += 1
    titles = Counter(parts[0] for parts in described.values())
    pairs = []
    thumbnails = np.empty((0, THUMBNAIL * THUMBNAIL * 3), dtype=np.float32)
    captions = set()
    for name, parts in described.items():
        if titles[parts[0]] > MOST_OF_A_TITLE:
            counts["named by the file instead of the title"] += 1
            parts[0] = cleaned(name.rpartition("/")[2])
        caption = ", ".join(filter(None, dict.fromkeys(parts)))
        try:
            image = picture(package / "png" / f"{name}.png")
        except (OSError, Image.DecompressionBombError):
            counts["not readable, or of more pixels than Pillow opens"] += 1
            continue
        thumbnail = np.asarray(image.resize((THUMBNAIL, THUMBNAIL)), dtype=np.float32).reshape(-1)
        distances = np.abs(thumbnails - thumbnail).mean(axis=1)
        if np.asarray(image.convert("L")).std() < LEAST_SPREAD:
            counts["blank"] += 1
        elif len(distances) and distances.min() < NEAR:
            counts["near-identical to an earlier one"] += 1
        elif caption in captions:
            counts["with the caption of an earlier one"] += 1
        else:
            pairs.append((name, image, caption))
            captions.add(caption)
            thumbnails = np.vstack([thumbnails, thumbnail])
    counts["pairs"] = len(pairs)
    return pairs, counts


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pairs, counts = chosen_pairs(options.package)
    images = options.out / "images"
    images.mkdir(parents=True)
    digest = hashlib.sha256()
    rows = []
    for number, (name, image, caption) in enumerate(pairs):
        file = images / f"{number:04d}.png"
        image.save(file)
        rows.append((str(file.relative_to(options.out.parent)), caption))
        digest.update(f"{name}\t{caption}\n".encode())
        digest.update(image.tobytes())
    for seed in (TRIAL, *SEEDS):
        order = random.Random(seed).sample(rows, len(rows))
        write_table(options.out / f"val-{seed}.csv", sorted(order[:HELD_OUT]))
        write_table(options.out / f"train-{seed}.csv", sorted(order[HELD_OUT:]))
    about = {"counts": counts, "pixels and captions": digest.hexdigest()}
    (options.out / "data.json").write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about, indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
