"""Word frequencies of a data set: the counts, the weights that follow, and
the errors of wrong files."""

import csv
import math
import random
import shlex
import shutil
import tarfile
from collections import Counter
from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import WORDS, cases, input_error, parametrize, refusals, table
from support.data import IMAGE, write_tar
from support.models import LIST_OF_WORDS, write_model, write_tokenizer
from support.training_runs import execute, failure

from openclip_superclip.data.frequencies import read_frequencies
from openclip_superclip.method.idf import idf

NUM_SHARDS, PER_SHARD = 4, 25


def captions(shard, index):
    """A short caption and a long one; the first of each shard are empty."""
    rng = random.Random(1000 * shard + index)
    if index == 0:
        return "", ""
    return " ".join(rng.choices(WORDS[:6], k=2)), " ".join(rng.choices(WORDS, k=6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four shards of 25 samples with a short caption and a long one, and
    three things that are no samples."""
    folder = tmp_path_factory.mktemp("shards")
    odd = [
        {"__key__": "no caption", "jpg": b"1"},
        {"__key__": "no image", "txt": "moon"},
        {"__key__": "not UTF-8", "txt": b"\xff", "long.txt": b"\xff", "json": b"{", "jpg": b"1"},
    ]
    for shard in range(NUM_SHARDS):
        samples = []
        for index in range(PER_SHARD):
            short, long = captions(shard, index)
            sample = {"txt": short, "long.txt": long, "json": {"a": {"b": long, "b c": long}}}
            sample["png"] = IMAGE
            samples.append(sample | {"__key__": f"{shard}{index:03d}"})
        write_tar(folder / f"{shard}.tar", samples + odd)
    return folder


@pytest.fixture(scope="module")
def pattern(folder):
    return f"{folder}/{{0..3}}.tar"


def expected(kind):
    """Captions that hold each word, and captions with any."""
    texts = [
        captions(shard, index)[kind].split()
        for shard in range(NUM_SHARDS)
        for index in range(PER_SHARD)
    ]
    return Counter(word for text in texts for word in set(text)), sum(bool(text) for text in texts)


def by_word(counts):
    decode = open_clip.get_tokenizer("ViT-B-32").decode
    return Counter(
        {decode([id]).strip(): count for id, count in enumerate(counts.tolist()) if count}
    )


@cases("flags, kind", table("shards_and_tables: counted captions of shards"))
def test_it_counts_the_captions_that_hold_each_token(flags, kind, pattern, tmp_path):
    out = tmp_path / "df.safetensors"
    printed = execute(f"frequencies {pattern} --tokenizer-of ViT-B-32 {flags} --out {out}")
    found = read_frequencies(out)
    words, num_captions = expected(kind)
    assert by_word(found.document_frequency) == words
    assert found.document_frequency.dtype == torch.int64
    assert found.num_captions == num_captions
    assert printed.startswith(
        f"{out}: {num_captions:,} captions of 4 shards, SimpleTokenizer lower"
    )


def test_missing_long_captions_are_counted_and_an_absent_key_is_refused(
    pattern, tmp_path, monkeypatch
):
    # after which training stops
    monkeypatch.setattr("openclip_superclip.data.captions.NUM_WITHOUT", 1)
    flags = f"{pattern} --tokenizer-of ViT-B-32 --captions long --workers 2 --long-caption"
    printed = execute(f"frequencies {flags} long.txt --out {tmp_path}/df")
    assert "without a long caption: 4 (--missing-long use-short)" in printed
    error = failure(f"frequencies {flags} other.txt --out {tmp_path}/x").splitlines()[-1]
    assert "error: --long-caption: no text at 'other.txt' in 100 samples" in error
    assert [path.name for path in tmp_path.iterdir()] == ["df"]


def test_a_table_is_counted_as_its_captions_are_in_shards(tmp_path):
    table, out = tmp_path / "pairs.csv", tmp_path / "df"
    rows = [captions(shard, index) for shard in range(NUM_SHARDS) for index in range(PER_SHARD)]
    with open(table, "w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([["file", "words", "more"], *(["0.png", *row] for row in rows)])
        writer.writerow(["last.png", "moon", ""])
    command = (
        f"frequencies {table} --tokenizer-of ViT-B-32 --csv-separator ';' --csv-img-key file "
        f"--csv-caption-key words --out {out} --overwrite"
    )
    printed = execute(command)
    found = read_frequencies(out)
    assert by_word(found.document_frequency) == expected(0)[0] + Counter(["moon"])
    assert found.num_captions == expected(0)[1] + 1
    assert f"{found.num_captions:,} captions of {table}" in printed
    printed = execute(f"{command} --captions long --long-caption more")
    found = read_frequencies(out)
    assert by_word(found.document_frequency) == expected(1)[0] + Counter(["moon"])
    assert "without a long caption: 5 (--missing-long use-short)" in printed


@parametrize("change", [lambda counts: counts + 10**6, torch.Tensor.float])
def test_a_file_of_impossible_counts_is_refused_in_one_line(change, pattern, tmp_path):
    execute(f"frequencies {pattern} --tokenizer-of ViT-B-32 --out {tmp_path}/df")
    counts = read_frequencies(tmp_path / "df")
    odd = tmp_path / "odd"
    replace(counts, document_frequency=change(counts.document_frequency)).write(odd)
    with input_error("odd is not a file of token frequencies .*its counts are not integers from 0"):
        read_frequencies(odd)
    save_file({"other": torch.ones(1)}, odd)
    with input_error("File does not contain tensor document_frequency"):
        read_frequencies(odd)


# The weights


def test_the_weights_are_equation_4_of_the_paper_and_never_below_0():
    weights = idf(torch.tensor([0, 1, 9, 10]), 10).tolist()
    assert weights == pytest.approx([math.log(10), math.log(10 / 2), 0, 0])


# Bad input


@cases("flags, named", refusals("frequencies"))
def test_impossible_flags_are_refused_in_one_line(flags, named, pattern, tmp_path, refused):
    (tmp_path / "a.csv").touch()
    command = f"frequencies --tokenizer-of ViT-B-32 --out df {flags.format(shards=pattern)}"
    assert named in refused(tmp_path, command)


def test_a_shard_through_a_pipe_is_counted(folder, tmp_path):
    execute(f"frequencies 'pipe:cat {folder}/0.tar' --tokenizer-of ViT-B-32 --out {tmp_path}/piped")
    assert read_frequencies(tmp_path / "piped").num_captions == PER_SHARD - 1


def without_end_marker(file):
    """The content of a shard up to the end of its last member."""
    with tarfile.open(file) as tar:
        last = tar.getmembers()[-1]
    return file.read_bytes()[: last.offset_data + 512]


UNREADABLE = {
    "missing": (None, "no such file", 0),
    "cut in a member": (
        lambda file: file.read_bytes()[:40_000],
        "broken tar file (",
        PER_SHARD // 2,
    ),
    "cut between members": (
        without_end_marker,
        "broken tar file (there is no valid tar member and no end marker at byte ",
        PER_SHARD,
    ),
    "empty": (lambda file: b"", "broken tar file (", 0),
}


@cases("damaged, reason, num_more", UNREADABLE)
def test_an_unreadable_shard_is_an_error_or_named_if_it_is_one_of_many(
    damaged, reason, num_more, folder, tmp_path, monkeypatch
):
    shutil.copy(folder / "0.tar", tmp_path / "0.tar")
    if damaged is not None:
        (tmp_path / "1.tar").write_bytes(damaged(folder / "1.tar"))
    count = f"frequencies {tmp_path}/{{0..1}}.tar --tokenizer-of ViT-B-32 --out {tmp_path}/df"
    named = f"1 of 2 shards cannot be read to their end: {tmp_path}/1.tar ({reason}"
    (error,) = [line for line in failure(count).splitlines() if "error: " in line]
    assert f"error: DATA: {named}" in error
    assert not (tmp_path / "df").exists()
    monkeypatch.setattr("openclip_superclip.data.frequencies.MAX_UNREADABLE", 0.5)
    printed = execute(count)
    assert named in printed and "captions of 1 of 2 shards, " in printed
    num_captions = read_frequencies(tmp_path / "df").num_captions
    assert 0 <= num_captions - (PER_SHARD - 1) <= num_more


def test_a_tokenizer_is_its_contents_and_not_its_path(pattern, tmp_path):
    def model(name, clean="whitespace", known=WORDS):
        write_tokenizer(tmp_path / name, [*LIST_OF_WORDS[:4], *known])
        text = {"hf_tokenizer_name": str(tmp_path / name), "tokenizer_kwargs": {"clean": clean}}
        return write_model(tmp_path / name, text={"vocab_size": 64, "context_length": 8, **text})

    execute(f"frequencies {pattern} --tokenizer-of {model('here')} --out {tmp_path}/df")
    read_frequencies(tmp_path / "df").check(open_clip.get_tokenizer(model("there")), "df")
    for other in (model("clean", "canonicalize"), model("order", known=WORDS[::-1])):
        with input_error(r"df counts the tokens of HFTokenizer whitespace"):
            read_frequencies(tmp_path / "df").check(open_clip.get_tokenizer(other), "df")


@cases("counted_with, trained_with, error", table("shards_and_tables: counted captions"))
def test_a_file_that_counts_other_captions_than_the_class_loss_reads_is_refused(
    counted_with, trained_with, error, pattern, small_model, parse_args, refusal, tmp_path
):
    file = tmp_path / "df.safetensors"
    execute(f"frequencies {pattern} --tokenizer-of {small_model} {counted_with} --out {file}")
    train = (
        f"--model {small_model} --train-data {pattern} --dataset-type webdataset --superclip "
        f"--train-num-samples 16 --batch-size 4 --workers 0 --superclip-idf {file}"
    )
    names = ("captions", "long-caption", "long-context", "missing-long")
    flags = [f"--superclip-{name}" for name in names]
    for pair in zip(flags, shlex.split(trained_with), strict=False):
        train += f" {shlex.join(pair)}"
    if not error:
        assert parse_args(train).superclip_idf == str(file)
        return
    message = refusal(train)
    assert message.startswith(f"error: --superclip-idf: {file} counts '")
    assert error in message
    again = message.partition("count these captions with superclip frequencies ")[2]
    execute(f"frequencies {again.removesuffix('FILE')} {file} --overwrite")
    assert parse_args(train).superclip_idf == str(file)


def test_files_without_a_number_of_tokens_are_accepted_with_any(
    pattern, small_model, parse_args, refusal, tmp_path
):
    execute(f"frequencies {pattern} --tokenizer-of {small_model} --context 10 --out {tmp_path}/new")
    counts = read_frequencies(tmp_path / "new")
    counts.write(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "new").read_bytes()
    about = {name: getattr(counts, name) for name in ("tokenizer", "vocabulary", "captions")}
    save_file(load_file(tmp_path / "new"), tmp_path / "old", about)
    flags = (
        f"--model {small_model} --train-data {pattern} --dataset-type webdataset --superclip "
        f"--train-num-samples 16 --batch-size 4 --workers 0 --superclip-idf {tmp_path}/old"
    )
    assert parse_args(flags).superclip_captions == "short"
    of_version_0_2 = about | {"captions": "short, 10 tokens"}
    save_file(load_file(tmp_path / "new"), tmp_path / "old", of_version_0_2)
    assert "counts '10 tokens', but the class loss reads '20 tokens'" in refusal(flags)
