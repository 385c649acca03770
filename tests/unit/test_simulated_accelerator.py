"""Two steps of OpenCLIP's trainer on a simulated accelerator: nothing is read back, and every
gradient arrives.

Each training runs in a process of its own, forked from one that has not called backward: autograd
cannot start the threads of a device in a fork of one that has.
"""

import multiprocessing
import os
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip_train.train import train_one_epoch
from support import parametrize
from support.models import MODELS, create_model, write_model, write_weights
from support.simulated_device import DEVICE, add_device, move, simulation
from support.training_runs import Run

from openclip_superclip import hooks
from openclip_superclip.data.captions import tokenizer_identity
from openclip_superclip.data.frequencies import Frequencies
from openclip_superclip.method import head
from openclip_superclip.method.idf import WordKnowledge, special_token_ids
from openclip_superclip.method.loss import SuperCLIPLoss, class_loss
from openclip_superclip.openclip import current
from openclip_superclip.openclip.hook_calls import parse_args, plugins_model_class

pytestmark = pytest.mark.skipif(
    current().HAS_TASKS, reason="OpenCLIP 4 trains with a state made by its main"
)
BATCH = 4
CONFIGURATIONS = {  # name: the model and flags
    "fp32": ("vit", "--precision fp32"),
    "amp": ("vit", "--precision amp"),
    "pure_bf16": ("vit", "--precision pure_bf16"),
    "accumulation": ("vit", "--accum-freq 2"),
    "warm-up": ("vit", "--superclip-head-warmup 6"),
    "two captions": ("vit", "--superclip-captions dual --superclip-long-caption long.txt"),
    "the word course": ("vit", "--superclip-word-course on"),
    "IDF of a file": ("vit", "--superclip-idf {frequencies}"),
    "both inputs": ("vit", "--superclip-head-input both"),
    "checkpointing": ("vit", "--grad-checkpointing"),
    "patch dropout": ("vit", "--force-patch-dropout 0.5"),
    "channels_last": ("resnet", ""),
    "SigLIP": ("vit", "--siglip"),
    "CoCa, accumulation in amp_bf16": ("coca", "--accum-freq 2 --precision amp_bf16"),
    "timm, pooled input in amp": ("timm-vit", "--superclip-head-input pooled --precision amp"),
    "distillation": ("vit", "--distill-model {teacher} --distill-pretrained {teacher}"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    models = {
        name: write_model(root / name, **MODELS[name])
        for name in ("vit", "resnet", "coca", "timm-vit")
    }
    models["teacher"] = write_model(root / "teacher")
    write_weights(models["teacher"])
    tokenizer = open_clip.get_tokenizer(models["vit"])
    counts = (
        torch.arange(4096),
        5000,
        *tokenizer_identity(tokenizer),
        "short",
        special_token_ids(tokenizer),
    )
    Frequencies(*counts).write(root / "frequencies.safetensors")
    return models | {"frequencies": f"{root}/frequencies.safetensors"}


class Batches:
    """The training data: batches of images and tokens on the CPU, as a data loader gives them."""

    def __init__(self, model, num_batches: int, length: int):
        size = model.visual.image_size
        shape = BATCH, 3, *(size if isinstance(size, tuple) else (size, size))
        images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        self.batches = [(images, torch.randint(1, 4000, (BATCH, length)))] * num_batches
        self.num_batches, self.num_samples = num_batches, BATCH * num_batches
        self.dataloader = self

    def set_epoch(self, epoch):
        pass

    def __iter__(self):
        return iter(self.batches)


class Scaler:
    """torch's GradScaler without its own reading of whether gradients are finite."""

    def scale(self, loss):
        return loss * 1024.0

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        pass


def train_twice(name: str, flags: str, change=lambda: None):
    """Trains on the CPU, so that what is done once is done, and then two steps on the device."""
    add_device()
    data = (
        "--train-data 0.tar --dataset-type webdataset --train-num-samples 64 --workers 0 "
        "--device cpu --superclip"
    )
    args = parse_args(["--model", name, *data.split(), *flags.split()], only_options=True)
    distributed = {
        "rank": 1,
        "local_rank": 1,
        "world_size": 1,
        "distributed": False,
        "horovod": False,
    }
    # rank 0 reads losses to log
    vars(args).update(distributed, distill=args.distill_model is not None, logs="logs")
    with plugins_model_class():
        model, teacher = create_models(args)
    if "resnet" in name:
        model.to(memory_format=torch.channels_last)
    loss = hooks.plugin_manager().hook.open_clip_create_loss(args=args, model=model)
    length = 20 if model.text_length is None else 40  # with the other caption's
    data = {"train": Batches(model, args.accum_freq, length)}

    def train():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
        scaler = Scaler() if args.precision == "amp" else None
        train_one_epoch(model, data, loss, 0, optimizer, scaler, lambda step: None, teacher, args)

    train()
    counted = model.statistics.counted
    loss = hooks.plugin_manager().hook.open_clip_create_loss(args=args, model=model)
    args.device = DEVICE
    with simulation() as mode:
        for module in filter(None, (model, teacher)):
            move(module)
        batches = data["train"].batches
        batches[:] = 2 * [tuple(map(mode.from_tensor, batch)) for batch in batches]
        if model.word_knowledge is not None:
            model.word_knowledge = WordKnowledge(mode.from_tensor(counted))
        model.zero_grad()
        change()
        train()
        for parameter_name, parameter in model.named_parameters():
            gradient = parameter.grad
            assert gradient is not None, f"{parameter_name} got no gradient"
            assert (gradient.device.type, gradient.dtype) == (DEVICE, parameter.dtype), (
                parameter_name
            )
            assert gradient.shape == parameter.shape, parameter_name
    assert model.statistics.document_frequency.device.type == DEVICE
    return 0


def create_models(args):
    bias = {"init_logit_scale": 2.3, "init_logit_bias": -10} if args.siglip else {}
    model = create_model(args, **bias)
    teacher = None
    if args.distill:
        teacher = open_clip.create_model(
            args.distill_model, precision=args.precision, output_dict=True
        )
    return model, teacher


def run_of(models, model: str, flags: str, mistake: str | None = None):
    """The run of a process that trains twice, with one of MISTAKES."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["open_clip_train.main", "openclip_superclip.openclip.hook_calls", "timm", "pytest"]
    )
    output = Path("output.txt").resolve()
    process = context.Process(
        target=_train, args=(models[model], flags.format(**models), mistake, output)
    )
    process.start()
    process.join(300)
    return Run(process.exitcode, output.read_text())


def _train(model: str, flags: str, mistake: str | None, output: Path):
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(output.parent)
    sys.exit(train_twice(model, flags, *([] if mistake is None else [MISTAKES[mistake][0]])))


@parametrize("name", CONFIGURATIONS)
def test_a_step_reads_nothing_back_and_every_gradient_arrives(name, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_of(models, *CONFIGURATIONS[name])
    assert run.returncode == 0, run.output[-3000:]


def add_to_loss(make):
    """Returns a change after which the loss adds `make(class losses)` to them."""

    def change():
        forward = SuperCLIPLoss.forward

        def changed(self, *, class_losses, **outputs):
            return forward(self, class_losses=class_losses + make(class_losses), **outputs)

        SuperCLIPLoss.forward = changed

    return change


def compare_upstream():
    """Makes the head's loss compare its upstream gradients on the host, as for any caller of
    `class_loss`."""
    head.class_loss = lambda *args, uniform: class_loss(*args, uniform=False)


def detach_class_losses():
    forward = SuperCLIPLoss.forward

    def changed(self, *, class_losses, **outputs):
        return forward(self, class_losses=class_losses.detach(), **outputs)

    SuperCLIPLoss.forward = changed


MISTAKES = {  # what is put in on purpose: the change, and what the failure says
    "a tensor on the wrong device": (add_to_loss(lambda losses: torch.ones(len(losses))), "ones"),
    "an item": (add_to_loss(lambda losses: losses.mean().item()), "_local_scalar_dense"),
    "a comparison": (
        add_to_loss(lambda losses: 1.0 if losses.mean() > 0 else 0.0),
        "_local_scalar_dense|is_nonzero",
    ),
    "a copy": (
        add_to_loss(lambda losses: losses.cpu().to(losses.device)),
        "copies a tensor to the host",
    ),
    "a comparison in the backward pass": (compare_upstream, "_local_scalar_dense|is_nonzero"),
    "a gradient that does not arrive": (
        detach_class_losses,
        "AssertionError: class_head.weight got no gradient",
    ),
}


@parametrize("mistake", MISTAKES)
def test_mistakes_that_stall_or_fail_on_a_device_fail_here(mistake, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_of(models, "vit", "", mistake)
    assert run.returncode == 1
    _, message = MISTAKES[mistake]
    assert any(part in run.output for part in message.split("|")), run.output[-3000:]
