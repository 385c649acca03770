"""Two steps of OpenCLIP's trainer on a simulated accelerator: nothing is
read back, and every gradient arrives.

Each training runs in a process of its own, forked from one that has not
called backward: autograd cannot start the threads of a device in a fork of
one that has.
"""

import multiprocessing
import os
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip_train.train import train_one_epoch
from support import cases, table
from support.models import Batches, as_rank_1, create_model
from support.simulated_device import DEVICE, add_device, move, simulation
from support.training_runs import Run

from openclip_superclip import hooks
from openclip_superclip.data.captions import tokenizer_identity
from openclip_superclip.data.frequencies import Frequencies
from openclip_superclip.trainer import current
from openclip_superclip.trainer.hook_calls import parse_args, plugins_model_class

pytestmark = pytest.mark.skipif(
    current().HAS_TASKS, reason="OpenCLIP 4 trains with a state made by its main"
)


@pytest.fixture(scope="module")
def frequencies(models, tmp_path_factory):
    """A file of token frequencies."""
    file = tmp_path_factory.mktemp("frequencies") / "frequencies.safetensors"
    tokenizer = open_clip.get_tokenizer(models["vit"])
    identity = tokenizer_identity(tokenizer)
    Frequencies(torch.arange(4096), 5000, *identity, "short").write(file)
    return file


class Scaler:
    """torch's GradScaler without its own reading of whether gradients are
    finite."""

    def scale(self, loss):
        return loss * 1024.0

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        pass


def train_twice(flags, change=lambda: None):
    """Trains on the CPU, so that what is done once is done, and then two
    steps on the device."""
    add_device()
    data = (
        "--train-data 0.tar --dataset-type webdataset --train-num-samples 64 --workers 0 "
        "--device cpu --superclip"
    )
    args = as_rank_1(parse_args([*data.split(), *flags.split()], only_options=True))
    with plugins_model_class():
        model, teacher = create_models(args)
    if "resnet" in args.model:
        model.to(memory_format=torch.channels_last)
    loss = hooks.plugin_manager().hook.open_clip_create_loss(args=args, model=model)
    length = 20 if model.text_length is None else 40  # with the other caption's
    data = {"train": Batches(model, 4, args.accum_freq, length)}

    def train():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
        scaler = Scaler() if args.precision == "amp" else None
        train_one_epoch(model, data, loss, 0, optimizer, scaler, lambda step: None, teacher, args)

    train()
    loss = hooks.plugin_manager().hook.open_clip_create_loss(args=args, model=model)
    args.device = DEVICE
    with simulation() as mode:
        for module in filter(None, (model, teacher)):
            move(module)
        batches = data["train"].batches
        batches[:] = 2 * [tuple(map(mode.from_tensor, batch)) for batch in batches]
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


def run_of(flags, *change):
    """The run of a process that trains twice, on the device after a change."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["open_clip_train.main", "openclip_superclip.trainer.hook_calls", "timm", "pytest"]
    )
    output = Path("output.txt").resolve()
    process = context.Process(target=_train, args=(output, flags, *change))
    process.start()
    process.join(300)
    return Run(process.exitcode, output.read_text())


def _train(output, flags, *change):
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(output.parent)
    sys.exit(train_twice(flags, *change))


@cases("model, flags", table("training: on an accelerator"))
def test_a_step_reads_nothing_back_and_every_gradient_arrives(
    model, flags, models, frequencies, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = flags.format(frequencies=frequencies, **models)
    run = run_of(f"--model {models[model]} {flags}")
    assert run.returncode == 0, run.output[-3000:]


def compare_upstream():
    """Makes the class loss compare its upstream gradients on the host."""
    torch._assert_async = lambda is_uniform, message: is_uniform.cpu()


def test_a_comparison_that_waits_for_the_device_fails_here(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_of(f"--model {models['vit']}", compare_upstream)
    assert run.returncode == 1
    assert "copies a tensor to the host" in run.output
