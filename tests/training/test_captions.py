"""Long captions: which words reach which loss, through OpenCLIP's own training on WebDataset and
tables."""

import functools
import json
import re
import types
from pathlib import Path

import open_clip
import pytest
import torch
import webdataset
from support.data import IMAGE
from support.training_runs import completed, in_one_order, load, stock_train, superclip_train

from openclip_superclip.data.captions import CaptionTokens, long_caption
from openclip_superclip.errors import InputError
from openclip_superclip.flags import Config
from openclip_superclip.method.model import _WithClassHead

SHORT = ["cat", "dog", "red", "blue", "tree", "house", "car", "ship"]
LONG = [
    "sun moon",
    "fish bird",
    "sky",
    "stone road",
    "book",
    "green light",
    "door",
    "paper glass ring",
]
NUM_SAMPLES = 32


def short(index: int) -> str:
    return SHORT[index % 8]


def long(index: int) -> str:
    return LONG[index % 8]


def write_table(folder: Path, head: str, cells: list[str]) -> list[str]:
    """Writes a table of so many rows, each with the same image; returns the flags to train on
    it."""
    (folder / "image.png").write_bytes(IMAGE)
    (folder / "train.csv").write_text(
        "\n".join([f"filepath,{head}", *(f"{folder}/image.png,{cell}" for cell in cells)])
    )
    return [
        "--dataset-type",
        "csv",
        "--csv-separator",
        ",",
        "--train-data",
        str(folder / "train.csv"),
    ]


