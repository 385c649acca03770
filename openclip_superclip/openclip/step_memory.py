"""A training step on tensors without values, and its peak memory on a GPU."""

import argparse
import contextlib
import functools
from dataclasses import dataclass

import open_clip
import torch
from open_clip.utils import to_2tuple
from torch import Tensor, nn

from .. import hooks
from ..checkpoints.architecture import read_architecture
from ..flags import config_from
from ..method.allocations import META, Allocations, Precision, as_on
from ..method.model import AccumulatedLosses
from . import autocast
from .hook_calls import plugins_model_class
from .openclip_3 import plugins_loss
from .train import check_command

NUM_TRACED = 2  # micro-batches of an accumulation that are run: from the second on, all are alike


@dataclass(frozen=True)
class Peak:
    """The bytes on a GPU at the peak of a training step."""

    parameters: int  # and buffers
    gradients: int  # and DistributedDataParallel's copy of them
    optimizer: int
    activations: int  # and all other tensors
    head: int  # the class head's part of these four

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


def model_without_values(options: argparse.Namespace) -> nn.Module:
    """Returns the model that OpenCLIP's options train, after the plugins' changes and locked."""
    config = config_from(vars(options))
    architecture = read_architecture(options.model).with_options(vars(options))
    changes = {
        "precision": options.precision,
        "output_dict": True,
        "force_custom_text": options.force_custom_text,
        "force_patch_dropout": options.force_patch_dropout,
    }
    if options.siglip:
        changes["init_logit_bias"] = -10
    if config is not None:
        changes["superclip"] = {
            "head_warmup": config.head_warmup,
            "head_input": config.head_input,
            "word_course": config.word_course == "on",
        }
    with plugins_model_class():
        model = architecture.build(**changes)
    hooks.plugin_manager().hook.open_clip_model_created(args=options, model=model)
    if config is not None and config.captions == "dual":
        model.text_length = model.context_length
    if options.lock_image:
        model.lock_image_tower(options.lock_image_unlocked_groups)
    if options.lock_text:
        model.lock_text_tower(
            options.lock_text_unlocked_layers, options.lock_text_freeze_layer_norm
        )
    if options.grad_checkpointing:
        model.set_grad_checkpointing()
    return model.train()


