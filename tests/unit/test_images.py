"""Images of tables and shards: unreadable ones, paths that are no files, and the pixels of
training and of a viewer."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip_train.data import CsvDataset
from PIL import ExifTags, Image
from support.data import IMAGE

from openclip_superclip.__main__ import main
from openclip_superclip.data.images import as_seen, check_image, open_image
from openclip_superclip.data.inspection import inspect
from openclip_superclip.data.tables import Columns
from openclip_superclip.lab.audit.reading import open_data, read_in_batches

OWN = "own_data/superclip_vit-ti-16-96_60k_bs64"
CUT = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF"}
MEMBERS = ("png", "jpg", "webp")


def content(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def half(kind: str) -> bytes:
    whole = content(Image.effect_noise((64, 64), 50).convert("RGB"), kind)
    return whole[: len(whole) // 2]


def table(folder: Path, *images: Path) -> Path:
    """A table of a good image, 70 times, and of others."""
    (folder / "good.png").write_bytes(IMAGE)
    rows = [f"{folder}/good.png,a cat"] * 70 + [f"{image},a dog" for image in images]
    (folder / "pairs.csv").write_text("\n".join(["image,caption", *rows, ""]))
    return folder / "pairs.csv"


def test_the_check_of_a_table_lists_every_image_whose_second_half_is_missing(tmp_path, capsys):
    for suffix, kind in CUT.items():
        (tmp_path / f"cut.{suffix}").write_bytes(half(kind))
    file = table(tmp_path, *(tmp_path / f"cut.{suffix}" for suffix in CUT))
    argv = ["plan", OWN, "--data", str(file), "--device", "cpu", "--check"]
    assert main(argv) == 1
    printed = capsys.readouterr()
    named = "".join(line for line in (printed.out + printed.err).splitlines() if "cut." in line)
    assert all(f"cut.{suffix}" in named for suffix in CUT)


@pytest.mark.parametrize("suffix", MEMBERS)
@pytest.mark.parametrize("kind", CUT.values())
def test_a_shard_of_images_whose_second_half_is_missing_is_bad(kind, suffix, tmp_path):
    for name, image in (("0", IMAGE), ("1", half(kind))):
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar")) as tar:
            for number in range(4):
                tar.write({"__key__": str(number), suffix: image, "txt": "a cat"})
    for full in (False, True):
        bad = inspect(f"{tmp_path}/{{0..1}}.tar", "--data", full=full).bad
        assert list(bad) == [f"{tmp_path}/1.tar"]
        assert "none of its 4 images can be read" in bad[f"{tmp_path}/1.tar"]


def test_a_url_in_a_table_is_no_image_that_was_read(tmp_path, capsys):
    file = table(tmp_path, "http://127.0.0.1:9/cat.png")
    assert main(["plan", OWN, "--data", str(file), "--device", "cpu", "--check"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "http://127.0.0.1:9/cat.png: no such file" in printed
    assert "all images were checked" in printed


@pytest.mark.parametrize("name", ["pipe.png", "/dev/zero", "folder.png"])
def test_what_is_no_regular_file_is_bad_and_never_read(name, tmp_path, capsys):
    path = tmp_path / name
    if name == "pipe.png":
        os.mkfifo(path)
    elif name == "folder.png":
        path.mkdir()
    file = table(tmp_path, path)
    assert check_image(str(path)).problem == "no readable image (it is not a regular file)"
    assert main(["plan", OWN, "--data", str(file), "--device", "cpu", "--check"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{path}: no readable image (it is not a regular file)" in printed
    assert main(["shards", str(file), str(tmp_path / "out"), "--val-share", "0"]) == 0
    assert (
        f"{path},no readable image (it is not a regular file)"
        in (tmp_path / "out/left_out.csv").read_text()
    )


def exif(orientation: int) -> Image.Exif:
    values = Image.Exif()
    values[ExifTags.Base.Orientation] = orientation
    return values


CLEAR = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
CLEAR.paste((0, 0, 255, 255), (0, 0, 8, 16))  # the left half is blue, and the right half hidden red
OPAQUE = Image.new("RGBA", (16, 16), (200, 0, 0, 255))
SIDEWAYS = Image.new("RGB", (32, 16), "red")
DEEP = Image.fromarray(np.full((16, 16), 40_000, np.uint16))
TRANSPARENT, ROTATED, BITS = "transparent", "rotated by EXIF data", "more than 8 bits per channel"
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


@pytest.mark.parametrize(("image", "ignored"), PROPERTIES.values(), ids=PROPERTIES)
def test_what_openclip_ignores_in_an_image_is_recognised_and_converted_by_shards(
    image, ignored, tmp_path
):
    assert check_image(image) == ("", ignored)
    (tmp_path / "image").write_bytes(image)
    (tmp_path / "pairs.csv").write_text(f"image,caption\n{tmp_path}/image,a cat\n")
    assert (
        main(["shards", str(tmp_path / "pairs.csv"), str(tmp_path / "out"), "--val-share", "0"])
        == 0
    )
    (sample,) = webdataset.WebDataset(str(tmp_path / "out/train/000000.tar"), shardshuffle=False)
    stored = next(sample[suffix] for suffix in MEMBERS if suffix in sample)
    assert check_image(stored) == ("", "")
    with open_image(stored) as trained, open_image(image) as original:
        shown = as_seen(original)
        assert trained.size == shown.size
        assert np.abs(np.asarray(trained.convert("RGB")).astype(int) - np.asarray(shown)).max() <= 2


def test_transparent_pixels_become_white_in_shards_and_images_are_counted_once(tmp_path, capsys):
    for name, image in (("clear", CLEAR), ("opaque", OPAQUE)):
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "side.jpg").write_bytes(PROPERTIES["rotated"][0])
    rows = [
        f"{tmp_path}/{name},a cat, {n}"
        for name in ("clear.png", "opaque.png", "side.jpg")
        for n in range(2)
    ]
    (tmp_path / "pairs.csv").write_text(
        "\n".join(["image;caption", *(row.replace(",", ";", 1) for row in rows)])
    )
    assert (
        main(["shards", str(tmp_path / "pairs.csv"), str(tmp_path / "out"), "--val-share", "0"])
        == 0
    )
    assert "): 1 × rotated by EXIF data, 1 × transparent\n" in capsys.readouterr().out
    stored = {
        sample["png"]
        for sample in webdataset.WebDataset(f"{tmp_path}/out/train/000000.tar")
        if "png" in sample
    }
    pixels = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))[0] for image in stored]
    assert sorted(row[-1].tolist() for row in pixels) == [[200, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("name", PROPERTIES)
def test_an_audit_reads_exactly_the_pixels_that_openclip_trains_on(name, tmp_path):
    (tmp_path / "image").write_bytes(PROPERTIES[name][0])
    (tmp_path / "pairs.csv").write_text(f"filepath,title\n{tmp_path}/image,a cat\n")
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as tar:
        tar.write({"__key__": "0", "png": PROPERTIES[name][0], "txt": "a cat"})
    preprocess = image_transform_v2(PreprocessCfg(size=12), is_train=False)
    of_table = CsvDataset(
        tmp_path / "pairs.csv", preprocess, "filepath", "title", ",", tokenizer=list
    )
    samples = webdataset.WebDataset(f"{tmp_path}/0.tar", shardshuffle=False).decode("pilrgb")
    trained = {"pairs.csv": of_table[0][0], "0.tar": preprocess(next(iter(samples))["png"])}
    for file, pixels in trained.items():
        data = open_data(str(tmp_path / file), Columns(","))
        ((pair,),) = read_in_batches(data.pairs(), preprocess, batch_size=1, threads=1)
        assert torch.equal(pair.image, pixels)


WARNING = "other pixels than a viewer shows: 3 × transparent; superclip shards converts them"


@pytest.fixture
def transparent(tmp_path) -> dict[str, str]:
    """A table and shards, each with 70 opaque images and three transparent ones."""
    for number in range(3):
        CLEAR.save(tmp_path / f"{number}.png")
    file = table(tmp_path, *(tmp_path / f"{number}.png" for number in range(3)))
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as tar:
        for number, row in enumerate(file.read_text().splitlines()[1:]):
            path, caption = row.split(",")
            tar.write({"__key__": str(number), "png": Path(path).read_bytes(), "txt": caption})
    return {"table": str(file), "shards": str(tmp_path / "0.tar")}


@pytest.mark.parametrize("kind", ["table", "shards"])
@pytest.mark.parametrize("full", [[], ["--check"]], ids=["", "full"])
def test_plan_counts_transparent_images(kind, full, transparent, capsys):
    settings = [
        f"--set={one}" for one in ("global_batch_size=8", "slices=1", "data_samples=73", "warmup=1")
    ]
    argv = [
        "plan",
        OWN,
        "--data",
        transparent[kind],
        *settings,
        "--device",
        "cpu",
        "--workers",
        "1",
        *full,
    ]
    assert main(argv) == 0
    assert WARNING in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kind", ["table", "shards"])
def test_training_and_a_study_count_transparent_images(kind, transparent, parse_args, capsys):
    columns = ["--csv-separator", ",", "--csv-img-key", "image", "--csv-caption-key", "caption"]
    argv = [
        "--superclip",
        "--train-data",
        transparent[kind],
        "--train-num-samples",
        "64",
        "--batch-size",
        "8",
    ]
    parse_args([*argv, *columns, "--workers", "1"])
    assert WARNING in capsys.readouterr().err
    data = [
        "--data",
        transparent[kind],
        "--val-data",
        transparent[kind],
        "--set",
        "data_samples=73",
    ]
    assert main(["study", "own_data", *data, "--device", "cpu", "--dry-run"]) == 0
    assert WARNING in capsys.readouterr().out
