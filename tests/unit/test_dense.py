"""Segmentation and depth from frozen patch tokens: exact scenes, layouts,
and scores against slow plain versions."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score
from support import input_error
from support.evaluation import errors, evaluate, records
from support.models import write_random_model

from openclip_superclip.evaluation.dense_datasets import NO_LABEL, DenseSet, dense_kind
from openclip_superclip.evaluation.dense_probe import _overlaps
from openclip_superclip.evaluation.intervals import IOU, Outcome, estimate, read_outcomes

SIZE, CELL = 32, 8  # a patch of the model is a cell of the images
COLOURS = np.array([(20, 20, 20), (220, 40, 40), (40, 220, 40)], np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("model"))


def write_cells(folder):
    """A data set in ADE20k's layout and one of depths, of the same coloured
    cells; the rim has no class."""
    for split, place, number in (("train", "training", 24), ("test", "validation", 7)):
        for part in (
            f"masks/images/{place}",
            f"masks/annotations/{place}",
            f"depth/{split}/images",
        ):
            (folder / part).mkdir(parents=True)
        (folder / f"depth/{split}/depths").mkdir()
        for index in range(number):
            rng = np.random.default_rng(index + 100 * (split == "test"))
            found = rng.integers(0, len(COLOURS), (SIZE // CELL, SIZE // CELL))
            classes = np.kron(found, np.ones((CELL, CELL), int)).astype(np.uint8)
            labels = classes + 1
            labels[:2] = 0
            image = Image.fromarray(COLOURS[classes]).resize(
                (2 * SIZE, SIZE), Image.Resampling.NEAREST
            )
            image.save(folder / f"masks/images/{place}/{index}.png")
            image.save(folder / f"depth/{split}/images/{index}.png")
            labels = Image.fromarray(labels).resize((2 * SIZE, SIZE), Image.Resampling.NEAREST)
            labels.save(folder / f"masks/annotations/{place}/{index}.png")
            depths = Image.fromarray(1000 * np.array(labels, np.uint16))
            depths.save(folder / f"depth/{split}/depths/{index}.png")
    (folder / "masks/classes.txt").write_text("black\nred\ngreen\n")
    return folder


def test_the_layout_of_pascal_voc_is_read_as_torchvision_reads_it(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    for name in ("one", "two"):
        Image.new("RGB", (6, 4), "red").save(root / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(np.full((4, 6), 20 if name == "one" else 255, np.uint8)).convert("P")
        mask.putpixel((0, 0), 0)
        mask.save(root / "SegmentationClass" / f"{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("one\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("two\n")
    assert dense_kind(tmp_path) == "segmentation"
    train, test = (DenseSet(tmp_path, split, np.asarray) for split in ("train", "test"))
    assert (len(train), train.num_classes) == (1, 21)
    assert train.label(0).tolist()[0] == [0, 20, 20, 20, 20, 20]
    assert test.label(0).tolist()[1] == [NO_LABEL] * 6


def test_cells_of_a_colour_are_found_and_samples_add_up_to_a_score(model, tmp_path, capsys):
    data = write_cells(tmp_path / "data")
    flags = "--datasets masks depth --suite dense --dense-epochs 12 --dense-lr 0.02"
    assert evaluate(f"--data {data} --out {tmp_path} {flags}", *model) == 0
    printed = capsys.readouterr().out
    assert "| mIoU masks | " in printed
    assert "| RMSE depth, cm | " in printed
    found = {task: record for (_, _, task), record in records(tmp_path).items()}
    assert found["segmentation"]["metrics"]["miou"] > 0.8
    assert found["depth"]["metrics"]["rmse"] < 0.5  # of 1, 2 or 3 m, whose deviation is 0.82
    for task, record in found.items():
        (file,) = tmp_path.glob(f"*.{task}.*.outcomes.npz")
        ((measure, outcome),) = read_outcomes(file).items()
        assert len(outcome.scored) == 7
        total = outcome.scored.sum(axis=0) / outcome.of.sum(axis=0)
        expected = np.sqrt(total) if task == "depth" else np.nanmean(total)
        assert record["metrics"][measure] == pytest.approx(expected, rel=1e-5)
        if task == "segmentation":
            assert outcome.of.sum() >= 7 * 2 * SIZE * (SIZE - 2)  # the rim counts for nothing
            assert outcome.scored.sum() <= 7 * 2 * SIZE * (SIZE - 2)


def test_the_mean_iou_is_sklearns():
    rng = np.random.default_rng(0)
    found, label = (torch.tensor(rng.integers(0, 5, 300)) for _ in range(2))
    both, either = _overlaps(found, label, 5)
    outcome = Outcome(IOU, both[None].numpy(), either[None].numpy())
    assert estimate(outcome).value == pytest.approx(jaccard_score(label, found, average="macro"))


def test_wrong_labels_are_named(model, tmp_path, capsys):
    write_cells(tmp_path / "data")
    (tmp_path / "data/masks/classes.txt").write_text("black\nred\n")
    (tmp_path / "data/depth/train/depths/3.png").unlink()
    flags = "--datasets masks depth --suite dense --dense-epochs 1"
    folders = f"--data {tmp_path}/data --out {tmp_path}/out"
    assert evaluate(f"{folders} {flags}", *model) == 1
    found = "".join(errors(capsys))
    assert "contains the class 3; expected 2 classes" in found
    assert "depths/3.png; expected a label for every image" in found
    (tmp_path / "data/masks/classes.txt").write_text("black\n" * 255)
    with input_error("has 255 lines; expected fewer than 255 classes"):
        DenseSet(tmp_path / "data/masks", "test", None)
