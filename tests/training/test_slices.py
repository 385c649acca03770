"""Slices: every sample of a pass is read once, and a run that was killed
ends where one that never stopped ends."""

import collections
import functools
import itertools
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip_train.data
import pytest
import torch
from open_clip import get_tokenizer
from PIL import Image
from support import cases, parametrize, read_json, write_json
from support.data import write_tar
from support.models import write_model
from support.training_runs import (
    assert_equal_runs,
    completed,
    run_ranks,
    shell_words,
    superclip_train,
    traced_train,
)
from torchvision import transforms

from openclip_superclip.checkpoints.resume_record import (
    changes,
    read_record,
    record_of,
    write_record,
)
from openclip_superclip.data.shard_order import slice_of
from openclip_superclip.data.slices import Split
from openclip_superclip.trainer import hook_calls

SHARD_SIZES = [4] * 12
SLICES = 3


def write_shards(folder, sizes):
    """Writes shards of so many images of noise, whose captions number them,
    and returns --train-data."""
    rng = np.random.default_rng(0)
    captions = iter(caption_names(sizes))
    for shard, size in enumerate(sizes):
        samples = []
        for caption in itertools.islice(captions, size):
            image = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
            samples.append({"__key__": caption.replace(" ", ""), "png": image, "txt": caption})
        write_tar(folder / f"{shard:02}.tar", samples)
    return f"{folder}/{{00..{len(sizes) - 1:02d}}}.tar"


def caption_names(sizes):
    return [f"image {number}" for number in range(sum(sizes))]


@pytest.fixture(scope="module")
def train_data(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SHARD_SIZES)


# Which shards an epoch reads


def test_the_order_of_shards_is_that_of_the_runs_which_earlier_versions_began():
    """A pass sorts the shards by blake2b of seed, pass and shard, as a slow
    loop once confirmed."""
    slices = [slice_of(7, slices=3, seed=7, epoch=epoch) for epoch in range(6)]
    assert slices == [[3, 2, 1], [6, 5], [4, 0], [0, 1, 6], [5, 4], [2, 3]]


# What OpenCLIP's data pipeline reads


def pipeline(*argv):
    """Writes down, for each of four epochs, the captions that OpenCLIP's own data
    loader gives this rank."""
    args = hook_calls.parse_args(shell_words(*argv))
    hook_calls.install(args)
    args.rank, args.world_size = (
        int(os.environ.get("RANK", 0)),
        int(os.environ.get("WORLD_SIZE", 1)),
    )
    crop = transforms.Compose([transforms.RandomResizedCrop(8), transforms.ToTensor()])
    data = open_clip_train.data.get_data(
        args, (crop, crop), epoch=0, tokenizer=lambda caption: [caption]
    )
    given = []
    for epoch in range(4):
        data["train"].set_epoch(epoch)
        given.append([text for _, texts in data["train"].dataloader for text in texts])
    write_json(Path(f"given-{args.rank}.json"), given)
    return 0


def slice_flags(train_data, sizes=SHARD_SIZES, slices=SLICES):
    return (
        f"--train-data {train_data} --dataset-type webdataset --train-num-samples "
        f"{sum(sizes) // slices} --superclip-slices {slices} --batch-size 4"
    )


@parametrize("num_samples, world_size, workers", [(20, 1, 0), (60, 2, 2)])
def test_reads_predicts_what_openclip_leaves_out_and_reads_again(
    num_samples, world_size, workers, tmp_path
):
    sizes = [5, 9, 4, 5, 12, 6, 7, 8, 10, 4, 6, 5, 9]
    folder = tmp_path / "shards"
    folder.mkdir()
    flags = slice_flags(write_shards(folder, sizes), slices=2)
    flags += f" --train-num-samples {num_samples} --workers {workers}"
    completed(pipeline, flags, world_size=world_size, cwd=tmp_path)
    ranks = [read_json(tmp_path / f"given-{rank}.json") for rank in range(world_size)]
    split = Split(
        len(sizes), world_size, workers, slices=2, slice_samples=num_samples, batch_size=4
    )
    predicted = [split.reads(sizes, 0, epoch) for epoch in range(4)]
    assert any(epoch.again for epoch in predicted) or any(
        epoch.held > epoch.once for epoch in predicted
    )
    for epoch, (held, once, again) in enumerate(predicted):
        times = collections.Counter(text for rank in ranks for text in rank[epoch])
        assert times.total() == once + again
        assert once <= len(times) <= held
        assert again or set(times.values()) == {1}
    assert sum(epoch.held for epoch in predicted) == 2 * sum(sizes)


