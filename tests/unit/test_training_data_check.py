"""Training data that OpenCLIP could not train on is refused in one line,
before anything is loaded or written."""

import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from support import cases, parametrize, read_json, refusals, write_json
from support.data import IMAGE, write_shards, write_tar
from support.models import VOCAB_SIZE, write_model

from openclip_superclip.trainer.checks import check_options
from openclip_superclip.trainer.parsed_options import read
from openclip_superclip.trainer.train import train

COMMA = "--csv-separator , --batch-size 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """16 shards of 16 samples, and shards and tables that cannot be trained
    on."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards(folder)
    (folder / "nix.csv").write_text("filepath\ttitle\nnix.png\ta cat\n")
    (folder / "green.png").write_bytes(IMAGE)
    row = f"{folder}/green.png,grün"
    for name, rows in {
        "three": f"{row}, rot\n".encode(),
        "none": b"",
        "latin": f"{row}\n".encode("latin-1"),
    }.items():
        (folder / f"{name}.csv").write_bytes(b"filepath,title\n" + rows)
    broken = {
        "text": {"txt": b"a cat"},
        "latin": {"png": IMAGE, "txt": "grün".encode("latin-1")},
        "cut": {"png": b"x", "txt": b"a cat"},
    }
    for name, members in broken.items():
        write_tar(folder / f"{name}.tar", [members] * 16)
    return folder


def arguments(train_data, csv_data, folder):
    shards = f"{folder}/{{000000..000015}}.tar"
    values = {"table": csv_data, "wds": shards, "folder": folder, "comma": COMMA}
    return f"--train-data {train_data.format(**values)}"


@cases("train_data, reason", refusals("training_data"))
def test_data_that_cannot_be_trained_on_is_refused(train_data, reason, csv_data, folder, refusal):
    flags = "--batch-size 16 --train-num-samples 64 --workers 1 --superclip"
    reason = reason.format(csv=csv_data, wds=f"{folder}/{{000000..000015}}.tar", folder=folder)
    assert reason in refusal(flags, arguments(train_data, csv_data, folder))


def test_200_images_spread_over_a_table_are_decoded_and_the_bad_rows_are_listed(
    tmp_path, parse_args, refusal, monkeypatch
):
    paths = [tmp_path / f"{number}.jpg" for number in range(400)]
    Image.effect_noise((16, 16), 9).save(paths[0])
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    table = tmp_path / "table.csv"
    table.write_text("".join(f"{path}\ta cat\n" for path in ("filepath", *paths)))
    flags = f"--superclip --train-data {table} --batch-size 4 --csv-caption-key 'a cat'"
    damaged = paths[0].read_bytes()[:300]
    paths[399].write_bytes(damaged)  # every second row is decoded
    assert parse_args(flags)
    paths[398].write_bytes(damaged)
    paths[396].unlink()
    message = refusal(flags)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parse_args(flags, f"--val-data {table}")  # only one rank decodes
    assert "2 of 200 images" in message
    assert f"row 399 names {paths[398]}: no readable image" in message
    assert f"row 397 names {paths[396]}: no such file" in message


@parametrize("data", ["{table}", "{wds} --train-num-samples 64"], ids=["table", "shards"])
def test_a_warm_up_longer_than_the_run_is_warned_of(data, csv_data, folder, parse_args, capsys):
    run = arguments(f"{data} --superclip --batch-size 16 --epochs 2 --workers 0", csv_data, folder)
    for flags in ("--warmup 8", "--warmup 7", "--warmup 8 --skip-scheduler"):
        parse_args(run, flags, "--superclip-head-warmup 127")
    parse_args(run, "--warmup 7 --superclip-head-warmup 128")
    assert [line for line in capsys.readouterr().err.splitlines() if "warm" in line] == [
        "superclip: warm-up takes 8 steps, but the run has 8: shorten it with --warmup",
        "superclip: --superclip-head-warmup 128 covers all 128 samples of the run, so the class "
        "loss trains only its head",
    ]


def test_no_data_at_all_is_refused_and_an_evaluation_is_not(csv_data, parse_args, refusal, capsys):
    for flag in ("--superclip", "--superclip-slices 2"):
        assert "--train-data is missing" in refusal(flag)
        assert parse_args(flag, f"--val-data {csv_data}").train_data is None
    assert train([]) == 1
    assert capsys.readouterr().err.startswith("error: --train-data is missing")


def test_an_epoch_of_a_run_in_slices_has_at_most_the_samples_of_a_slice(
    folder, parse_args, refusal, tmp_path
):
    shards = shutil.copytree(folder, tmp_path / "shards")
    sized = f"{shards}/{{000000..000015}}.tar"
    write_json(shards / "sizes.json", {f"{shard:06}.tar": 16 for shard in range(16)})
    flags = f"--train-data {sized} --superclip-slices 4 --batch-size 8 --train-num-samples"
    for number in (61, 64):
        assert parse_args(flags, number).train_num_samples == number
    for number in (65, 72):
        expected = f"samples is {number}; expected .* 4 slices, 64 of 256"
        assert re.search(expected, refusal(flags, number))


MISSING = [
    "--train-data nowhere.csv",
    "--val-data nowhere.csv",
    "--val-data nowhere.tar",
    "--model nowhere.json",
    "--model local-dir:nowhere",
    "--resume nowhere.pt",
]


@parametrize("flags", MISSING)
def test_a_missing_file_is_named_in_one_line(flags, csv_data, tmp_path):
    command = f"-m openclip_superclip train --superclip --train-data {csv_data} {flags}"
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: ") and "nowhere" in done.stderr


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(
    csv_data, parse_args, refusal, tmp_path
):
    model = write_model(tmp_path)
    config = read_json(tmp_path / "open_clip_config.json")
    config["model_cfg"]["text_cfg"]["vocab_size"] = VOCAB_SIZE - 1
    flags = f"--superclip --model {model} --train-data {csv_data}"
    assert parse_args(flags).superclip
    write_json(tmp_path / "open_clip_config.json", config)
    assert (
        f"--model: the tokenizer of {model} gives every caption token id {VOCAB_SIZE - 1}, and its "
        f"text_cfg has vocab_size {VOCAB_SIZE - 1}: expected" in refusal(flags)
    )


def test_the_check_of_a_command_line_changes_nothing(csv_data, parse_args, tmp_path):
    flags = f"--train-data {csv_data} --batch-size 16 --epochs 2 --superclip --warmup 5"
    args = parse_args(flags, "--model ViT-Ti-16-96", only_options=True)
    args.only_options = False
    training = read(args)
    before = dict(vars(args))
    check_options(training)
    assert training.num_steps == 8
    assert vars(args) == before
    assert not list(tmp_path.iterdir())
