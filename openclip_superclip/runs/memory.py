"""The peak memory of a training step on each GPU, computed without a GPU and without weights.

A step of the run's model, loss and optimizer runs on tensors of torch's device "meta", which have
shapes and no values, and counts what they would allocate.
"""

import bisect
import collections
import contextlib
import copy
import dataclasses
import functools
import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import open_clip
import torch
import torch.distributed.nn
import torch.nn.functional as F
from open_clip.utils import to_2tuple
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import hooks
from ..checkpoints.architecture import read_architecture
from ..environment import replaced
from ..flags import config_from
from ..method import loss as class_loss
from ..method.model import AccumulatedLosses
from ..openclip import v3
from ..openclip.replacing import plugins_model_class
from ..openclip.train import check_command
from .plan import divisors
from .run import Run

META = "meta"
NUM_TRACED = 2  # micro-batches of an accumulation that are run: from the second on, all are alike
AUTOCAST = {"amp": torch.float16, "amp_bf16": torch.bfloat16, "amp_bfloat16": torch.bfloat16}
OPERATORS = {  # ours, whose allocations are counted inside them
    torch.ops.superclip.class_loss.default: class_loss.losses_and_gradients,
    torch.ops.superclip.scale_gradients.default: class_loss.scale_gradients,
}


@dataclass(frozen=True)
class Peak:
    """The bytes on a GPU at the moment of a step at which they are the most."""

    parameters: int  # and buffers
    gradients: int  # and DistributedDataParallel's copy of them
    optimizer: int
    activations: int  # and all other tensors
    head: int  # the class head's part of these four

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


class Allocations(TorchDispatchMode):
    """Records which tensors of a device are allocated and freed, and when.

    Operators that only make new tensors run once for each shape of their inputs: later calls make
    tensors like the first results. Python reads any tensor as 0 or 1.
    """

    def __init__(self, device: str = META):
        super().__init__()
        self.device = device
        self.in_head = False  # whether the class loss is running
        self.events: list[tuple[int, int]] = []  # number of the storage, bytes; negative if freed
        self.of_head: set[int] = set()  # numbers of the storages that the class loss allocated
        self._live: dict[int, tuple[int, int, weakref.ref]] = {}  # number, bytes; by storage
        self._results: dict = {}
        self._num_storages = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in OPERATORS:
            with self, replaced(self, in_head=True):
                return OPERATORS[function](*args, **kwargs)
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 0
        call = function, _signature(args), _signature(tuple(kwargs.items()))
        if results := self._results.get(call):
            outputs = [result and torch.empty_strided(**result) for result in results[1]]
            outputs = outputs[0] if results[0] is Tensor else results[0](outputs)
            self._record(outputs)
            return outputs
        outputs = function(*args, **kwargs)
        all_new = self._record(outputs)
        if call not in self._results:
            self._results[call] = _layouts(outputs) if all_new else None
        return outputs

    def _record(self, outputs) -> bool:
        """Records the storages of a function's results; returns whether all of them are new."""
        all_new = True
        for tensor in outputs if isinstance(outputs, tuple | list) else [outputs]:
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                all_new &= self.number_of(tensor, is_new=True) is None
        return all_new

    def number_of(self, tensor: Tensor, is_new: bool = False) -> int | None:
        """Returns the number of a tensor's storage; None if it is unknown, and then records a new
        one."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return self._live[key][0]
        if is_new:
            self._num_storages += 1
            number, num_bytes = self._num_storages, storage.nbytes()
            self.events.append((number, num_bytes))
            if self.in_head:
                self.of_head.add(number)
            self._live[key] = number, num_bytes, weakref.ref(storage, lambda _: self._free(key))
        return None

    def _free(self, key: int) -> None:
        number, num_bytes, _ = self._live.pop(key)
        self.events.append((number, -num_bytes))

    def restart(self) -> None:
        """Forgets the events so far; what is allocated remains allocated."""
        self.events = [(number, num_bytes) for number, num_bytes, _ in self._live.values()]

    def at_peak(self) -> dict[int, int]:
        """Returns the bytes of each storage at the moment at which they are the most, by number."""
        total, peak, end = 0, 0, 0
        for index, (_, num_bytes) in enumerate(self.events, 1):
            total += num_bytes
            if total > peak:
                peak, end = total, index
        live = {}
        for number, num_bytes in self.events[:end]:
            if num_bytes < 0:
                del live[number]
            else:
                live[number] = num_bytes
        return live


def _signature(value):
    """Returns what the shapes of a function's results depend on, hashable."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, tuple | list):
        return tuple(map(_signature, value))
    return value


def _layouts(outputs) -> tuple[type, list[dict | None]] | None:
    """Returns how to make tensors like a function's results; None for other results."""
    is_one = isinstance(outputs, Tensor)
    tensors = [outputs] if is_one else outputs
    if not isinstance(tensors, tuple | list) or not any(isinstance(t, Tensor) for t in tensors):
        return None
    layouts = []
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            layout = {"size": tensor.shape, "stride": tensor.stride(), "dtype": tensor.dtype}
            layouts.append(layout | {"device": tensor.device})
        elif tensor is None:
            layouts.append(None)
        else:
            return None
    return (Tensor if is_one else type(outputs)), layouts


