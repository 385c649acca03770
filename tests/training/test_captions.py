"""Long captions: which words reach which loss, through OpenCLIP's own
training on WebDataset and tables."""

import functools
import json
import re
import types

import open_clip
import pytest
from support import cases, input_error, parametrize, table
from support.data import IMAGE, write_tar
from support.models import MODELS, write_model, write_weights
from support.training_runs import completed, in_one_order, load, stock_train, superclip_train

from openclip_superclip.data.caption_text import long_caption
from openclip_superclip.data.captions import CaptionTokens
from openclip_superclip.flags import Config
from openclip_superclip.method.model import SuperCoCa, _WithClassHead

SHORT = "cat dog red blue tree house car ship".split()
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


def short(index):
    return SHORT[index % 8]


def long(index):
    return LONG[index % 8]


def write_table(folder, head, cells):
    """Writes a table of so many rows, each with a copy of an image; returns
    the flags to train on it."""
    rows = [f"filepath,{head}"]
    for number, cell in enumerate(cells):
        (folder / f"{number}.png").write_bytes(IMAGE)
        rows.append(f"{folder}/{number}.png,{cell}")
    (folder / "train.csv").write_text("\n".join(rows))
    return f"--dataset-type csv --csv-separator , --train-data {folder}/train.csv"


