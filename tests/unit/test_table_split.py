"""One table is enough: a study and a training split validation pairs off
it, and find its columns."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from support import cases, input_error, parametrize, read_json_lines, refusals, table
from support.training_runs import execute, failure, run_train

from openclip_superclip.data import held_out
from openclip_superclip.data.data_check import check_table
from openclip_superclip.data.held_out import split_table
from openclip_superclip.data.tables import Columns, detect_columns

COLUMNS = Columns(",", "image", "caption")


def write_pairs(folder, number=40, header="image,caption"):
    """Writes a table of images of one colour each, two rows per image,
    three rows per caption."""
    (folder / "images").mkdir(exist_ok=True)
    separator = "," if "," in header else ";"
    rows = [header]
    for index in range(number):
        image = folder / f"images/{index}.png"
        # two files of the same content
        Image.new("RGB", (32, 32), (6 * (index // 2), 0, 0)).save(image)
        rows.append(f'{image}{separator}"a dog{separator} number ""{index // 3}"""')
    file = folder / "pairs.csv"
    file.write_text("\n".join(rows) + "\n")
    return file


def split(table, fraction=0.25):
    split = split_table(str(table), COLUMNS, fraction, table.parent, "--data", "--out")
    split.write("--out")
    return split


def test_the_same_call_finds_the_split_and_another_table_or_fraction_has_another(tmp_path):
    table = write_pairs(tmp_path)
    first = split(table)
    again = split(table)
    assert first.is_new
    assert (again.folder, again.record, again.is_new) == (first.folder, first.record, False)
    again.remove()
    assert first.folder.exists()
    assert split(table, 0.5).folder != first.folder
    (first.folder / "split.json").write_text("{")
    with input_error("--out: .*split.json cannot be read"):
        split(table)
    table.write_text(table.read_text() + f"{tmp_path}/images/0.png,another\n")
    assert split(table).folder != first.folder
    assert not [*tmp_path.glob("*.part")]


def test_empty_captions_stay_empty_and_text_stays_as_it_is(tmp_path):
    table = write_pairs(tmp_path)
    more = ["", '"007\nnew line"', '"one\rtwo"']
    rows = [f"{tmp_path}/images/{2 * index}.png,{cell}\n" for index, cell in enumerate(more)]
    table.write_text("".join([table.read_text(), *rows]))
    found = split(table)
    tables = [pd.read_csv(file, keep_default_na=False) for file in (found.train, found.val)]
    captions = list(pd.concat(tables).caption)
    for caption in ("", "007\nnew line", "one\rtwo"):
        assert captions.count(caption) == 1


@cases("header, row, columns", table("shards_and_tables: columns"))
def test_columns_are_found_if_only_one_answer_is_possible(tmp_path, header, row, columns):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    file = tmp_path / "pairs.csv"
    file.write_text(f"{header}\n" + f"{row.format(image=tmp_path / 'image.png')}\n" * 3)
    if columns is None:
        with input_error(r"--csv-(img|caption)-key: .*pairs.csv has no column .*; its columns are"):
            detect_columns(str(file), None, None, None, "--data")
    else:
        assert [*detect_columns(str(file), None, None, None, "--data")] == columns


@parametrize("flag", ["", "--superclip"])
def test_columns_are_found_without_our_flags_too(flag, tmp_path, parse_args, refusal, capsys):
    table = write_pairs(tmp_path, header="photo;words")
    for data in ("train", "val"):
        args = parse_args(f"{flag} --{data}-data {table} --batch-size 8")
        columns = (args.csv_separator, args.csv_img_key, args.csv_caption_key)
        assert columns == (";", "photo", "words")
    assert "images in column 'photo', captions in 'words'" in capsys.readouterr().err
    (tmp_path / "three.csv").write_text("a,b,c\n1,2,3\n")
    message = refusal(f"{flag} --train-data {tmp_path}/three.csv --batch-size 8")
    assert "--csv-img-key: " in message and "its columns are a, b, c" in message


def test_without_our_flags_columns_that_openclip_finds_stay_as_they_are(tmp_path, parse_args):
    (tmp_path / "stock.csv").write_text("image,filepath,title,title\n")
    args = parse_args(
        f"--train-data {tmp_path}/stock.csv --csv-separator , --csv-caption-key title"
    )
    assert (args.csv_img_key, args.csv_caption_key) == ("filepath", "title")
    table = write_pairs(tmp_path, header="filepath,caption")
    table.write_text("".join(f"image,{line}\n" for line in table.read_text().splitlines()))
    args = parse_args(
        f"--superclip --train-data {table} --batch-size 8 --csv-separator , --csv-img-key filepath "
        "--csv-caption-key caption"
    )
    assert (args.csv_img_key, args.csv_caption_key) == ("filepath", "caption")


def small_study(table, options):
    return (
        f"study own_data --data {table} --seeds 2 --device cpu --set global_batch_size=8 "
        f"--set 'samples=1 passes' --set warmup=1 {options}"
    )


def test_a_dry_run_of_a_study_splits_the_table_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    write_pairs(tmp_path, header="photo;words")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    printed = execute(small_study("pairs.csv", "--dry-run"))
    assert "own_data: runs left to train: 4 of 4" in printed
    assert "pairs for training and 6 for validation" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)  # all of which a run uses
    error = failure(small_study("pairs.csv", "--dry-run --device cuda"))
    assert "a global batch of 8 does not divide among 3 GPUs" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_study_of_two_pairs_is_planned_with_a_batch_of_one(tmp_path, monkeypatch):
    write_pairs(tmp_path)
    monkeypatch.chdir(tmp_path)
    header, *rows = (tmp_path / "pairs.csv").read_text().splitlines()
    (tmp_path / "two.csv").write_text("\n".join([header, rows[0], rows[-1]]))
    planned = execute(
        "study own_data --data two.csv --seeds 2 --device cpu --set global_batch_size=1 --dry-run"
    )
    assert re.search(r"runs left to train: 4 of 4, 120 samples: .* with --jobs 1$", planned)
    assert sorted(path.name for path in tmp_path.glob("*")) == ["images", "pairs.csv", "two.csv"]