# Training


def trained(folder):
    """How often each epoch trained on which tokens, over all ranks."""
    captions = collections.defaultdict(collections.Counter)
    for file in folder.glob("trained-*.txt"):
        for line in file.read_text().splitlines():
            epoch, texts = json.loads(line)
            captions[epoch].update(map(tuple, texts))
    return captions


RESUMED = {
    "FLIP": ("--workers 0 --force-patch-dropout 0.5", 1),
    "SuperFLIP, two ranks": ("--workers 1 --superclip --force-patch-dropout 0.5", 2),
}


@cases("flags, world_size", RESUMED)
def test_a_killed_run_resumes_bit_for_bit(
    flags, world_size, short_run, train_data, tiny_model, tmp_path
):
    epochs = SLICES + 1
    flags = f"{short_run} {slice_flags(train_data)} {flags} --epochs {epochs}"
    flags += " --aug-cfg scale=(0.3,1.0)"
    for folder in (undisturbed := tmp_path / "undisturbed", killed := tmp_path / "killed"):
        folder.mkdir()
    ranks = functools.partial(run_ranks, world_size=world_size)
    completed(traced_train, flags, world_size=world_size, cwd=undisturbed)
    runs = ranks(functools.partial(traced_train, killed_at=(1, 1)), flags, cwd=killed)
    assert [run.returncode for run in runs] == [-signal.SIGKILL] * world_size
    lost = trained(killed)
    for refused in ranks(traced_train, flags, "--resume latest --seed 1", cwd=killed):
        assert refused.returncode == 1
        assert "was started with other settings: --seed was 0 and is 1" in refused.errors()[0]
    completed(traced_train, flags, "--resume latest", world_size=world_size, cwd=killed)
    assert_equal_runs(killed / "logs/run", undisturbed / "logs/run", epochs)
    records = [read_json(folder / "logs/run/began_with.json") for folder in (undisturbed, killed)]
    assert records[0] == records[1]
    assert (records[0]["options"]["lr"], records[0]["changes"]) == (1e-3, [])
    seen = trained(killed)
    # trained, but not kept
    times = sum((seen[epoch] for epoch in range(SLICES)), collections.Counter()) - lost[1]
    assert times == collections.Counter(
        map(tuple, get_tokenizer(tiny_model)(caption_names(SHARD_SIZES)).tolist())
    )
    assert lost[1]


# What is refused


@pytest.fixture
def began(train_data, tmp_path):
    """The checkpoint of a run of two slices, and its record."""
    checkpoint = tmp_path / "logs/run/checkpoints/epoch_2.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"epoch": 2, "state_dict": {"weight": torch.zeros(1)}}, checkpoint)
    record = {"seed": 0, "superclip_slices": 3, "train_data": train_data, "workers": 1}
    (tmp_path / "logs/run/params.txt").write_text(
        "".join(f"{name}: {value}\n" for name, value in record.items())
    )
    return checkpoint


OTHERWISE = {  # what is given otherwise: the message
    "--superclip-slices 4 --train-num-samples 12": "--superclip-slices was 3 and is 4",
    "--train-data {folder}/{{00..05}}.tar::{folder}/{{07..11}}.tar::{folder}/06.tar": (
        "--train-data was 12 shards ("
    ),
    "--lr 1e-2": "--lr was 0.001 and is 0.01",
    "--model {other}": "--model was sha256:",
    "--batch-size 8": "the global batch was 4 and is 8",
    "--grad-clip-norm 1": "--grad-clip-norm was not given and is 1.0",
}