class _Precision:
    """Autocast for the device "meta", which torch does not have: casts the arguments of functions.

    Autocast keeps a weight's copy until it ends; so does `forward`.
    """

    def __init__(self, dtype: torch.dtype | None):
        self.dtype = dtype
        self._weights: dict[Tensor, Tensor] | None = None  # the copies; None outside `forward`

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """A context for the forward pass and the loss."""
        self._weights = {}
        try:
            yield
        finally:
            self._weights = None

    def lowered(self, function):
        """Returns the function with its floating-point arguments in autocast's type."""
        return self._with_arguments(function, self._lower)

    def in_float32(self, function):
        """Returns the function with its floating-point arguments in float32."""
        return self._with_arguments(function, Tensor.float)

    def _with_arguments(self, function, cast):
        if self.dtype is None:
            return function

        @functools.wraps(function)
        def call(*args, **kwargs):
            args = [_cast(value, cast) for value in args]
            return function(*args, **{name: _cast(value, cast) for name, value in kwargs.items()})

        return call

    def _lower(self, tensor: Tensor) -> Tensor:
        if self._weights is None or not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self.dtype)
        if tensor not in self._weights:
            self._weights[tensor] = tensor.to(self.dtype)
        return self._weights[tensor]


def _cast(value, cast):
    return cast(value) if isinstance(value, Tensor) and value.is_floating_point() else value


LOWERED = {  # what OpenCLIP, timm and transformers call of autocast's functions, by module
    F: ("linear", "conv1d", "conv2d"),
    torch: ("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"),
}
IN_FLOAT32 = ("layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy")  # on a GPU


@contextlib.contextmanager
def _as_on(device: str, precision: _Precision, world_size: int) -> Iterator[None]:
    """A context in which torch treats tensors on "meta" like those of a device: autocast, fused
    attention, and as many ranks."""
    dtype, attention = precision.dtype, F.scaled_dot_product_attention

    def fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        if query.ndim != 4 or options.pop("enable_gqa", False):
            return attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
        output, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, **options
        )
        return output

    def gathered(tensor):
        return tuple(tensor.clone() for _ in range(world_size))

    functions = {"scaled_dot_product_attention": precision.lowered(fused)}
    functions |= {name: precision.lowered(getattr(F, name)) for name in LOWERED[F]}
    if device != "cpu":
        functions |= {name: precision.in_float32(getattr(F, name)) for name in IN_FLOAT32}
    products = {name: precision.lowered(getattr(torch, name)) for name in LOWERED[torch]}
    dtype_of = torch.get_autocast_dtype
    autocast = {
        "autocast": lambda *_, **__: contextlib.nullcontext(),
        "is_autocast_enabled": lambda device=None: device == META and dtype is not None,
        "get_autocast_dtype": lambda device: dtype if device == META else dtype_of(device),
    }
    exchanged = {
        "neighbour_exchange_with_grad": lambda _, __, tensor, **___: tensor.clone(),
        "neighbour_exchange_bidir_with_grad": lambda _, __, *tensors, **___: [
            tensor.clone() for tensor in tensors
        ],
    }
    chunks = {
        name: getattr(class_loss, name) | {META: getattr(class_loss, name)[device]}
        for name in ("CHUNK_BYTES", "CHUNK_ROWS")
    }
    with (
        replaced(F, **functions),
        replaced(torch, **products, **autocast),
        replaced(Tensor, __matmul__=precision.lowered(Tensor.matmul)),
        replaced(torch.distributed, all_gather=lambda *_, **__: None),
        replaced(torch.distributed.nn, all_gather=gathered, all_reduce=Tensor.clone),
        replaced(open_clip.loss, **exchanged),
        replaced(class_loss, **chunks),
    ):
        yield