def write_data(folder, long=long):
    """Writes a table and shards of 32 samples with a short and a long
    caption; returns the flags to train on each."""
    for shard in range(2):
        samples = [
            {"__key__": f"{n:03}", "png": IMAGE, "txt": short(n), "long.txt": long(n) or " "}
            for n in range(shard, NUM_SAMPLES, 2)
        ]
        write_tar(folder / f"{shard}.tar", samples)
    shards = f"--dataset-type webdataset --train-data {folder}/{{0..1}}.tar"
    table = write_table(
        folder, "title,long.txt", [f"{short(index)},{long(index)}" for index in range(NUM_SAMPLES)]
    )
    kinds = {"webdataset": f"{shards} --train-num-samples {NUM_SAMPLES}", "csv": table}
    return {kind: f"{flags} --superclip-long-caption long.txt" for kind, flags in kinds.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def holey(tmp_path_factory):
    """As `data`, but half of the samples have no long caption."""
    return write_data(
        tmp_path_factory.mktemp("holey"), lambda index: long(index) if index % 4 < 2 else ""
    )


def recording_train(flags):
    """`superclip train` that prints, at each training step, which words
    every loss was given."""
    *_, model = re.findall(r"--model (\S+)", flags)
    decode = functools.partial(words, open_clip.get_tokenizer(model))

    def record(name, method, captions):
        def call(self, *args):
            for caption in decode(args[captions]):
                print(json.dumps({name: caption}), flush=True)
            return method(self, *args)

        return call

    for kind in (_WithClassHead, SuperCoCa):
        kind._encode = record("contrastive", kind._encode, 1)
    _WithClassHead._class_losses = record("class", _WithClassHead._class_losses, 1)
    return superclip_train(flags)


def words(tokenizer, tokens):
    """Captions as OpenCLIP's tokenizer reads them back, without start, end
    and padding."""
    special = {0, *tokenizer.all_special_ids}
    return [
        tokenizer.decode([token for token in row if token not in special]).strip()
        for row in tokens.tolist()
    ]


@pytest.fixture(scope="module")
def train(small_model, short_run, tmp_path_factory):
    """Trains and returns the runs of all ranks."""

    def train(flags, cwd=None, world_size=1):
        def in_rank():
            short = f"--model {small_model} --batch-size 8 --workers 0 --superclip"
            return recording_train(f"{short_run} {short} {flags}")

        cwd = cwd or tmp_path_factory.mktemp("run")
        return completed(in_rank, world_size=world_size, cwd=cwd)

    return train


def seen(run, loss):
    """The captions that a loss was given, in order."""
    return re.findall(rf'{{"{loss}": "(.*)"}}', run.output)


def pairs(run):
    return set(zip(seen(run, "contrastive"), seen(run, "class"), strict=True))


both_types = parametrize("kind", ["webdataset", "csv"])


# Which caption reaches which loss


@both_types
def test_two_ranks_share_the_samples_and_dual_gives_each_loss_its_caption(
    kind, data, train, small_model, tmp_path
):
    flags = f"{data[kind]} --superclip-captions dual --workers 1"
    runs = train(flags, world_size=2, cwd=tmp_path)
    assert pairs(runs[0]) | pairs(runs[1]) == set(zip(SHORT, LONG, strict=True))
    assert sum(len(seen(run, "class")) for run in runs) == NUM_SAMPLES
    weights = load(tmp_path / "logs/run")["state_dict"]
    counted = weights["statistics.document_frequency"].nonzero()
    expected = {word for caption in LONG for word in caption.split()}
    assert set(words(open_clip.get_tokenizer(small_model), counted)) == expected
    assert weights["statistics.num_captions"] == NUM_SAMPLES


def test_dual_trains_a_coca_whose_caption_loss_reads_the_short_caption(data, train, tmp_path):
    coca = write_model(tmp_path / "coca", **MODELS["coca"])
    write_weights(coca)
    (run,) = train(f"{data['csv']} --superclip-captions dual --logs none --model {coca}")
    assert pairs(run) == set(zip(SHORT, LONG, strict=True))
    assert min(run.values("Caption_loss")) > 0


# The draw


@both_types
def test_a_resumed_run_draws_as_one_that_never_stopped_and_each_epoch_differs(
    kind, data, train, tmp_path
):
    flags = f"{data[kind]} --superclip-captions mixed:0.5 --epochs 2"
    (run,) = train(f"{flags} --save-frequency 1", cwd=tmp_path)
    whole = seen(run, "class")
    assert whole == seen(run, "contrastive")
    assert set(whole) & set(SHORT) and set(whole) & set(LONG)
    epochs = [sorted(whole[:NUM_SAMPLES]), sorted(whole[NUM_SAMPLES:])]
    assert epochs[0] != epochs[1]
    resume = f"--resume {tmp_path}/logs/run/checkpoints/epoch_1.pt --name resumed"
    (resumed,) = train(f"{flags} {resume}", cwd=tmp_path)
    assert sorted(seen(resumed, "class")) == epochs[1]


def tokens_of(captions, seed=0, rank=0, epoch=0, mask=None, **config):
    """CaptionTokens of WebDataset."""
    return CaptionTokens(
        Config(captions=captions, long_caption="long.txt", **config),
        open_clip.get_tokenizer("ViT-B-32", context_length=8, reduction_mask=mask),
        caption_key="txt",
        sample_key="__key__",
        seed=seed,
        rank=rank,
        epoch=types.SimpleNamespace(get_value=lambda: epoch),
        separate_words=captions == "dual",
    )


def samples(number):
    return [
        {"__key__": f"{index}", "txt": short(index), "long.txt": long(index)}
        for index in range(number)
    ]


@parametrize("probability", [0.0, 0.2])
def test_the_fraction_of_short_captions_is_within_binomial_bounds_and_long_has_none(probability):
    # of both losses
    assert [*tokens_of("long").captions(samples(1)[0])] == ["sun moon", "sun moon"]
    reader = tokens_of(f"mixed:{probability}")
    num_short = sum(reader.captions(sample).words == sample["txt"] for sample in samples(4000))
    assert (
        abs(num_short - 4000 * probability) <= 4 * (4000 * probability * (1 - probability)) ** 0.5
    )


@parametrize(
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


def encoded(member):
    """A member of a sample before it is decoded."""
    return (member if isinstance(member, str) else json.dumps(member)).encode()


@parametrize("as_bytes", [False, True], ids=["text", "bytes"])
@cases("sample, place, found", table("shards_and_tables: long captions"))
def test_the_long_caption_is_found_in_a_member_a_column_or_the_json(sample, place, found, as_bytes):
    if as_bytes:
        sample = {member: encoded(value) for member, value in sample.items()}
    assert long_caption(sample, place) == found
    assert long_caption({"re_caption": float("nan")}, "re_caption") == ""  # an empty cell


# Missing and long


HAVE_LONG = {(short(index), long(index)) for index in range(8) if index % 4 < 2}
USE_SHORT = HAVE_LONG | {(short(index), short(index)) for index in range(8) if index % 4 >= 2}


@parametrize("missing, expected", [("use-short", USE_SHORT), ("skip", HAVE_LONG)])
@both_types
def test_a_sample_without_a_long_caption_uses_the_short_one_or_is_skipped(
    kind, missing, expected, holey, train
):
    flags = f"--superclip-captions dual --superclip-missing-long {missing} --logs none"
    (run,) = train(f"{holey[kind]} {flags}")
    assert pairs(run) == expected
    (counts,) = re.findall(r"of (\d+) samples read, (\d+) had no long caption", run.output)
    num_samples, num_missing = map(int, counts)
    if (kind, missing) == ("csv", "skip"):
        assert len(seen(run, "class")) == num_samples == NUM_SAMPLES // 2
        assert num_missing == 0
        assert "rows left out by a plugin: 16 of 32" in run.output
        return
    assert len(seen(run, "class")) == NUM_SAMPLES
    assert num_samples >= NUM_SAMPLES
    assert num_missing == pytest.approx(num_samples / 2, abs=8)


def test_missing_captions_change_nothing_of_the_contrastive_loss(short_run, small_model, tmp_path):
    cells = ["cat", "", "dog", "NA", "red house", "null", "tree", "None"]
    flags = (
        f"{short_run} {write_table(tmp_path, 'title', cells)} --model {small_model} "
        "--batch-size 4 --workers 0 --logs none"
    )
    (stock,) = completed(in_one_order(stock_train), flags, "--name stock", cwd=tmp_path)
    added = "--name ours --superclip --superclip-weight 0"
    (ours,) = completed(in_one_order(superclip_train), flags, added, cwd=tmp_path)
    assert len(stock.values("Contrastive_loss")) == 2
    assert ours.values("Contrastive_loss") == stock.values("Contrastive_loss")


def test_a_missing_long_caption_ends_the_run_at_once_or_after_a_shards_worth(monkeypatch):
    monkeypatch.setattr("openclip_superclip.data.captions.NUM_WITHOUT", 5)
    reader = tokens_of("dual")
    without = {"__key__": "0", "txt": "cat", "png": b"", "other.txt": "sun"}
    for _ in range(4):
        reader(without)
    with input_error(r"none of the first 5 samples holds 'long.txt'.* holds txt, png, other.txt$"):
        reader(without)
    with input_error(r"^--superclip-missing-long: sample 0"):
        tokens_of("long", missing_long="error")(without)


def test_duals_class_loss_may_read_more_than_the_text_tower():
    decode = functools.partial(words, open_clip.get_tokenizer("ViT-B-32"))
    sample = {"__key__": "0", "txt": "cat " * 20, "long.txt": " ".join(SHORT)}
    for length, num_words in ((0, 6), (9, 7), (30, 8)):
        tokens = tokens_of("dual", long_context=length)(sample)
        assert len(tokens) == 8 + (length or 8)
        assert decode(tokens[None, :8]) == [" ".join(["cat"] * 6)]
        assert decode(tokens[None, 8:]) == [" ".join(SHORT[:num_words])]


@parametrize("mask", ["simple", "random", "shuffle"])
def test_openclips_text_masks_shorten_both_captions(mask):
    sample = {"__key__": "0", "txt": "cat", "long.txt": " ".join(SHORT)}
    tokens = tokens_of("dual", mask=mask)(sample).view(2, 8)
    short, long = words(open_clip.get_tokenizer("ViT-B-32"), tokens)
    assert short == "cat"
    assert set(long.split()) < set(SHORT) and len(long.split()) == 6


KEYS = {"webdataset": "long.txt, png, txt", "csv": "filepath, title, long.txt"}


@cases("kind, keys", KEYS)
def test_a_key_that_no_sample_has_is_refused_with_the_keys_that_exist(
    kind, keys, data, small_model, refusal
):
    flags = f"--model {small_model} --superclip --superclip-captions dual --workers 0"
    message = refusal(flags, data[kind], "--superclip-long-caption re_captoin")
    assert "re_captoin" in message and message.endswith(keys)
