"""Images of tables and shards: unreadable ones, paths that are no files, and those that OpenCLIP
reads in other pixels than a viewer shows."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from support import ROOT, cases, parametrize, read_rows, succeed
from support.data import IMAGE, write_tar
from support.training_runs import call, execute

from openclip_superclip.data.data_check import check_shards
from openclip_superclip.data.images import check_image

OWN = "own_data/superclip_vit-ti-16-96_60k_bs64"
CUT = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF"}
MEMBERS = ("png", "jpg", "webp")


def content(image, kind="PNG", **options):
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def half(kind):
    whole = content(Image.effect_noise((64, 64), 50).convert("RGB"), kind)
    return whole[: len(whole) // 2]


def table(folder, *images):
    """A table of a good image, 70 times, and of others."""
    (folder / "good.png").write_bytes(IMAGE)
    rows = [f"{folder}/good.png,a cat"] * 70 + [f"{image},a dog" for image in images]
    (folder / "pairs.csv").write_text("\n".join(["image,caption", *rows, ""]))
    return folder / "pairs.csv"


def test_images_that_cannot_be_read_are_named_by_check(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    no_file = "no readable image (it is not a regular file)"
    reasons = {f"{tmp_path}/pipe.png": no_file, "/dev/zero": no_file, str(tmp_path): no_file}
    reasons["http://127.0.0.1:9/cat.png"] = "no such file"
    for suffix, kind in CUT.items():
        (tmp_path / f"cut.{suffix}").write_bytes(half(kind))
        reasons[f"{tmp_path}/cut.{suffix}"] = "no readable image ("
    file = table(tmp_path, *reasons)
    assert call(f"check {file}") == 1
    printed = " ".join(capsys.readouterr().out.split())
    for image, reason in reasons.items():
        assert f"bad image {image}: {reason}" in printed


@parametrize("suffix", MEMBERS)
@parametrize("kind", CUT.values())
def test_a_shard_of_images_whose_second_half_is_missing_is_bad(kind, suffix, tmp_path):
    for name, image in (("0", IMAGE), ("1", half(kind))):
        write_tar(tmp_path / f"{name}.tar", [{suffix: image, "txt": "a cat"}] * 4)
    for full in (False, True):
        bad = check_shards(f"{tmp_path}/{{0..1}}.tar", "--data", full=full).bad
        assert [file.file for file in bad] == [f"{tmp_path}/1.tar"]
        assert "none of its 4 images can be read" in bad[0].problem


def exif(orientation):
    values = Image.Exif()
    values[ExifTags.Base.Orientation] = orientation
    return values


CLEAR = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
CLEAR.paste((0, 0, 255, 255), (0, 0, 8, 16))  # the left half is blue, and the right half hidden red
OPAQUE = Image.new("RGBA", (16, 16), (200, 0, 0, 255))
SIDEWAYS = Image.new("RGB", (32, 16), "red")
DEEP = Image.fromarray(np.full((16, 16), 40_000, np.uint16))
TRANSPARENT = "transparent"
ROTATED = "rotated by EXIF data"
BITS = "more than 8 bits per channel"
PROPERTIES = {
    "RGBA": (content(CLEAR), TRANSPARENT),
    "grey and alpha": (content(CLEAR.convert("LA")), TRANSPARENT),
    "palette": (content(CLEAR.convert("P")), TRANSPARENT),
    "one colour": (content(CLEAR.convert("RGB"), transparency=(200, 0, 0)), TRANSPARENT),
    "WebP": (content(CLEAR, "WEBP", lossless=True), TRANSPARENT),
    "GIF": (content(CLEAR, "GIF"), TRANSPARENT),
    "opaque RGBA": (content(OPAQUE), ""),
    "opaque palette": (content(OPAQUE.convert("RGB").convert("P")), ""),
    "a colour that does not occur": (content(OPAQUE.convert("RGB"), transparency=(1, 2, 3)), ""),
    "rotated": (content(SIDEWAYS, "JPEG", exif=exif(6)), ROTATED),
    "upright": (content(SIDEWAYS, "JPEG", exif=exif(1)), ""),
    "16 bits": (content(DEEP), BITS),
    "JPEG": (content(SIDEWAYS, "JPEG"), ""),
}


@cases("image, ignored", PROPERTIES)
def test_image_properties_that_openclip_ignores_are_recognised(image, ignored):
    assert check_image(image) == ("", ignored)


def test_the_example_copies_such_images_in_the_pixels_that_a_viewer_shows(tmp_path):
    rows = ["filepath,title"]
    for name, (image, _) in PROPERTIES.items():
        (tmp_path / name).write_bytes(image)
        rows.append(f"{tmp_path}/{name},a cat")
    rows.append(f"{tmp_path}/missing,a dog")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    succeed([sys.executable, ROOT / "examples/rgb_copies.py", "pairs.csv", "out"], cwd=tmp_path)
    copies = read_rows(tmp_path / "out/pairs.csv")
    assert len(copies) == len(PROPERTIES)
    for row, (name, (_, ignored)) in zip(copies, PROPERTIES.items(), strict=True):
        is_copy = row["filepath"] != f"{tmp_path}/{name}"
        assert is_copy if ignored else not is_copy or "opaque" in name or "colour" in name
        file = tmp_path / row["filepath"]
        assert check_image(str(file)) == ("", "")
        pixels = np.asarray(Image.open(file).convert("RGB"))
        if ignored == TRANSPARENT:
            assert (pixels[:, 8:] == 255).all()
            assert (pixels[:, :8] != 255).any()
        elif ignored == ROTATED:
            assert pixels.shape == (32, 16, 3)
        elif ignored == BITS:
            assert np.abs(pixels.astype(int) - 40_000 / 257).max() < 1


WARNING = "other pixels than a viewer shows: 3 × transparent; examples/rgb_copies.py"


@pytest.fixture
def transparent(tmp_path):
    """A table and shards, each with 70 opaque images and three transparent
    ones."""
    for number in range(3):
        CLEAR.save(tmp_path / f"{number}.png")
    file = table(tmp_path, *(tmp_path / f"{number}.png" for number in range(3)))
    rows = [row.split(",") for row in file.read_text().splitlines()[1:]]
    samples = [{"png": Path(path).read_bytes(), "txt": caption} for path, caption in reversed(rows)]
    write_tar(tmp_path / "0.tar", samples)
    return {"table": str(file), "shards": f"{tmp_path}/0.tar"}


@parametrize("kind", ["table", "shards"])
def test_training_and_a_study_count_transparent_images(kind, transparent, parse_args, capsys):
    data = transparent[kind]
    columns = "--csv-separator , --csv-img-key image --csv-caption-key caption --workers 1"
    flags = f"--superclip --train-data {data} --train-num-samples 64 --batch-size 8"
    parse_args(flags, columns)
    study = f"study own_data --data {data} --val-data {data} --set data_samples=73 --device cpu"
    execute(f"{study} --dry-run")
    assert capsys.readouterr().err.count(WARNING) == 3  # training, and both data of the study