class Step:
    """The training step of a run on one GPU, on tensors without values."""

    def __init__(self, run: Run):
        self.run = run
        self.options = options = copy.copy(check_command(run.openclip_arguments()))
        options.rank, options.world_size = 0, run.world_size
        options.distill = options.distill_model is not None
        self.config = config_from(vars(options))
        self.model = self._model()
        self.teacher = None
        if options.distill:
            teacher = read_architecture(options.distill_model)
            self.teacher = teacher.build(precision=options.precision, output_dict=True).eval()
        create = open_clip.create_loss
        takes_model = "model" in inspect.signature(create).parameters  # from OpenCLIP 4 on
        own = functools.partial(create, options, **{"model": self.model} if takes_model else {})
        self.loss = v3.plugins_loss(options, self.model, own)
        self.precision = _Precision(AUTOCAST.get(options.precision))
        self.allocations = Allocations()
        with self._simulation():
            self._first_step()

    def _model(self) -> nn.Module:
        options, config = self.options, self.config
        architecture = read_architecture(options.model).with_options(vars(options))
        changes = {"precision": options.precision, "output_dict": True}
        changes |= {
            name: getattr(options, name) for name in ("force_custom_text", "force_patch_dropout")
        }
        if options.siglip:
            changes["init_logit_bias"] = -10
        if config is not None:
            changes["superclip"] = {
                "head_warmup": config.head_warmup,
                "head_input": config.head_input,
                "word_course": config.word_course == "on",
            }
            if config.placebo != "off":
                changes["superclip"]["placebo"] = config.placebo
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

    def _simulation(self) -> contextlib.ExitStack:
        """Returns a context in which the step runs like on the run's device, and is recorded."""
        stack = contextlib.ExitStack()
        stack.enter_context(_as_on(self.run.device, self.precision, self.run.world_size))
        stack.enter_context(self.allocations)
        return stack

    def _first_step(self) -> None:
        """Makes the optimizer, whose state the first step allocates."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if self.teacher is not None:
            tensors += [*self.teacher.parameters(), *self.teacher.buffers()]
        for tensor in tensors:
            self.allocations.number_of(tensor, is_new=True)
        self.weights = {self.allocations.number_of(tensor) for tensor in tensors}
        self.optimizer = _optimizer(self.options, self.model, self.run.device)
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
        """Runs forward and backward pass as OpenCLIP does."""
        images, texts = self._inputs(batch_size)
        if accum_freq == 1:
            self._backward(lambda: self._outputs(images, texts))
            return
        with torch.no_grad(), self.precision.forward():
            for _ in range(NUM_TRACED):
                outputs = self.model(images, texts)
        others = self._inputs((accum_freq - 1) * batch_size)  # the other micro-batches, on the GPU
        scales = [name for name in ("logit_scale", "logit_bias") if name in outputs]
        features = {
            name: output.new_empty(len(others[0]), *output.shape[1:])
            for name, output in outputs.items()
            if name not in scales
        }

        def joined() -> dict[str, Tensor]:
            outputs = self.model(images, texts)
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
        number_of, of_head = self.allocations.number_of, set(self.allocations.of_head)
        kinds = dict.fromkeys(self.weights, "parameters")
        copies = head_copies = 0  # of the gradients, in DistributedDataParallel's buckets
        for name, parameter in self.model.named_parameters():
            states = self.optimizer.state.get(parameter, {}).values()
            tensors = {"gradients": [parameter.grad], "optimizer": states}
            numbers = {number_of(parameter): "parameters"}
            for kind, group in tensors.items():
                for tensor in group:
                    if isinstance(tensor, Tensor) and tensor.device.type == META:
                        numbers[number_of(tensor)] = kind
            kinds |= numbers
            num_bytes = parameter.nbytes if self.has_buckets and parameter.requires_grad else 0
            copies += num_bytes
            if name.startswith("class_head."):
                of_head |= numbers.keys()
                head_copies += num_bytes
        live = self.allocations.at_peak()
        totals = collections.Counter(gradients=copies)
        for number, num_bytes in live.items():
            totals[kinds.get(number, others)] += num_bytes
        return Peak(
            **{kind: totals[kind] for kind in ("parameters", "gradients", "optimizer")},
            activations=totals["activations"],
            head=head_copies + sum(live[number] for number in of_head & live.keys()),
        )

    @property
    def has_buckets(self) -> bool:
        return self.run.world_size > 1 and self.run.settings.engine == "torchrun"


def _optimizer(options, model: nn.Module, device: str) -> torch.optim.Optimizer:
    """Returns OpenCLIP's optimizer, with torch's default of a device for steps of many tensors."""
    name = options.opt.lower().removeprefix("timm/")
    if name != "adamw":
        from timm.optim import create_optimizer_v2

        return create_optimizer_v2(model, name, lr=options.lr, weight_decay=options.wd)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=options.lr, foreach=device != "cpu")


CARDS_GB = (24, 40, 80)


def step_memory(run: Run) -> dict:
    """Returns the plan's peak memory of each GPU, for JSON: its kinds, and the largest batch for
    each size of card.

    A batch of a card divides the run's batch per GPU, whose rest is accumulated; 0 if none fits. A
    card of 24 GB has 24 GiB: the difference of 7 % is for what is not counted.
    """
    step = Step(run)
    peak = functools.cache(step.peak)
    found = peak(run.batch_size, run.accum_freq)
    per_gpu = run.batch_size * run.accum_freq

    def peak_of(size: int) -> int:
        return peak(size, per_gpu // size).total

    sizes, largest = divisors(per_gpu), {}
    for card in CARDS_GB if run.device == "cuda" else ():
        num_bytes = card * 10**9
        num_fitting = len(sizes)
        if peak_of(per_gpu) > num_bytes:
            num_fitting = bisect.bisect(sizes, num_bytes, hi=len(sizes) - 1, key=peak_of)
        largest[str(card)] = sizes[num_fitting - 1] if num_fitting else 0
    return {"peak_bytes": found.total, **dataclasses.asdict(found), "largest_batches": largest}
