"""Copies the images of a table that OpenCLIP reads in other pixels than a viewer shows.

    python rgb_copies.py pairs.csv copies    # writes copies/pairs.csv, to train with

OpenCLIP reads stored colours: hidden ones under transparency, photos unrotated, 16 bits as white.
The copies are 8-bit RGB on white, and upright; the new table names them instead of their images.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

Image.init()
OF_TABLES = {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"}
FORMATS = tuple(OF_TABLES & Image.OPEN.keys())


def rgb_copy(image):
    """Returns the pixels that a viewer shows; None if OpenCLIP reads the same ones."""
    image.load()
    is_deep = image.mode.startswith("I")
    is_rotated = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    if not (is_deep or is_rotated or image.has_transparency_data):
        return None
    image = ImageOps.exif_transpose(image)
    if is_deep:
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--csv-separator", default=",")
    parser.add_argument("--csv-img-key", default="filepath", metavar="COLUMN")
    options = parser.parse_args()
    key = options.csv_img_key
    with options.table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=options.csv_separator)
        rows = list(reader)
    if key not in (reader.fieldnames or ()):
        parser.error(f"{options.table} has no column {key}: give --csv-img-key or --csv-separator")
    if options.out.exists():
        parser.error(f"{options.out} exists; expected a new folder")
    options.out.mkdir(parents=True)
    with (options.out / options.table.name).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, reader.fieldnames, delimiter=options.csv_separator)
        table.writeheader()
        for number, row in enumerate(rows, 1):
            try:
                with Image.open(row[key], formats=FORMATS) as image:
                    copy = rgb_copy(image)
            except (OSError, ValueError, SyntaxError) as error:
                print(f"row {number} is left out: {error}")
                continue
            if copy is not None:
                row[key] = options.out / f"{number:09}.png"
                copy.save(row[key])
            table.writerow(row)


main()