class Step:
    """The training step of a run on one GPU, on tensors without values."""

    def __init__(self, arguments: list[str], world_size: int):
        self.options = options = check_command(arguments)
        self.device = options.device
        options.rank = 0
        options.world_size = world_size
        options.distill = options.distill_model is not None
        self.config = config_from(vars(options))
        self.model = model_without_values(options)
        self.teacher = None
        if options.distill:
            teacher = read_architecture(options.distill_model)
            self.teacher = teacher.build(precision=options.precision, output_dict=True).eval()
        own = functools.partial(open_clip.create_loss, options)
        self.loss = plugins_loss(options, self.model, own)
        make = autocast(options.precision, self.device)
        is_mixed = isinstance(make, functools.partial)
        self.precision = Precision(make.keywords["dtype"] if is_mixed else None)
        self.allocations = Allocations()
        with self._simulation():
            self._make_optimizer()

    @contextlib.contextmanager
    def _simulation(self):
        """A context in which the step runs as on the run's device, and is recorded."""
        with as_on(self.device, self.precision, self.options.world_size), self.allocations:
            yield

    def _make_optimizer(self) -> None:
        """Makes the optimizer, and a step of it: the first one allocates its state, and the peak of
        any one is `update`."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if self.teacher is not None:
            tensors += [*self.teacher.parameters(), *self.teacher.buffers()]
        for tensor in tensors:
            self.allocations.add(tensor)
        self.weights = {self.allocations.number_of(tensor) for tensor in tensors}
        self.optimizer = _optimizer(self.options, self.model, self.device)
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        self.optimizer.step()
        self.update = self._peak(others="optimizer")
        self.optimizer.zero_grad()

    def peak(self, batch_size: int, accum_freq: int) -> Peak:
        """Returns the peak of a step with a batch of the given size and accumulation."""
        if self.config is not None:
            self.model.accumulated = AccumulatedLosses(accum_freq) if accum_freq > 1 else None
        self.allocations.restart()
        with self._simulation():
            self._train(batch_size, accum_freq)
            peak = self._peak()
            self.optimizer.zero_grad()
        return max(peak, self.update, key=lambda peak: peak.total)

    def _train(self, batch_size: int, accum_freq: int) -> None:
        """Runs the forward and backward passes as OpenCLIP does."""
        images, texts = self._inputs(batch_size)
        if accum_freq == 1:
            self._backward(lambda: self._outputs(images, texts))
            return
        with torch.no_grad(), self.precision.forward():
            for _ in range(NUM_TRACED):
                outputs = self._outputs(images, texts)
        others = self._inputs((accum_freq - 1) * batch_size)  # the other micro-batches, on the GPU
        scales = [name for name in ("logit_scale", "logit_bias") if name in outputs]
        features = {
            name: output.new_empty(len(others[0]), *output.shape[1:])
            for name, output in outputs.items()
            if name not in scales
        }

        def joined() -> dict[str, Tensor]:
            outputs = self._outputs(images, texts)
            return {name: outputs[name] for name in scales} | {
                name: torch.cat([outputs[name], other]) for name, other in features.items()
            }

        for _ in range(NUM_TRACED):
            self._backward(joined)

    def _inputs(self, batch_size: int) -> tuple[Tensor, Tensor]:
        size = to_2tuple(self.model.visual.image_size)
        dtype = open_clip.get_input_dtype(self.options.precision)
        length = self.model.context_length
        if self.config is not None and self.config.captions == "dual":
            length += self.config.long_context or length
        images = torch.empty(batch_size, 3, *size, dtype=dtype, device=META)
        return images, torch.empty(batch_size, length, dtype=torch.int64, device=META)

    def _outputs(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        outputs = self.model(images, texts)
        if "logits" in outputs and "labels" not in outputs:  # which OpenCLIP 4's task adds
            outputs |= {"logits": outputs["logits"][:, :-1], "labels": texts[:, 1:]}
        if self.teacher is not None:
            with torch.no_grad():
                of_teacher = self.teacher(images, texts)
            outputs.update({f"dist_{name}": output for name, output in of_teacher.items()})
        return outputs

    def _backward(self, compute_outputs) -> None:
        with self.precision.forward():
            losses = self.loss(**compute_outputs(), output_dict=True)
        sum(losses.values()).backward()

    def _peak(self, others: str = "activations") -> Peak:
        """Returns the peak since the allocations were restarted; `others` is the kind of tensors
        that do not belong to a parameter."""
        of_head = set(self.allocations.of_head)
        kinds = dict.fromkeys(self.weights, "parameters")
        peak = dict.fromkeys(("parameters", "gradients", "optimizer", "activations", "head"), 0)
        # copies of the gradients, in DistributedDataParallel's buckets
        has_buckets = self.options.world_size > 1 and not getattr(self.options, "horovod", False)
        for name, parameter in self.model.named_parameters():
            numbers = self._kinds_of(parameter)
            kinds |= numbers
            num_bytes = parameter.nbytes if has_buckets and parameter.requires_grad else 0
            peak["gradients"] += num_bytes
            if name.startswith("class_head."):
                of_head |= numbers.keys()
                peak["head"] += num_bytes
        for number, num_bytes in self.allocations.at_peak.items():
            peak[kinds.get(number, others)] += num_bytes
            if number in of_head:
                peak["head"] += num_bytes
        return Peak(**peak)

    def _kinds_of(self, parameter: nn.Parameter) -> dict[int, str]:
        """Returns the kinds of a parameter's tensors by the number of their storage."""
        tensors_of_kind = {
            "parameters": [parameter],
            "gradients": [parameter.grad],
            "optimizer": self.optimizer.state.get(parameter, {}).values(),
        }
        return {
            self.allocations.number_of(tensor): kind
            for kind, tensors in tensors_of_kind.items()
            for tensor in tensors
            if isinstance(tensor, Tensor) and tensor.device.type == META
        }


def _optimizer(options, model: nn.Module, device: str) -> torch.optim.Optimizer:
    """Returns OpenCLIP's optimizer, with torch's default of a device for steps of many tensors."""
    name = options.opt.lower().removeprefix("timm/")
    if name != "adamw":
        from timm.optim import create_optimizer_v2

        return create_optimizer_v2(model, name, lr=options.lr, weight_decay=options.wd)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=options.lr, foreach=device != "cpu")
