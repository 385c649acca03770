"""Commands drawn from the table of options, each held against what must be so whatever was drawn.

SUPERCLIP_DRAWS=N draws N commands at random; without it a few are drawn, the same at every run.
"""

import os
import re
import shutil
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, note, settings
from hypothesis import strategies as st
from support.models import MODELS, write_model, write_weights
from support.training_runs import Run, in_one_order, run_ranks, stock_train, superclip_train

NUM_DRAWS = int(os.environ.get("SUPERCLIP_DRAWS", 0))
drawn = settings(
    max_examples=NUM_DRAWS or 3,
    derandomize=not NUM_DRAWS,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # a shrunk command trains as long as the first
    suppress_health_check=list(HealthCheck),
)

TOWERS = [
    "vit", "one-layer", "output-tokens", "avg-pool", "attentional-pool", "norm-after-pool", "custom-block", "resnet",
    "timm-vit", "timm-vit-map", "timm-convnext", "timm-efficientnet", "timm-resnet", "timm-attn-pool", "coca",
]  # fmt: skip
LOSSES = ["", "--siglip", "--local-loss --gather-with-grad", "--gather-with-grad", "--local-loss"]
PRECISIONS = ["fp32", "fp32", "amp_bf16", "amp_bfloat16", "bf16", "pure_bf16"]
MORE = [
    "--grad-checkpointing", "--force-patch-dropout 0.5", "--grad-clip-norm 1", "--force-custom-text",
    "--ddp-static-graph", "--use-bn-sync", "--opt timm/adamw --eps 1e-8", "--workers 1",
    "--lock-text --lock-text-freeze-layer-norm",
    "--lock-image --lock-image-unlocked-groups 2", "--lock-image", "--torchscript", "--trace", "--skip-scheduler",
    "--lr-scheduler const", "--force-image-size 64", "--val-data {csv}", "--save-most-recent",
    "--distill-model {teacher} --distill-pretrained {teacher}",
]  # fmt: skip
OURS = [
    "--superclip-idf off", "--superclip-special-tokens", "--superclip-weight 2", "--superclip-head-warmup 40",
]  # fmt: skip
CAPTIONS = ["short", "short", "long", "mixed:0.5", "dual"]

CSV = ""
WEBDATASET = "--dataset-type webdataset --train-data {shards} --train-num-samples 64"
SLICES = "--dataset-type webdataset --train-data {shards} --train-num-samples 32 --superclip-slices 2"


@st.composite
def commands(draw, data=(CSV, WEBDATASET)) -> dict:
    """A command: its tower, its number of ranks, stock flags and ours."""
    table = draw(st.sampled_from(data))
    more = draw(st.lists(st.sampled_from(MORE), max_size=3, unique_by=lambda flags: flags.split()[0]))
    stock = [
        table, draw(st.sampled_from(LOSSES)), f"--precision {draw(st.sampled_from(PRECISIONS))}",
        f"--accum-freq {draw(st.sampled_from([1, 1, 2]))}", *more,
    ]  # fmt: skip
    captions = draw(st.sampled_from(CAPTIONS))
    ours = draw(st.lists(st.sampled_from(OURS), max_size=2, unique=True))
    if captions != "short":
        place = "filepath" if table == CSV else "txt"
        ours += [f"--superclip-captions {captions} --superclip-long-caption {place}"]
    return {
        "tower": draw(st.sampled_from(TOWERS)),
        "ranks": draw(st.sampled_from([1, 1, 2])),
        "stock": " ".join(filter(None, stock)),
        "ours": " ".join(["--superclip", *ours]),
    }