def write_data(folder: Path, long=long) -> dict[str, list[str]]:
    """Writes a table and shards of 32 samples with a short and a long caption; returns the flags
    to train on each."""
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for index in range(shard, NUM_SAMPLES, 2):
                texts = {"txt": short(index), "long.txt": long(index) or " "}
                tar.write({"__key__": f"{index:03d}", "png": IMAGE, **texts})
    shards = ["--train-data", f"{folder}/{{0..1}}.tar", "--train-num-samples", str(NUM_SAMPLES)]
    table = write_table(
        folder, "title,long.txt", [f"{short(index)},{long(index)}" for index in range(NUM_SAMPLES)]
    )
    kinds = {"webdataset": ["--dataset-type", "webdataset", *shards], "csv": table}
    return {kind: [*flags, "--superclip-long-caption", "long.txt"] for kind, flags in kinds.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, list[str]]:
    return write_data(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def holey(tmp_path_factory) -> dict[str, list[str]]:
    """As `data`, but half of the samples have no long caption."""
    return write_data(
        tmp_path_factory.mktemp("holey"), lambda index: long(index) if index % 4 < 2 else ""
    )


def recording_train(*argv) -> int:
    """`superclip train` that prints, at each training step, which words every loss was given."""
    decode = functools.partial(
        words, open_clip.get_tokenizer(argv[len(argv) - argv[::-1].index("--model")])
    )
    encode, class_losses = _WithClassHead._encode, _WithClassHead._class_losses

    def record(name, method, captions):
        def call(self, *args):
            for caption in decode(args[captions]):
                print(json.dumps({name: caption}), flush=True)
            return method(self, *args)

        return call

    _WithClassHead._encode = record("contrastive", encode, 1)
    _WithClassHead._class_losses = record("class", class_losses, 1)
    return superclip_train(*argv)


def words(tokenizer, tokens: torch.Tensor) -> list[str]:
    """Captions as OpenCLIP's tokenizer reads them back, without start, end and padding."""
    special = {0, *tokenizer.all_special_ids}
    return [
        tokenizer.decode([token for token in row if token not in special]).strip()
        for row in tokens.tolist()
    ]


@pytest.fixture(scope="module")
def train(small_model, train_flags, tmp_path_factory):
    """Trains and returns the runs of all ranks."""

    def train(*flags, cwd=None, world_size=1):
        argv = [
            *train_flags,
            "--model",
            small_model,
            "--batch-size",
            "8",
            "--workers",
            "0",
            "--superclip",
            *flags,
        ]
        return completed(
            recording_train, *argv, world_size=world_size, cwd=cwd or tmp_path_factory.mktemp("run")
        )

    return train


def seen(run, loss: str) -> list[str]:
    """The captions that a loss was given, in order."""
    return re.findall(rf'{{"{loss}": "(.*)"}}', run.output)


def pairs(run) -> set[tuple[str, str]]:
    return set(zip(seen(run, "contrastive"), seen(run, "class"), strict=True))


both_types = pytest.mark.parametrize("kind", ["webdataset", "csv"])


# The four modes


def test_dual_gives_each_loss_its_caption_and_counts_the_long_words(
    data, train, small_model, tmp_path
):
    flags = ["--superclip-captions", "dual", "--workers", "1"]
    runs = train(*data["webdataset"], *flags, world_size=2, cwd=tmp_path)
    assert pairs(runs[0]) | pairs(runs[1]) == set(zip(SHORT, LONG, strict=True))
    assert sum(len(seen(run, "class")) for run in runs) == NUM_SAMPLES
    weights = load(tmp_path / "logs/run")["state_dict"]
    counted = weights["statistics.document_frequency"].nonzero()
    expected = {word for caption in LONG for word in caption.split()}
    assert set(words(open_clip.get_tokenizer(small_model), counted)) == expected
    assert weights["statistics.num_captions"] == NUM_SAMPLES


# The draw


@both_types
def test_a_resumed_run_draws_as_one_that_never_stopped_and_each_epoch_differs(
    kind, data, train, tmp_path
):
    flags = [*data[kind], "--superclip-captions", "mixed:0.5"]
    (run,) = train(*flags, "--epochs", "2", "--save-frequency", "1", cwd=tmp_path)
    whole = seen(run, "class")
    assert whole == seen(run, "contrastive")
    assert set(whole) & set(SHORT) and set(whole) & set(LONG)
    epochs = [sorted(whole[:NUM_SAMPLES]), sorted(whole[NUM_SAMPLES:])]
    assert epochs[0] != epochs[1]
    resume = ["--resume", str(tmp_path / "logs/run/checkpoints/epoch_1.pt"), "--name", "resumed"]
    (resumed,) = train(*flags, "--epochs", "2", *resume, cwd=tmp_path)
    assert sorted(seen(resumed, "class")) == epochs[1]


def tokens_of(captions: str, seed=0, rank=0, epoch=0, **config) -> CaptionTokens:
    """CaptionTokens of WebDataset."""
    return CaptionTokens(
        Config(captions=captions, long_caption="long.txt", **config),
        open_clip.get_tokenizer("ViT-B-32", context_length=8),
        caption_key="txt",
        sample_key="__key__",
        seed=seed,
        rank=rank,
        epoch=types.SimpleNamespace(get_value=lambda: epoch),
    )


def samples(number: int) -> list[dict]:
    return [
        {"__key__": f"{index}", "txt": short(index), "long.txt": long(index)}
        for index in range(number)
    ]


@pytest.mark.parametrize("probability", [0.0, 0.2])
def test_the_fraction_of_short_captions_is_within_binomial_bounds_and_long_has_none(probability):
    # of both losses
    assert [*tokens_of("long").captions(samples(1)[0])] == ["sun moon", "sun moon"]
    reader = tokens_of(f"mixed:{probability}")
    num_short = sum(reader.captions(sample).words == sample["txt"] for sample in samples(4000))
    assert (
        abs(num_short - 4000 * probability) <= 4 * (4000 * probability * (1 - probability)) ** 0.5
    )


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"rank": 1}, {"epoch": 1}, {}], ids=["seed", "rank", "epoch", "worker"]
)
def test_seed_rank_epoch_and_worker_each_draw_independently(other, monkeypatch):
    reader, other_reader = tokens_of("mixed:0.5"), tokens_of("mixed:0.5", **other)
    first = [reader.captions(sample).words == sample["txt"] for sample in samples(2000)]
    if not other:
        monkeypatch.setattr(
            "openclip_superclip.data.captions.get_worker_info", lambda: types.SimpleNamespace(id=1)
        )
    second = [other_reader.captions(sample).words == sample["txt"] for sample in samples(2000)]
    agree = sum(a == b for a, b in zip(first, second, strict=True))
    assert abs(agree - 1000) < 4 * 2000**0.5 / 2


# Where the long caption is


@pytest.mark.parametrize(
    ("sample", "place", "found"),
    [
        ({"long.txt": "a sun"}, "long.txt", "a sun"),
        ({"long.txt": b"a sun \xc3\xa9"}, ".LONG.txt", "a sun é"),
        ({"json": {"re_caption": " a sun\n"}}, "json:re_caption", "a sun"),
        ({"json": b'{"a": {"b": "a sun"}}'}, "json:a.b", "a sun"),
        ({"json": {"a": {"b": "a sun"}}}, "json:a.c", ""),
        ({"txt": "cat"}, "long.txt", ""),
        ({"re_caption": float("nan")}, "re_caption", ""),
    ],
)
def test_the_long_caption_is_found_in_a_member_a_column_or_the_json(sample, place, found):
    assert long_caption(sample, place) == found