def differences(before, now):
    """The lines on what has changed, which are refused."""
    return changes(before, now).refused


@cases("flags, reason", OTHERWISE)
def test_other_settings_are_refused(
    flags, reason, began, train_data, short_run, parse_args, refusal, tmp_path
):
    whole = f"{short_run} {slice_flags(train_data)} --logs {tmp_path}/logs"
    resumed = f"{whole} --resume latest"
    folder, args = began.parent.parent, vars(parse_args(whole))
    write_record(folder, record_of(args, world_size=1), str(began))
    # from which no weight follows
    parse_args(resumed, "--workers 2 --log-every-n-steps 7")
    parse_args(resumed, "--batch-size 2 --accum-freq 2")
    other = write_model(tmp_path / "other", text={"width": 12})
    resumed += " " + flags.format(other=other, folder=Path(train_data).parent)
    message = refusal(resumed)
    assert message.startswith(f"error: {folder} was started with other settings: ")
    assert reason in message
    assert message.endswith("or pass --superclip-accept-changes, which records the change")
    accepted = record_of(vars(parse_args(resumed, "--superclip-accept-changes")), world_size=1)
    assert write_record(folder, accepted, str(began))
    noted = read_json(folder / "began_with.json")["changes"][-1]
    assert reason in "; ".join(noted["changed"])
    parse_args(resumed)  # which is what it goes on with now


def test_a_refused_resume_renames_no_checkpoint(
    began, train_data, short_run, parse_args, refusal, tmp_path
):
    cut = began.with_name("epoch_3.pt")
    cut.write_bytes(began.read_bytes()[:200])
    resumed = f"{short_run} {slice_flags(train_data)} --logs {tmp_path}/logs --resume latest"
    for flags in ("--seed 1", "--train-data nix.tar", "--superclip-weight 1"):
        assert refusal(resumed, flags) and cut.exists()
    assert parse_args(resumed).resume == "latest"
    assert [path.name for path in sorted(cut.parent.iterdir())] == [
        "epoch_2.pt",
        "epoch_3.pt.damaged",
    ]


def test_contents_and_versions_are_compared_and_not_paths(
    train_data, short_run, tiny_model, parse_args, tmp_path
):
    args = vars(parse_args(short_run, slice_flags(train_data)))
    for name in ("idf", "same"):
        (tmp_path / name).write_text("counts")
    folder = tiny_model.removeprefix("local-dir:")
    moved = shutil.copytree(folder, tmp_path / "moved")
    config = moved / "open_clip_config.json"
    config.write_text(config.read_text().replace(folder, str(moved)))  # the path of its vocabulary
    options = {"superclip": True, "superclip_idf": f"{tmp_path}/idf", "model": tiny_model}
    before = record_of(args | options, 1)
    elsewhere = options | {"superclip_idf": f"{tmp_path}/same", "model": f"local-dir:{moved}"}
    assert differences(before, record_of(args | elsewhere, 1)) == []
    (tmp_path / "idf").write_text("other counts")
    (line,) = differences(before, record_of(args | options, 1))
    assert re.fullmatch(r"--superclip-idf was \S+ and is sha256:\w{8}", line)
    copies = shutil.copytree(Path(train_data).parent, tmp_path / "copies")
    copied = {**args, "train_data": f"{copies}/{{00..11}}.tar"}
    before = replace(record_of(args, 1), versions={"torch": "1.0"})
    assert differences(before, replace(record_of(copied, 1), versions={"torch": "1.0"})) == []
    os.truncate(copies / "07.tar", 512)  # another data set with the same names
    shard, package = differences(before, replace(record_of(copied, 1), versions={"torch": "2.0"}))
    assert re.fullmatch(r"--train-data: 07.tar had [\d,]+ bytes and has 512", shard)
    assert package == "torch was 1.0 and is 2.0"


