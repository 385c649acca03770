"""The checks of `superclip plan` and `superclip check`: what it finds in shards that are
missing, broken, too few or not as expected."""

import json
import os
import shutil
import tarfile

import pytest
from support import cases, input_error, parametrize, table, write_json
from support.data import IMAGE, NUM_SHARDS, PATTERN, SHARD_SIZE, write_shards, write_tar
from support.training_runs import call, execute

from openclip_superclip.data.data_check import (
    check_samples,
    check_shards,
    check_table,
)
from openclip_superclip.data.slices import Split
from openclip_superclip.data.tables import Columns

SAMPLES = NUM_SHARDS * SHARD_SIZE


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "shards"
    write_shards(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of the shards, to be broken."""
    return shutil.copytree(whole, tmp_path / "shards")


def check(folder, world_size=1, workers=1, expected=SAMPLES, sizes=(64, 16), **options):
    split = Split(NUM_SHARDS, world_size, workers, 4, *sizes)  # of a slice and of a batch
    return check_pattern(f"{folder}/{PATTERN}", split, expected, **options)


def check_pattern(pattern, split, expected, **options):
    """The same check as `superclip run` makes."""
    split.check()
    checked = check_shards(pattern, "--data", **options)
    check_samples(checked, split, expected)
    return checked


def problems(checked):
    return {one.file.rpartition("/")[2]: one.problem for one in checked.bad}


@parametrize("full", [False, True])
def test_complete_shards_are_counted_without_a_warning(full, whole):
    checked = check(whole, full=full)
    assert (checked.num_shards, checked.num_found) == (16, 16)
    assert (checked.bad, checked.warnings) == ([], [])
    assert checked.num_bytes == sum(path.stat().st_size for path in whole.glob("*.tar"))
    assert checked.num_samples == (SAMPLES if full else 5 * SHARD_SIZE)
    json.dumps(checked.as_json())


def test_missing_shards_are_listed(folder):
    for number in (0, 7, 8):
        (folder / f"{number:06}.tar").unlink()
    checked = check(folder)
    assert problems(checked) == dict.fromkeys(
        ("000000.tar", "000007.tar", "000008.tar"), "no such file"
    )
    assert checked.num_found == 13
    assert "missing or broken shards: 3 of 16," in checked.warnings[0]


@parametrize("size", [0, 700])
def test_a_first_and_a_last_shard_that_were_cut_are_found_and_not_taken_for_all(size, folder):
    for number in (0, 15):
        os.truncate(folder / f"{number:06}.tar", size)
    found = problems(check(folder))
    assert all("broken tar file" in problem for problem in found.values())
    assert list(found) == ["000000.tar", "000015.tar"]
    for number in (3, 7, 11):
        (folder / f"{number:06}.tar").write_bytes(b"")
    with input_error(r"000000\.tar: broken tar file"):
        check(folder)


def test_only_the_full_check_finds_a_broken_shard_in_the_middle(folder):
    path = folder / "000005.tar"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[9].offset
    content[offset : offset + 512] = IMAGE * 512  # where a header should be
    path.write_bytes(content)
    assert check(folder).bad == []
    checked = check(folder, full=True)
    assert list(problems(checked)) == ["000005.tar"]
    assert "no valid tar member and no end marker at byte" in problems(checked)["000005.tar"]
    assert SAMPLES - SHARD_SIZE < checked.num_samples < SAMPLES


def write(path, sample):
    write_tar(path, [sample] * 4)


@parametrize(
    "sample, reason",
    [
        ({"txt": "a cat"}, "its members are txt"),
        ({"gif": IMAGE, "caption": b"a cat"}, "its members are caption, gif"),
    ],
)
def test_a_shard_of_which_training_would_read_nothing_is_named_with_the_reason(
    sample, reason, folder
):
    write(folder / "000015.tar", sample)
    assert reason in problems(check(folder))["000015.tar"]


def test_shards_without_captions_are_refused_unless_another_member_has_them(tmp_path):
    for number in range(NUM_SHARDS):
        write(tmp_path / f"{number:06}.tar", {"png": b"", "jpg": IMAGE, "cls": b"3"})
    with input_error(r"000000\.tar: no sample has an image .* its members are cls, jpg, png"):
        check(tmp_path)
    assert check_shards(f"{tmp_path}/{PATTERN}", "--data", caption="cls").bad == []


@cases("place, sample", table("shards_and_tables: places of long captions"))
def test_long_captions_are_looked_for_where_the_recipe_reads_them(place, sample, tmp_path):
    for number in range(NUM_SHARDS):
        write(tmp_path / f"{number:06}.tar", {"png": IMAGE, "txt": "a cat", **sample})
    numbers = {"expected": 64, "sizes": (16, 4)}
    assert check(tmp_path, **numbers, long_caption=place).warnings == []
    write(tmp_path / "000015.tar", {"png": IMAGE, "txt": "a cat"})
    checked = check(tmp_path, **numbers, long_caption=place, full=True)
    assert checked.warnings == [f"--data: samples without the long caption '{place}': 4 of 64"]
    with input_error(r"no sample of .*000000\.tar holds the long caption 'other\.txt'"):
        check(tmp_path, long_caption="other.txt")


@cases("world_size, workers, reason", table("shards_and_tables: too few shards"))
def test_too_few_shards_or_samples_are_refused_with_the_numbers_that_would_work(
    world_size, workers, reason, whole
):
    with input_error(reason):
        check(whole, world_size, workers, sizes=(64, 17))


@cases("pattern, message", table("shards_and_tables: patterns without shards"))
def test_a_pattern_that_names_no_shards_is_refused(pattern, message, whole):
    with input_error(message):
        check_shards(f"{whole}{pattern}", "--data")


@parametrize("pattern", ["s3://bucket/{00..15}.tar", "pipe:cat {00..15}.tar"])
def test_urls_and_pipes_are_reported_as_not_checked(pattern):
    checked = check_pattern(pattern, Split(16, 1, 1, 4, 64, 16), SAMPLES, full=True)
    assert (checked.num_found, checked.full) == (None, False)
    assert "16 of 16 shards are URLs or pipes" in checked.warnings[0]
    with input_error("too few"):
        check_pattern(pattern, Split(16, 16, 2, 4, 64, 16), SAMPLES)


def test_sizes_json_is_compared_with_the_recipe(folder):
    write_json(folder / "sizes.json", {f"{n:06}.tar": SHARD_SIZE for n in range(NUM_SHARDS)})
    assert check(folder).num_listed == SAMPLES
    assert check(folder).warnings == []
    assert check(folder, expected=2 * SAMPLES).warnings == [
        f"sizes.json lists 256 samples, and the recipe assumes {2 * SAMPLES}: --set "
        "data_samples=256 plans with those"
    ]


def test_the_command_lists_bad_shards_and_exits_with_1(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert "256 samples counted; all were read" in execute(f"check {PATTERN}")
    (folder / "000003.tar").write_bytes(b"")
    assert call(f"check {PATTERN} --long-caption txt") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "16 of 16 shards exist" in printed
    assert "240 samples counted; all were read" in printed
    assert "bad shard 000003.tar: broken tar file" in printed
    assert call("check 'pipe:cat {0..1}.tar'") == 1
    assert "DATA: pipe:cat 0.tar is not on this machine" in capsys.readouterr().err
    sizes = "--set samples=256 --set data_samples=256 --set model=ViT-Ti-16-96"
    plan = f"plan demo/clip_demo-model_8k_bs16 {sizes} --gpus-per-node 1 --data {PATTERN}"
    assert "16 of 16 shards exist" in execute(plan)


def test_samples_are_counted_if_sizes_json_lists_every_shard(tmp_path):
    (tmp_path / "sizes.json").write_text('{"0.tar": 3}')
    for names, total in {"{0..1}.tar": None, "{0,0}.tar": 6}.items():
        assert check_shards(f"{tmp_path}/{names}", "--data", reads=False).total_samples == total


def test_missing_and_empty_captions_are_summarised_as_those_of_a_table(tmp_path):
    (tmp_path / "0.png").write_bytes(IMAGE)
    captions = ["a cat", "a dog", "", *(f"dog {number}" for number in range(13))]
    rows = "".join(f'{tmp_path}/0.png,"{caption}"\n' for caption in captions)
    (tmp_path / "pairs.csv").write_text(f"image,caption\n{rows}")
    samples = [{"png": IMAGE, "txt": caption} for caption in captions]
    write_tar(tmp_path / "0.tar", [*samples, {"png": IMAGE}, {"txt": "a ship"}])
    of_table = check_table(f"{tmp_path}/pairs.csv", Columns(",", "image", "caption"), "--data")
    of_shard = check_shards(f"{tmp_path}/0.tar", "--data", full=True)
    for checked in (of_table, of_shard):
        assert (checked.num_samples, checked.num_empty) == (16, 1)
        assert ": 1 of 16; " in checked.warnings[-1]
    assert of_shard.num_incomplete == 2
    assert "samples without an image or a caption: 2 of 18" in of_shard.warnings[0]


def test_a_signed_url_with_a_long_component_is_not_taken_for_a_file():
    name = f"pipe:curl -s https://host/{'x' * 300}/{{000000..000015}}.tar"
    split = Split(NUM_SHARDS, 1, 1, 4, 64, 16)
    assert "16 of 16 shards are URLs or pipes" in check_pattern(name, split, SAMPLES).warnings[0]
