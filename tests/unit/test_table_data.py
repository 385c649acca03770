"""Recipes of a table: its rows are counted, its passes trained, and what
cannot be trained is refused at once."""

import functools
import multiprocessing
import os
import re
from collections import Counter
from pathlib import Path

import open_clip_train.data
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip_train.params import parse_args as openclip_args
from PIL import Image
from support import cases, input_error, parametrize, read_json_lines, table
from support.training_runs import call, execute

from openclip_superclip.data.captions import CaptionTokens
from openclip_superclip.environment import replaced
from openclip_superclip.flags import Config
from openclip_superclip.plans.plan import make_run, settings_of_table
from openclip_superclip.plans.recipe_files import read_recipe
from openclip_superclip.plans.run import Settings
from openclip_superclip.runs.loss_monitor import CountedSteps
from openclip_superclip.runs.unreadable import refuse_bad_files
from openclip_superclip.study.configuration import StudyOptions, configure
from openclip_superclip.study.training import run_study
from openclip_superclip.trainer import data as adapter

OWN = "own_data/superclip_vit-ti-16-96_60k_bs64"
NUM_ROWS = 70


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """pairs.csv, whose first caption is empty, tabs.csv, with other columns
    and separators, and names.csv."""
    folder = tmp_path_factory.mktemp("own")
    Image.effect_noise((32, 32), 9).save(folder / "0.png")
    captions = ["", *(f"a cat, {row}" for row in range(1, NUM_ROWS))]
    (folder / "pairs.csv").write_text(
        "image,caption\n" + "".join(f'{folder}/0.png,"{c}"\n' for c in captions)
    )
    (folder / "names.csv").write_text("path,text\n" + "absent.png,a cat\n" * NUM_ROWS)
    (folder / "tabs.csv").write_text("path\ttext\n" + f"{folder}/0.png\ta cat\n" * NUM_ROWS)
    return folder


def plan(folder, set_=None, table="pairs.csv", **machines):
    data = str(folder / table)
    recipe = read_recipe(OWN, {**(set_ or {}), **settings_of_table(OWN, set_ or {}, data)})
    return make_run(recipe, data=data, device="cpu", **machines)


@cases("set_, machines, epochs, steps", table("plans: passes of a table"))
def test_a_plan_trains_whole_passes_without_the_last_partial_batch(
    folder, set_, machines, epochs, steps
):
    made = plan(folder, set_, **machines)
    assert (made.num_slices, made.slice_steps) == (epochs, steps)
    command = " ".join(made.openclip_arguments())
    assert f"--train-data {folder}/pairs.csv --dataset-type auto --epochs {epochs} " in command
    assert "--csv-separator , --csv-img-key image --csv-caption-key caption" in command
    assert "--train-num-samples" not in command and "--superclip-slices" not in command
    warnings = [warning for warning in made.warnings if "whole passes" in warning]
    assert bool(warnings) == (set_.get("samples") in ("100", "1.5 passes"))


def test_the_columns_are_named_as_openclip_names_them(folder):
    columns = "--csv-separator '\t' --csv-img-key path --csv-caption-key text"
    data = f"--data {folder}/tabs.csv {columns}"
    printed = execute(f"plan {OWN} {data} --device cpu")
    assert f"a table of {NUM_ROWS} pairs; {NUM_ROWS} images were checked" in " ".join(
        printed.split()
    )
    assert "--csv-separator '\t' --csv-img-key path" in printed


@cases("data, set_, reason", table("shards_and_tables: refused tables"))
def test_run_and_study_refuse_unusable_tables_and_write_nothing(
    data, set_, reason, folder, monkeypatch
):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    options = StudyOptions(
        study="own_data", device="cpu", data=data, val_data="pairs.csv", set=set_
    )
    with input_error(re.escape(reason)):
        plan(Path(), set_, data)
    with input_error(re.escape(reason)):
        run_study(configure(options), 1)
    assert sorted(folder.iterdir()) == before


def test_a_run_skips_the_images_that_unreadable_max_tolerates(folder, tmp_path):
    table = tmp_path / "one_missing.csv"
    table.write_text((folder / "pairs.csv").read_text().replace(f"{folder}/0.png,", "nix.png,", 1))
    refused = plan(folder, table=table)
    named = (
        r"1 of 70 images cannot be read, more than --unreadable-max 0\.01 allows: row 1 "
        r"names nix\.png \(no such file"
    )
    with input_error(named):
        refuse_bad_files(refused, refused.check_data())
    with input_error("--val-data: there is no file 20260101"):
        plan(folder, {"flags.val-data": "20260101"}).check_validation()
    accepted = plan(folder, table=table, settings=Settings(unreadable_max=0.1))
    checked = accepted.check_data()
    refuse_bad_files(accepted, checked)
    assert checked.warnings[0].endswith("such rows are skipped")


