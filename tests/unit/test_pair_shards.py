"""superclip shards: images and captions as people keep them become shards
that training and evaluation read."""

import csv
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from support import cases, read_rows, refusals, write_json
from support.training_runs import call

from openclip_superclip.data.inspection import inspect_shard, total_samples
from openclip_superclip.data.tar_shards import expand
from openclip_superclip.evaluation.local_datasets import find_dataset

NUM = 60
LABELS, FORMATS = ("NA", "dog", "emu"), ("png", "jpg", "ppm")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Pictures and captions as a table, a folder, COCO's JSON; some that
    cannot be read."""
    folder = tmp_path_factory.mktemp("kept")
    beside = folder / "beside/deeper"
    (folder / "beside").mkdir()
    (folder / "linked").mkdir()
    beside.symlink_to(folder / "linked")
    (folder / "linked/back").symlink_to(folder / "beside")
    rows = []
    for number in range(NUM):
        name = f"{number}.{FORMATS[number % 3]}"
        Image.effect_noise((32, 32), 9 + number).convert("RGB").save(folder / name)
        caption, label = f"a {LABELS[number % 3]}, number {number}", LABELS[number % 3]
        rows.append([str(folder / name), caption, label, f"{caption}, at length"])
        image = beside.parent / name if number % 2 else beside / name
        shutil.copy(folder / name, image)
        fields = {"caption": "of the field"} if number % 2 else {"caption": caption, "label": label}
        image.with_suffix(".json").write_text(json.dumps(fields), "utf-8-sig")
        if number % 2:
            image.with_suffix(".txt").write_text(f"{caption}\n", "utf-8-sig")
    odd = {
        b"caf\xe9.png": "half an \ud83d",
        b"empty\xe9.png": "",
        b"list.png": ["a", "b"],
        b"cut.png": "",
    }
    for name, caption in odd.items():  # the first two cannot be encoded in UTF-8
        image = beside / os.fsdecode(name)
        shutil.copy(folder / "0.png", image)
        write_json(image.with_suffix(".json"), {"caption": caption})
    (beside / "cut.json").write_text('{"caption": "a')
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:300])
    rows += [
        [f"{folder}/cut.png", "a cut", "", ""],
        [f"{folder}/nix.png", "nothing", "", ""],
        [f"{folder}/3.png", "", "", ""],
        [f"{folder}/./3.png", "the same image", "NA", ""],
    ]
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "caption", "label", "long"], *rows])
    images = [{"id": n, "file_name": Path(rows[n][0]).name} for n in range(NUM)]
    captions = [
        {"image_id": n, "caption": f"{rows[n][1]}, {again}"}
        for n in range(NUM)
        for again in range(2)
    ]
    captions.append({"image_id": 0, "caption": None})
    write_json(folder / "coco.json", {"images": images, "annotations": captions})
    return folder


def shards(source, out, flags):
    assert call("shards", source, out, *flags.split()) == 0


def samples(pattern):
    """The samples of shards, members by extension."""
    found: dict = {}
    for shard in expand(pattern):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return list(found.values())


@pytest.fixture(scope="module")
def table(kept, tmp_path_factory):
    """Shards of the table, in shards of eight."""
    out = tmp_path_factory.mktemp("of-table") / "out"
    flags = "--label-key label --long-key long --shard-size 8 --jobs 2 --val-share 0.3"
    shards(kept / "pairs.csv", out, flags)
    return out


def pattern(out, split):
    return f"{out}/{split}/{{000000..{len(list((out / split).glob('*.tar'))) - 1:06}}}.tar"


def test_every_pair_of_a_table_is_in_one_split_or_listed_with_row_and_reason(table, kept):
    train, val = (samples(pattern(table, split)) for split in ("train", "val"))
    for split, found in (("train", train), ("val", val)):
        shards_there = expand(pattern(table, split))
        assert not any(inspect_shard(shard).problem for shard in shards_there)
        assert total_samples(shards_there) == len(found) > 5
    captions = [sample["txt"].decode() for sample in train + val]
    assert len(captions) == NUM + 1 == len(set(captions))
    of_3 = {"the same image", "a NA, number 3"}
    assert of_3 <= {*captions[: len(train)]} or of_3 <= {*captions[len(train) :]}
    suffixes = {frozenset(s) - {"txt", "cls", "long.txt"} for s in train + val}
    assert suffixes == {frozenset({"png"}), frozenset({"jpg"})}
    for sample in train:
        if b"number" in sample["txt"]:
            assert sample["txt"].decode().startswith(f"a {LABELS[int(sample['cls'])]}, ")
            assert sample["long.txt"] == sample["txt"] + b", at length"
    third, first, second = read_rows(table / "left_out.csv")
    assert [row["where"] for row in (first, second, third)] == ["row 61", "row 62", "row 63"]
    assert (second["image"], second["reason"]) == (f"{kept}/nix.png", "no such file")
    assert (third["image"], third["reason"]) == (f"{kept}/3.png", "no caption")
    assert first["reason"].startswith("no readable image (") and " at 0x" not in first["reason"]


def test_samples_are_counted_if_sizes_json_lists_every_shard(tmp_path):
    names = [f"{tmp_path}/0.tar", f"{tmp_path}/1.tar"]
    (tmp_path / "sizes.json").write_text('{"0.tar": 3}')
    assert total_samples(names) is None
    assert total_samples(names[:1] * 2) == 6


def test_images_of_a_folder_without_a_caption_file_are_counted_and_listed(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        Image.effect_noise((8, 8), 9).convert("RGB").save(folder / f"{number}.png")
    (folder / "0.txt").write_text("a cat")
    write_json(folder / "3.json", {"caption": "a dog"})
    shards(folder, tmp_path / "out", "--val-share 0 --jobs 1")
    assert capsys.readouterr().out.splitlines() == [
        f"train: 2 pairs in {tmp_path}/out/train/000000.tar",
        f"left out: 3 × no caption; {tmp_path}/out/left_out.csv lists all",
    ]
    assert read_rows(tmp_path / "out/left_out.csv")[0]["image"] == f"{folder}/1.png"


def test_evaluation_takes_the_validation_split_as_two_data_sets(table):
    retrieval, labels = (
        find_dataset(table / "evaluation", name) for name in ("retrieval", "labels")
    )
    assert (retrieval.kind, labels.kind) == ("retrieval", "classification")
    val = samples(pattern(table, "val"))
    texts = [
        line
        for s in samples(str(retrieval.folder / "test/0.tar"))
        for line in s["txt"].decode().splitlines()
    ]
    assert sorted(texts) == sorted(sample["txt"].decode() for sample in val)
    assert (labels.folder / "classnames.txt").read_text().split() == list(LABELS)
    assert {sample["cls"] for sample in samples(str(labels.folder / "test/0.tar"))} <= {
        b"0",
        b"1",
        b"2",
    }
    assert samples(str(labels.folder / "train/0.tar")) == samples(f"{table}/train/000000.tar")


def test_the_split_depends_only_on_the_content_of_images_and_captions(kept, tmp_path, monkeypatch):
    monkeypatch.chdir(kept)
    held_out = []
    for folder in ("", "./", f"{kept}/", f"{kept}/beside/../"):
        rows = [f"{folder}{n}.{FORMATS[n % 3]},caption {n}\n" for n in range(NUM)]
        (tmp_path / "pairs.csv").write_text("".join(["image,caption\n", *rows]))
        out = tmp_path / f"out{len(held_out)}"
        shards(tmp_path / "pairs.csv", out, "--val-share 0.25 --jobs 1")
        held_out.append({sample["txt"] for sample in samples(pattern(out, "val"))})
    assert held_out == held_out[:1] * 4
    assert len(held_out[0]) == NUM / 4


def test_a_folder_gives_the_same_pairs_as_its_table(kept, tmp_path):
    out = tmp_path / "out"
    shards(kept / "beside", out, "--label-key label --jobs 1 --val-share 0.2")
    found = [sample for split in ("train", "val") for sample in samples(pattern(out, split))]
    captions = sorted(f"a {LABELS[n % 3]}, number {n}" for n in range(NUM))
    assert sorted(s["txt"].decode() for s in found) == [*captions, "half an ?"]
    left_out = [row["image"] for row in read_rows(out / "left_out.csv")]
    assert left_out == [
        f"{kept}/beside/deeper/{name}.png" for name in ("cut", "empty\\udce9", "list")
    ]
    assert sum("cls" in sample for sample in found) == NUM // 2
    assert not (out / "evaluation/labels/train").exists()  # half of its pairs have no class
    out = tmp_path / "of"
    shards(kept / "beside", out, "--csv-caption-key caption --jobs 1 --val-share 0")
    assert (
        sum(sample["txt"] == b"of the field" for sample in samples(pattern(out, "train")))
        == NUM // 2
    )


def test_coco_gives_a_pair_a_caption_and_an_image_with_all_of_them(kept, tmp_path, capsys):
    shards(kept / "coco.json", out := tmp_path / "the out", "--val-share 0.2 --jobs 1")
    assert (
        f"superclip evaluate MODEL --data '{out}/evaluation' --datasets retrieval\n"
        in capsys.readouterr().out
    )
    both = [sample for split in ("train", "val") for sample in samples(pattern(out, split))]
    assert len(both) == 2 * NUM
    assert f"annotation {2 * NUM + 1},{kept}/0.png,no caption" in (out / "left_out.csv").read_text()
    for sample in samples(f"{out}/evaluation/retrieval/test/0.tar"):
        first, second = sample["txt"].decode().splitlines()
        assert first.removesuffix(", 0") == second.removesuffix(", 1")


@cases("arguments, reason", refusals("shards"))
def test_wrong_arguments_are_refused_and_nothing_is_written(
    arguments, reason, kept, table, tmp_path, refused
):
    (kept / "other.json").write_text("{}")
    (kept / "null.json").write_text('{"images": null}')
    (table.parent / "1.csv").write_text("image,caption\n0.png,a cat\n")
    (table.parent / "empty.csv").write_text("image,caption\n0.png,\n")
    (table.parent / "huge.csv").write_text(f"image,caption\n0.png,{'x' * 2**18}\n")
    command = f"shards {arguments}".format(kept=kept, table=table)
    assert reason.format(kept=kept, table=table) in refused(tmp_path, command)