class Trainer:
    """Trains drawn commands, each in a folder of its own."""

    def __init__(self, folder: Path, train_flags: list[str], places: dict[str, str]):
        self.folder, self.train_flags, self.places = folder, train_flags, places
        self.models: dict[str, str] = {}
        self.numbers = count()

    def model(self, tower: str) -> str:
        if tower not in self.models:
            self.models[tower] = write_model(self.folder / "models" / tower, **MODELS[tower])
            if tower == "coca":  # whose text projection stock OpenCLIP leaves as the memory was
                write_weights(self.models[tower])
        return self.models[tower]

    def train(self, function, command: dict, *flags: str, first: tuple = (), resumed: Path | None = None) -> tuple:
        """Returns the runs of the ranks and the folder they ran in, by default a new one."""
        ranks, folder = command["ranks"], resumed or self.folder / f"{next(self.numbers)}"
        folder.mkdir(exist_ok=True)
        accumulated = int(re.search(r"--accum-freq (\d)", command["stock"])[1])
        argv = [*self.train_flags, "--model", self.model(command["tower"])]
        argv += ["--batch-size", str(16 // ranks // accumulated), *" ".join(flags).format(**self.places).split()]
        note(f"{function.__name__}, {ranks} rank(s): {' '.join(argv)}")
        return run_ranks(function, *first, *argv, world_size=ranks, cwd=folder), folder


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, train_flags, csv_data, shards) -> Trainer:
    folder = tmp_path_factory.mktemp("drawn")
    teacher = write_model(folder / "teacher")
    write_weights(teacher)
    return Trainer(folder, train_flags, {"csv": str(csv_data), "shards": shards, "teacher": teacher})


def refused(runs: list[Run], folder: Path) -> bool:
    """Whether a command was refused, which must be one line and leave nothing behind."""
    if all(run.returncode == 0 for run in runs):
        return False
    assert all(run.returncode not in (0, None) for run in runs), "some ranks trained and some did not"
    for run in runs:
        assert "Traceback" not in run.output, run.output[-3000:]
        assert len([line for line in run.output.splitlines() if "error:" in line]) == 1, run.output[-3000:]
    written = [path for path in folder.rglob("*") if not path.name.startswith("rank")]
    assert not written, f"a refused command wrote {written}"
    return True


def stock_fails(trainer: Trainer, command: dict) -> bool:
    """Whether stock OpenCLIP itself cannot train a command: then it is not ours to train, nor to refuse."""
    stock = command["stock"].replace("--superclip-slices 2", "")
    runs, _ = trainer.train(in_one_order(stock_train_on_cpu_ranks), command, stock)
    return any(run.returncode != 0 for run in runs)


@drawn
@given(command=commands())
def test_with_weight_0_the_contrastive_loss_is_stocks_and_a_refused_command_writes_nothing(command, trainer):
    command = {**command, "ours": re.sub(r"--superclip-(captions|long-caption) \S+", "", command["ours"])}
    stock, _ = trainer.train(in_one_order(stock_train_on_cpu_ranks), command, command["stock"])
    ours, folder = trainer.train(
        in_one_order(superclip_train), command, command["stock"], command["ours"], "--superclip-weight 0"
    )
    if any(run.returncode != 0 for run in stock):
        event("stock OpenCLIP fails")
        return
    if refused(ours, folder):
        event("refused")
        return
    event("trained")
    name = "Loss" if not stock[0].values("Contrastive_loss") else "Contrastive_loss"
    assert stock[0].values(name)
    assert ours[0].values(name) == pytest.approx(stock[0].values(name), rel=2e-5)


@drawn
@given(command=commands(data=(SLICES,)), epoch=st.integers(1, 3))
def test_a_resumed_run_is_an_unbroken_one(command, epoch, trainer):
    flags = [command["stock"], command["ours"], "--epochs 4"]
    unbroken, folder = trainer.train(superclip_train, command, *flags)
    if any(run.returncode != 0 for run in unbroken):
        event("stock OpenCLIP fails" if stock_fails(trainer, command) else f"refused: {refused(unbroken, folder)}")
        return
    if "--save-most-recent" in command["stock"]:
        event("the newest checkpoint alone")
        return
    event("resumed")
    resumed_folder = shutil.copytree(folder, trainer.folder / f"{next(trainer.numbers)}")
    for later in range(epoch + 1, 5):
        (resumed_folder / f"logs/run/checkpoints/epoch_{later}.pt").unlink()
    resumed, _ = trainer.train(superclip_train, command, *flags, "--resume latest", resumed=resumed_folder)
    assert [run.returncode for run in resumed] == [0] * command["ranks"], resumed[0].output[-3000:]
    ends = [torch.load(f / "logs/run/checkpoints/epoch_4.pt", weights_only=False) for f in (folder, resumed_folder)]
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(ends[1][part], ends[0][part], rtol=0, atol=0, equal_nan=True)


def stock_train_on_cpu_ranks(*argv: str) -> int | None:
    """`python -m open_clip_train.main`, whose DDP takes no device on a CPU (it would raise there)."""
    import open_clip_train.main

    ddp = torch.nn.parallel.DistributedDataParallel

    def on_cpu(model, device_ids=None, **options):
        return ddp(model, **options)

    open_clip_train.main.torch.nn.parallel.DistributedDataParallel = on_cpu
    return stock_train(*argv)