def test_a_record_of_another_release_is_continued(began, train_data, parse_args):
    folder = began.parent.parent
    now = record_of(vars(parse_args(slice_flags(train_data), "--superclip --batch-size 4")), 1)
    options = now.options | {"superclip_placebo": "off"}
    for name in ("world_size", "batch_size", "superclip_head_input"):
        del options[name]
    of_0_2 = {
        "options": options,
        "global_batch_size": options.pop("global_batch_size"),
        "shards": now.shards | {"samples": {"00.tar": 4}, "contents": {"00.tar": "1f"}},
        "tokenizer": "sha256:1f",
        "versions": now.versions | {"openclip-superclip": "0.2.0"},
    }
    write_json(folder / "run.json", {"began_with": of_0_2})
    found = changes(read_record(folder), now)
    assert found.refused == []
    assert found.allowed[0].startswith("openclip-superclip was 0.2.0 and is ")
    assert found.allowed[1:] == [
        "recorded by only one of the versions, and not compared: --batch-size, "
        "--superclip-placebo, the number of ranks"
    ]
    other = replace(now, options=now.options | {"global_batch_size": 8, "superclip_weight": 2.0})
    assert changes(read_record(folder), other).refused == [
        "the global batch was 4 and is 8",
        "--superclip-weight was 1.0 and is 2.0",
    ]


def test_other_workers_ranks_and_batch_sizes_are_noted_and_not_refused(
    began, train_data, parse_args
):
    flags = f"{slice_flags(train_data)} --batch-size 4 --workers"
    before = record_of(vars(parse_args(flags, "1")), 2)
    now = record_of(vars(parse_args(flags, "3 --batch-size 8")), 1)
    found = changes(before, now)
    assert found.refused == []
    assert found.allowed == [
        "--batch-size was 4 and is 8, which changes the batches",
        "--workers was 1 and is 3, which changes the batches",
        "the number of ranks was 2 and is 1, which changes the batches",
    ]
    folder = began.parent.parent
    write_record(folder, before, str(began))
    assert write_record(folder, now, str(began)) == found.lines
    assert read_json(folder / "began_with.json")["changes"][-1]["changed"] == found.lines
    assert write_record(folder, now, str(began)) == []


def test_slices_that_are_left_out_or_added_when_a_run_is_resumed_are_refused(
    began, train_data, parse_args, refusal
):
    folder, sliced = began.parent.parent, f"{slice_flags(train_data)} --workers 0"
    whole = f"--train-data {train_data} --train-num-samples 48 --resume {began}"
    assert parse_args(whole).resume == str(began)  # no run in slices began there
    write_record(folder, record_of(vars(parse_args(sliced)), world_size=1), str(began))
    message = refusal(whole)
    assert "--superclip-slices was 3 and is not given" in message
    assert "or pass --superclip-slices and --superclip-accept-changes, which" in message
    pairs = folder / "pairs.csv"
    pairs.write_text("filepath\ttitle\nred.png\ta red square\n")
    table = refusal(f"--train-data {pairs} --resume {began}")  # which has no slices
    assert "or pass --accept-changes to superclip run, which" in table
    (folder / "began_with.json").unlink()
    params = folder / "params.txt"
    params.write_text(params.read_text().replace("superclip_slices: 3\n", ""))
    assert "--superclip-slices was not given and is 3" in refusal(sliced, f"--resume {began}")


@parametrize("flag", ["--superclip", "--superclip-slices 1"])
def test_a_pass_that_decodes_less_than_a_batch_ends_the_run(flag, short_run, train_data, tmp_path):
    shutil.copytree(Path(train_data).parent, tmp_path / "shards")
    # the checks need one shard that is whole
    for shard in sorted((tmp_path / "shards").glob("*.tar"))[1:5]:
        write_tar(shard, [{"png": b"no image", "txt": "a cat"}] * 4)
    flags = (
        f"{short_run} --train-data {tmp_path}/shards/{{00..05}}.tar --dataset-type webdataset "
        f"--train-num-samples 16 --batch-size 16 --workers 0 {flag}"
    )
    (run,) = run_ranks(superclip_train, flags, cwd=tmp_path)
    assert run.returncode == 1, run.output[-2000:]
    assert "the shards that a worker reads provide" in run.output
    assert "--batch-size is 16; expected a full batch or more" in run.output