class FirstWord:
    """A tokenizer that returns texts as they are, and can be pickled."""

    context_length = 1

    def __call__(self, texts, context_length=1):
        return [texts]


@parametrize("start_method", ["fork", "spawn"], ids=["OpenCLIP's table", "with our tokens"])
def test_images_that_fail_during_training_are_named_and_replaced_by_the_next_row(
    start_method, tmp_path
):
    has_tokens = start_method == "spawn"
    for name in "ab":
        Image.effect_noise((32, 32), 9).convert("RGB").save(tmp_path / f"{name}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    os.mkfifo(tmp_path / "pipe.png")
    rows = [f"{tmp_path}/{name}.png\t{name}" for name in "a b nix cut pipe".split()]
    (tmp_path / "pairs.tsv").write_text("\n".join(["filepath\ttitle", *rows]))
    data = open_clip_train.data
    options = f"--train-data {tmp_path}/pairs.tsv --batch-size 1 --workers 1".split()
    args = openclip_args(options)
    args.distributed = False
    preprocess = image_transform_v2(PreprocessCfg(size=8), is_train=True)
    counted = CountedSteps(steps_of_epoch=1)
    counted.resume("checkpoints/epoch_3.pt")
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(start_method, force=True)
    try:
        tokens = CaptionTokens(
            Config(captions="long", long_caption="title"),
            FirstWord(),
            caption_key="title",
            sample_key="filepath",
            seed=0,
            rank=None,
            epoch=data.SharedEpoch(3),
        )
        with adapter.listing_unreadable(tmp_path / "unreadable_0.jsonl", counted.epoch):
            table = functools.partial(adapter._Table, tokens) if has_tokens else data.CsvDataset
            with replaced(data, CsvDataset=table):
                loaded = data.get_csv_dataset(args, preprocess, True, tokenizer=FirstWord())
            captions = sorted(caption_of(batch) for batch in loaded.dataloader)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert captions == ["a", "a", "a", "a", "b"]
    assert tokens.counts.so_far() == (5 * has_tokens, 0)  # of the workers
    lines = read_json_lines(tmp_path / "unreadable_0.jsonl")
    named = Counter(Path(line["why"].split(": ")[1]).stem for line in lines)
    assert named == {"nix": 1, "cut": 2, "pipe": 3}
    assert all(line["epoch"] == 3 and line["sample"] for line in lines)


def caption_of(batch):
    """The caption of a batch of one pair, of OpenCLIP 3 or 4."""
    texts = batch["text"] if isinstance(batch, dict) else batch[1]
    return texts[0][0]


def test_a_table_without_any_readable_image_is_an_error(tmp_path):
    (tmp_path / "pairs.tsv").write_text("filepath\ttitle\nnix.png\ta\nalso nix.png\tb\n")
    with adapter.listing_unreadable(tmp_path / "unreadable_0.jsonl", lambda: 3):
        table = open_clip_train.data.CsvDataset(tmp_path / "pairs.tsv", None, "filepath", "title")
    with input_error("no image of the table can be read"):
        table[1]


def test_training_reads_no_image_that_is_not_a_regular_file(parse_args, csv_data, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "pairs.tsv").write_text(f"filepath\ttitle\n{tmp_path}/pipe.png\ta cat\n")
    args = parse_args(f"--superclip --train-data {csv_data} --batch-size 1 --workers 0")
    args.train_data, args.distributed = f"{tmp_path}/pairs.tsv", False
    get_dataset = adapter.with_plugins_data(lambda *_: open_clip_train.data.get_csv_dataset)(
        args.train_data, "csv"
    )
    preprocess = image_transform_v2(PreprocessCfg(size=8), is_train=True)
    data = get_dataset(args, preprocess, is_train=True, epoch=0, tokenizer=FirstWord())
    with input_error(r"pipe.png cannot be read .it is not a regular file"):
        next(iter(data.dataloader))


def test_a_missing_table_is_named_with_its_flag(tmp_path):
    message = f"error: --val-data: {tmp_path}/nix.csv is not a readable table"
    with pytest.raises(SystemExit, match=message):
        call(f"train --model ViT-B-32 --device cpu --val-data {tmp_path}/nix.csv")