@cases("options, problem", refusals("study_of_a_table"))
def test_a_study_refuses_a_table_that_it_cannot_split_and_writes_nothing(
    tmp_path, refused, options, problem
):
    table = write_pairs(tmp_path)
    text = table.read_text()
    (tmp_path / "one_missing.csv").write_text(
        text.replace(f"{tmp_path}/images/0.png", "images/nix.png")
    )
    rows = [f"{tmp_path}/images/{2 * index}.png,the same" for index in range(20)]
    (tmp_path / "one_caption.csv").write_text("\n".join(["image,caption", *rows]))
    (tmp_path / "one_row.csv").write_text(f"image,caption\n{rows[0]}")
    (tmp_path / "taken/runs/clip_seed0/checkpoints").mkdir(parents=True)
    assert problem in refused(tmp_path, small_study("pairs.csv", options))


@pytest.fixture
def train(small_model):
    return (
        f"--model {small_model} --batch-size 8 --epochs 1 --workers 0 --lr 1e-4 --warmup 1 "
        "--device cpu --precision fp32 --train-data pairs.csv"
    )


def test_both_methods_train_and_validate_on_the_same_split(train, tmp_path):
    write_pairs(tmp_path, header="photo;words")
    ours = run_train(train, "--val-fraction 0.2 --superclip --name ours", cwd=tmp_path)
    assert "in batches of 8 samples: 4 steps" in ours.output
    run = run_train(train, "--val-fraction 0.2 --name clip", cwd=tmp_path)
    assert (
        "pairs.csv: images in column 'photo', captions in 'words', separated by ';'" in run.output
    )
    (folder,) = tmp_path.glob("logs/split-*")
    for name in ("ours", "clip"):
        params = (tmp_path / f"logs/{name}/params.txt").read_text()
        for part in ("train", "val"):
            assert f"{part}_data: logs/{folder.name}/{part}.csv\n" in params
        assert "superclip_val_fraction: 0.2\n" in params
        results = tmp_path / f"logs/{name}/checkpoints/results.jsonl"
        assert read_json_lines(results)[-1]["num_samples"] == 6


def test_two_ranks_share_one_split_and_resume_on_it_after_the_table_has_changed(
    train, tmp_path, refusal
):
    write_pairs(tmp_path)
    flags = f"{train} --superclip --name run --dist-backend gloo"
    run_train(flags, "--val-fraction 0.2", cwd=tmp_path, world_size=2)
    write_pairs(tmp_path, 43)
    flags += " --resume latest --epochs 2"
    message = refusal(flags, "--val-fraction 0.2")
    (folder,) = Path("logs").glob("split-*")
    advice = f"--train-data {folder}/train.csv --val-data {folder}/val.csv"
    assert advice in message
    run_train(flags, advice, cwd=tmp_path, world_size=2)


@cases("options, problem", refusals("train_on_a_table"))
def test_training_refuses_tables_that_cannot_be_split_and_writes_nothing(
    train, tmp_path, refusal, options, problem
):
    write_pairs(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert problem in refusal(train, "--superclip", options)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_loser_of_two_studies_leaves_the_winners_tables(tmp_path, monkeypatch):
    table = write_pairs(tmp_path)
    loser = split_table(str(table), COLUMNS, 0.25, tmp_path / "new", "--data", "--out")
    winner = split_table(str(table), COLUMNS, 0.25, tmp_path / "new", "--data", "--out")

    def be_faster(*_):
        monkeypatch.undo()
        winner.write("--out")

    monkeypatch.setattr(held_out, "make_folder", be_faster)  # after the loser's look for tables
    loser.write("--out")
    assert (winner.is_new, loser.is_new) == (True, False)
    loser.remove()
    assert sorted(path.name for path in winner.folder.iterdir()) == [
        "split.json",
        "train.csv",
        "val.csv",
    ]


def test_only_the_first_rank_compares_images(tmp_path, monkeypatch):
    table = write_pairs(tmp_path)
    arguments = str(table), COLUMNS, 0.25, tmp_path, "--data", "--out"
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(split_table, *arguments, is_first=False) for _ in range(3)]
        first = split(table)
        for other in others:
            assert (other.result().folder, other.result().parts) == (first.folder, {})
    monkeypatch.setattr(held_out, "MAX_WAIT", 0)
    with input_error("--out: the first rank of this machine has not written .*split.json"):
        split_table(str(table), COLUMNS, 0.5, tmp_path, "--data", "--out", is_first=False)


def test_a_wrong_separator_is_named_without_our_flags_too(train, tmp_path, refusal):
    write_pairs(tmp_path)
    message = refusal(train, "--csv-separator '*,'")
    assert "pairs.csv is not a readable table (nothing to repeat at position 0)" in message


def test_a_caption_that_swallows_rows_is_named(tmp_path):
    table = write_pairs(tmp_path)
    lines = table.read_text().splitlines()
    image = lines[6].partition(",")[0]
    lines[6] = f'{image},"a dog that is not closed'  # up to the next quotation mark
    lines[7:] = [line.replace('"', "").replace(", number", " number") for line in lines[7:]]
    lines[11] += '"'
    table.write_text("\n".join(lines) + "\n")
    (warning,) = check_table(str(table), COLUMNS, "--data").warnings
    assert f"the caption of {image} in {table} contains other rows of the table" in warning
