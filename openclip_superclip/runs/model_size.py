"""The size of a model: parameters, multiply-adds, and the memory of a training step."""

import argparse
import contextlib
import os
from collections.abc import Iterator

import open_clip
import torch
from open_clip import get_input_dtype, get_model_config
from open_clip.utils import to_2tuple

from ..checkpoints.model_files import know_model
from ..environment import replaced
from ..errors import InputError
from ..method import loss as class_loss
from ..method.loss import SuperCLIPLoss
from ..method.shapes import MemoryTrace, count_gmacs, model_without_weights
from ..openclip import autocast

HALF = ("bf16", "fp16", "pure_bf16", "pure_fp16")  # precisions with weights of two bytes


def count_model(model: str, precision: str, patch_dropout: float, with_head: bool) -> dict:
    """Returns multiply-adds, parameters and the bytes of a checkpoint, for JSON.

    A checkpoint contains the weights, AdamW's two moments of each, and counts. Raises InputError for a model that
    OpenCLIP does not have.
    """
    folder = model.removeprefix("local-dir:")
    if folder != model and not os.path.isfile(f"{folder}/open_clip_config.json"):
        hint = "; superclip demo --data-only writes the demo's" if folder == "demo/model" else ""
        raise InputError(f"model: there is no {folder}/open_clip_config.json{hint}")
    know_model(model, "model")
    if get_model_config(model) is None:
        raise InputError(f"model: OpenCLIP has no model {model}; open_clip.list_models() names those it has")
    shapes = model_without_weights(model, superclip={} if with_head else None)
    parameters = dict(shapes.named_parameters())
    num_parameters = sum(tensor.numel() for tensor in parameters.values())
    buffers = [tensor for name, tensor in shapes.state_dict().items() if name not in parameters]
    num_bytes = 2 if precision in HALF else 4
    return {
        "gmacs": count_gmacs(model, patch_dropout=patch_dropout),
        "parameters": num_parameters,
        "head_parameters": sum(tensor.numel() for tensor in shapes.class_head.parameters()) if with_head else 0,
        "checkpoint_bytes": 3 * num_bytes * num_parameters + sum(tensor.nbytes for tensor in buffers),
    }


def trace_step(args: argparse.Namespace, world_size: int, with_head: bool) -> dict[str, int]:
    """Returns the bytes of weights, gradients and optimizer, and the peak of a training step, of one rank.

    AdamW's step, the loss over all ranks' features and, with several ranks, DDP's buckets are included. Memory outside
    tensors is not: CUDA's context, library workspaces, NCCL's buffers, fragmentation.

    Args:
        args: OpenCLIP's options in cost.TRACED.
    """
    with MemoryTrace() as trace:
        model = _traced_model(args, with_head)
        weights = trace.bytes
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        buckets = [torch.empty_like(parameter) for parameter in parameters if world_size > 1]
        optimizer = torch.optim.AdamW(parameters, foreach=args.device != "cpu")  # torch's default
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        gradients = trace.bytes - weights  # and DDP's buckets
        optimizer.step()  # creates the moments
        moments = trace.bytes - weights - gradients
        optimizer.zero_grad()
        with _loss(args, world_size, with_head) as loss:
            _forward_and_backward(args, model, loss)
        optimizer.step()
        del buckets  # which persist throughout training
        height, width = to_2tuple(model.visual.image_size)
        pair = 3 * height * width * (2 if get_input_dtype(args.precision) else 4) + 8 * model.context_length
        inputs = args.accum_freq * args.batch_size * pair
        return {
            "weights": weights, "gradients": gradients, "optimizer": moments, "inputs": inputs, "peak": trace.peak,
        }  # fmt: skip


def _traced_model(args: argparse.Namespace, with_head: bool) -> torch.nn.Module:
    """Returns the model as in training."""
    know_model(args.model, "model")
    options = {"accum_freq": args.accum_freq} if with_head else None
    bias = {"init_logit_bias": -10.0} if args.siglip else {}  # as in OpenCLIP's main
    model = model_without_weights(
        args.model, args.force_patch_dropout or 0.0, "cpu", options, args.force_image_size, args.force_context_length,
        **bias,
    )  # fmt: skip
    if with_head:
        model.statistics._check_ids = lambda tokens: None  # reads values
    dtype = get_input_dtype(args.precision)
    for module in model.modules() if dtype else ():  # OpenCLIP leaves LayerNorms in float32 unless it is "pure"
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(parameter.to(dtype)))
    if args.lock_image:
        model.lock_image_tower(args.lock_image_unlocked_groups, args.lock_image_freeze_bn_stats)
    if args.lock_text:
        model.lock_text_tower(args.lock_text_unlocked_layers, args.lock_text_freeze_layer_norm)
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    model.output_dict = True
    return model.train()


def _forward_and_backward(args: argparse.Namespace, model: torch.nn.Module, loss) -> None:
    """Runs OpenCLIP's step without the optimizer: with --accum-freq, the last micro-batch."""
    in_precision = autocast(args.precision, "cpu")
    image_size = to_2tuple(model.visual.image_size)
    batches = [  # the whole accumulated batch is on the device
        (
            torch.empty(args.batch_size, 3, *image_size, dtype=get_input_dtype(args.precision)),
            torch.zeros(args.batch_size, model.context_length, dtype=torch.long),
        )
        for _ in range(args.accum_freq)
    ]
    waiting = {}
    if args.accum_freq > 1:
        with torch.no_grad(), in_precision():
            waiting = {name: [value] for name, value in model(*batches[0]).items()}  # the same for each micro-batch
            for values in waiting.values():
                values += [values[0].clone() for _ in batches[2:]]
    with in_precision():
        outputs = model(*batches[-1])
        for name in waiting.keys() - {"logit_scale", "logit_bias"}:
            outputs[name] = torch.cat([*waiting[name], outputs[name]])
        losses = loss(**outputs, output_dict=True)
    sum(losses.values()).backward()


@contextlib.contextmanager
def _loss(args: argparse.Namespace, world_size: int, with_head: bool) -> Iterator[torch.nn.Module]:
    """Yields the training loss of rank 0, with an all-gather that repeats the rank's own features."""
    options = {"distill": False, "horovod": False, "rank": 0, "world_size": 1 if args.siglip else world_size}
    loss = open_clip.create_loss(argparse.Namespace(**{**vars(args), **options}))

    def gather_features(*features, gather_with_grad: bool = False, world_size: int = 1, **_):
        others = [[one if gather_with_grad else one.detach()] * (world_size - 1) for one in features]
        return [
            torch.cat([one, *(other.clone() for other in rest)]) for one, rest in zip(features, others, strict=True)
        ]

    chunks = {**class_loss.CHUNK_BYTES, "cpu": class_loss.CHUNK_BYTES[args.device]}  # shapes are traced on the CPU
    with replaced(open_clip.loss, gather_features=gather_features), replaced(class_loss, CHUNK_BYTES=chunks):
        yield SuperCLIPLoss(loss) if with_head else loss