# Missing and long


HAVE_LONG = {(short(index), long(index)) for index in range(8) if index % 4 < 2}
USE_SHORT = HAVE_LONG | {(short(index), short(index)) for index in range(8) if index % 4 >= 2}


@pytest.mark.parametrize(("missing", "expected"), [("use-short", USE_SHORT), ("skip", HAVE_LONG)])
@both_types
def test_a_sample_without_a_long_caption_uses_the_short_one_or_is_skipped(
    kind, missing, expected, holey, train
):
    flags = ["--superclip-captions", "dual", "--superclip-missing-long", missing, "--logs", "none"]
    (run,) = train(*holey[kind], *flags)
    assert pairs(run) == expected
    (line,) = [line for line in run.output.splitlines() if "samples read" in line]
    num_samples, num_missing = map(
        int, re.search(r"of (\d+) samples read, (\d+) had no long caption", line).groups()
    )
    if (kind, missing) == ("csv", "skip"):
        assert (len(seen(run, "class")), num_samples, num_missing) == (
            NUM_SAMPLES // 2,
            NUM_SAMPLES // 2,
            0,
        )
        assert "16 of 32 rows are left out" in run.output
        return
    assert len(seen(run, "class")) == NUM_SAMPLES
    assert num_samples >= NUM_SAMPLES
    assert num_missing == pytest.approx(num_samples / 2, abs=8)


def test_missing_captions_change_nothing_of_the_contrastive_loss(
    train_flags, small_model, tmp_path
):
    cells = ["cat", "", "dog", "NA", "red house", "null", "tree", "None"]
    flags = write_table(tmp_path, "title", cells)
    argv = [
        *train_flags,
        "--model",
        small_model,
        *flags,
        "--batch-size",
        "4",
        "--workers",
        "0",
        "--logs",
        "none",
    ]
    (stock,) = completed(in_one_order(stock_train), *argv, "--name", "stock", cwd=tmp_path)
    argv += ["--name", "ours", "--superclip", "--superclip-weight", "0"]
    (ours,) = completed(in_one_order(superclip_train), *argv, cwd=tmp_path)
    assert len(stock.values("Contrastive_loss")) == 2
    assert ours.values("Contrastive_loss") == stock.values("Contrastive_loss")


def test_a_missing_long_caption_ends_the_run_at_once_or_after_a_shards_worth(monkeypatch):
    monkeypatch.setattr("openclip_superclip.data.captions.NUM_WITHOUT", 5)
    reader = tokens_of("dual")
    without = {"__key__": "0", "txt": "cat", "png": b"", "other.txt": "sun"}
    for _ in range(4):
        reader(without)
    with pytest.raises(
        InputError,
        match=r"none of the first 5 samples holds 'long.txt'.* holds txt, png, other.txt$",
    ):
        reader(without)
    with pytest.raises(InputError, match=r"^--superclip-missing-long: sample 0"):
        tokens_of("long", missing_long="error")(without)


def test_duals_class_loss_may_read_more_than_the_text_tower():
    decode = functools.partial(words, open_clip.get_tokenizer("ViT-B-32"))
    sample = {"__key__": "0", "txt": "cat " * 20, "long.txt": " ".join(SHORT)}
    for length, num_words in ((0, 6), (9, 7), (30, 8)):
        tokens = tokens_of("dual", long_context=length)(sample)
        assert len(tokens) == 8 + (length or 8)
        assert decode(tokens[None, :8]) == [" ".join(["cat"] * 6)]
        assert decode(tokens[None, 8:]) == [" ".join(SHORT[:num_words])]


def test_a_key_that_no_sample_holds_is_refused_with_those_that_exist(data, small_model, parse_args):
    for kind, found in (("webdataset", "long.txt, png, txt"), ("csv", "filepath, title, long.txt")):
        flags = [
            "--superclip",
            "--superclip-long-caption",
            "re_captoin",
            "--superclip-captions",
            "dual",
        ]
        with pytest.raises(SystemExit, match=f"re_captoin.*{found}$"):
            parse_args(
                [
                    "--model",
                    small_model,
                    *data[kind][:-2],
                    "--workers",
                    "0",
                    "--batch-size",
                    "8",
                    *flags,
                ]
            )
