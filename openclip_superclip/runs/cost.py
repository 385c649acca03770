"""The memory that a plan's training step takes on a GPU, followed on tensors that have shapes alone."""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from open_clip import get_input_dtype, get_model_config, get_tokenizer
from open_clip.utils import to_2tuple
from open_clip_train.precision import get_autocast

from ..checkpoints.architecture import know_model
from ..environment import versions
from ..errors import InputError
from ..files import PACKAGE, write_json
from ..method import loss as class_loss
from ..method.loss import SuperCLIPLoss
from ..method.shapes import MemoryTrace, count_gmacs, model_without_weights
from ..method.token_statistics import special_token_ids
from ..openclip.train import check_command
from .plan import Plan, divisors

COUNTED_BY = ("method", "planning")  # folders of this package


def kept(what: str, inputs: dict, count: Callable[[], dict]) -> dict:
    """Returns `count()`, or what an earlier call with the same `inputs`, versions and model files returned.

    Kept in $XDG_CACHE_HOME/openclip-superclip, ~/.cache where it is not set; a folder that cannot be written keeps
    nothing.

    Args:
        what: that is counted, a word.
        inputs: all that the result follows from, for JSON; its "model" is OpenCLIP's --model.
    """
    code = [
        (path.name, path.stat().st_mtime_ns) for name in COUNTED_BY for path in sorted((PACKAGE / name).glob("*.py"))
    ]
    depends_on = versions("python", "open_clip_torch", "torch", "timm"), code, _model_file(inputs["model"])
    key = hashlib.sha256(json.dumps([what, inputs, depends_on]).encode()).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openclip-superclip"
    file = cache / "counts" / f"{what}-{key}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text())
    result = count()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, result)
    return result


def _model_file(model: str) -> str:
    """Returns the configuration that lies in a folder or file of the user's, "" for a model that OpenCLIP brings."""
    folder = model.removeprefix("local-dir:")
    file = Path(folder, "open_clip_config.json") if folder != model else Path(model)
    try:
        return file.read_text() if file.is_file() else ""
    except (OSError, ValueError):
        return ""


HALF = ("bf16", "fp16", "pure_bf16", "pure_fp16")  # precisions that keep the weights in two bytes


def count_model(model: str, precision: str, patch_dropout: float, with_head: bool, counts_special: bool) -> dict:
    """Returns the counts, for JSON; InputError where OpenCLIP does not know the model.

    Args:
        counts_special: whether the head counts the tokens that are no words, too.
    """
    shapes = _model(model)
    counts = {"gmacs": count_gmacs(model, patch_dropout=patch_dropout), **_sizes(shapes, precision, with_head)}
    if with_head:
        special = () if counts_special else special_token_ids(get_tokenizer(model))
        counts |= {"vocabulary": shapes.statistics.vocab_size, "ignored_tokens": len(special)}
    return counts


def _model(name: str):
    """Returns a model as shapes alone; InputError where OpenCLIP does not know it."""
    folder = name.removeprefix("local-dir:")
    if folder != name and not os.path.isfile(f"{folder}/open_clip_config.json"):
        hint = "; superclip demo --data-only writes the demo's" if folder == "demo/model" else ""
        raise InputError(f"model: there is no {folder}/open_clip_config.json{hint}")
    know_model(name, "model")
    if get_model_config(name) is None:
        raise InputError(f"model: OpenCLIP has no model {name}; open_clip.list_models() names those it has")
    return model_without_weights(name)


def _sizes(model, precision: str, with_head: bool) -> dict:
    """Returns the parameters, and the bytes of a checkpoint: weights, AdamW's two moments of each, and counts."""
    ours = ("class_head.", "statistics.")
    num_bytes = 2 if precision in HALF else 4
    parameters = {name: tensor for name, tensor in model.named_parameters() if with_head or not name.startswith(ours)}
    num_parameters = sum(tensor.numel() for tensor in parameters.values())
    others = [
        tensor
        for name, tensor in model.state_dict().items()
        if name not in parameters and (with_head or not name.startswith(ours))
    ]
    return {
        "parameters": num_parameters,
        "head_parameters": sum(tensor.numel() for tensor in model.class_head.parameters()) if with_head else 0,
        "checkpoint_bytes": 3 * num_bytes * num_parameters + sum(tensor.nbytes for tensor in others),
    }


def estimate_cost(plan: Plan, mfu: float, gpu_tflops: float, samples_per_second: float | None = None) -> dict:
    """Returns the plan's costs, for JSON.

    FLOPs are those of the towers and the head, two a multiplication with addition: the backward pass is two forward
    ones, gradient checkpointing and accumulation are one more each, of the towers. The contrastive loss's own products,
    0.12 % of these at ViT-B/16 and batch 32,768, and the optimizer's are left out.

    Args:
        mfu: the share of its peak that a GPU reaches, all of these FLOPs counted.
        gpu_tflops: that peak, in 10^12 FLOPs a second.
        samples_per_second: of all GPUs together, where it was measured.
    """
    flags = plan.recipe.flags
    with_head = plan.recipe.superclip is not None
    counts = _counts(plan)
    gmacs = counts.pop("gmacs")
    passes = 3 + bool(flags.get("grad-checkpointing")) + (plan.accum_freq > 1)
    flops_per_sample = 2e9 * ((gmacs["vision"] + gmacs["text"]) * passes + 3 * gmacs["head"] * with_head)
    seconds = plan.samples / samples_per_second if samples_per_second else None
    flops = flops_per_sample * plan.samples
    gpu_hours = flops / (gpu_tflops * 1e12 * mfu) / 3600
    return {
        "forward_gmacs": gmacs,
        "flops_per_sample": flops_per_sample,
        "flops": flops,
        "mfu": mfu,
        "gpu_tflops": gpu_tflops,
        "gpu_hours": seconds * plan.world_size / 3600 if seconds else gpu_hours,
        "hours": seconds / 3600 if seconds else gpu_hours / plan.world_size,
        "samples_per_second": samples_per_second,
        "slice_minutes": plan.slice_steps * plan.global_batch_size / samples_per_second / 60 if seconds else None,
        **counts,
        "disk_bytes": plan.most_checkpoints * counts["checkpoint_bytes"],
    }


def checkpoint_bytes(plan: Plan) -> int:
    """Returns the bytes of one checkpoint of the plan's."""
    return _counts(plan)["checkpoint_bytes"]


def _counts(plan: Plan) -> dict:
    """Returns what is counted of the plan's model, InputError where OpenCLIP does not know it."""
    recipe = plan.recipe
    inputs = {
        "model": recipe.model,
        "precision": recipe.precision,
        "patch_dropout": float(recipe.flags.get("force-patch-dropout", 0)),
        "with_head": recipe.superclip is not None,
        "counts_special": bool((recipe.superclip or {}).get("special_tokens", False)),
    }

    def count() -> dict:

        return count_model(**inputs)

    return kept("model", inputs, count)


def trace_step(args: argparse.Namespace, world_size: int, with_head: bool) -> dict[str, int]:
    """Returns the bytes of weights, gradients and optimizer, and the peak of a training step, of one rank.

    AdamW's step and the loss over all ranks' features are in it, and DDP's buckets where there are several ranks. Not
    in it is what lies outside torch's tensors: CUDA's context, workspaces of its libraries, NCCL's buffers, gaps.

    Args:
        args: what OpenCLIP's command line says of gpu_memory.ASKED.
    """
    with MemoryTrace() as trace:
        model = _traced_model(args, with_head)
        weights = trace.bytes
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = sum(parameter.nbytes for parameter in parameters)
        buckets = [torch.empty_like(parameter) for parameter in parameters] if world_size > 1 else []
        optimizer = torch.optim.AdamW(parameters, foreach=args.device != "cpu")  # as torch chooses by itself
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()  # makes the moments
        moments = trace.bytes - weights - gradients - sum(bucket.nbytes for bucket in buckets)
        optimizer.zero_grad()
        with _loss(args, world_size, with_head) as loss:
            _forward_and_backward(args, model, loss)
        optimizer.step()
        gradients += sum(bucket.nbytes for bucket in buckets)
        inputs = args.accum_freq * args.batch_size * _pair_bytes(args, model)
        return {
            "weights": weights, "gradients": gradients, "optimizer": moments, "inputs": inputs, "peak": trace.peak,
        }  # fmt: skip


def _traced_model(args: argparse.Namespace, with_head: bool) -> torch.nn.Module:
    """Returns the model as training sets it up."""
    know_model(args.model, "model")
    options = {"accum_freq": args.accum_freq} if with_head else None
    bias = {"init_logit_bias": -10.0} if args.siglip else {}  # as OpenCLIP's main gives it
    model = model_without_weights(
        args.model, args.force_patch_dropout or 0.0, "cpu", options, args.force_image_size, args.force_context_length,
        **bias,
    )  # fmt: skip
    if with_head:
        model.statistics._check_ids = lambda tokens: None  # reads values
    dtype = get_input_dtype(args.precision)
    for module in model.modules() if dtype else ():  # OpenCLIP leaves LayerNorms in float32 where it is not "pure"
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


def _pair_bytes(args: argparse.Namespace, model: torch.nn.Module) -> int:
    """Returns the bytes of a picture and a caption as they wait on the device."""
    height, width = to_2tuple(model.visual.image_size)
    num_bytes = 2 if get_input_dtype(args.precision) else 4
    return 3 * height * width * num_bytes + 8 * model.context_length


def _forward_and_backward(args: argparse.Namespace, model: torch.nn.Module, loss) -> None:
    """Does what OpenCLIP does in a step, up to the optimizer: with --accum-freq the last of the micro-batches."""
    autocast = get_autocast(args.precision, device_type="cpu")
    image_size = to_2tuple(model.visual.image_size)
    batches = [  # all of an accumulated batch wait on the device
        (
            torch.empty(args.batch_size, 3, *image_size, dtype=get_input_dtype(args.precision)),
            torch.zeros(args.batch_size, model.context_length, dtype=torch.long),
        )
        for _ in range(args.accum_freq)
    ]
    waiting = {}
    if args.accum_freq > 1:
        with torch.no_grad(), autocast():
            waiting = {name: [value] for name, value in model(*batches[0]).items()}  # of each micro-batch alike
            for values in waiting.values():
                values += [values[0].clone() for _ in batches[2:]]
    with autocast():
        outputs = model(*batches[-1])
        for name in waiting.keys() - {"logit_scale", "logit_bias"}:
            outputs[name] = torch.cat([*waiting[name], outputs[name]])
        losses = loss(**outputs, output_dict=True)
    sum(losses.values()).backward()


@contextlib.contextmanager
def _loss(args: argparse.Namespace, world_size: int, with_head: bool) -> Iterator[torch.nn.Module]:
    """Yields the training loss of rank 0, whose all-gather repeats the rank's own features."""
    options = {"distill": False, "horovod": False, "rank": 0, "world_size": 1 if args.siglip else world_size}
    loss = open_clip.create_loss(argparse.Namespace(**{**vars(args), **options}))

    def gather_features(*features, gather_with_grad: bool = False, world_size: int = 1, **_):
        others = [[one if gather_with_grad else one.detach()] * (world_size - 1) for one in features]
        return [
            torch.cat([one, *(other.clone() for other in rest)]) for one, rest in zip(features, others, strict=True)
        ]

    before = open_clip.loss.gather_features, class_loss.CHUNK_BYTES["cpu"]
    open_clip.loss.gather_features = gather_features
    class_loss.CHUNK_BYTES["cpu"] = class_loss.CHUNK_BYTES[args.device]  # shapes are followed on the CPU
    try:
        yield SuperCLIPLoss(loss) if with_head else loss
    finally:
        open_clip.loss.gather_features, class_loss.CHUNK_BYTES["cpu"] = before


RESERVE = 0.1  # of a GPU, assumed: CUDA and its libraries, NCCL, gaps between tensors


UNITS = {"": 1, "b": 1, "gb": 10**9, "gib": 2**30, "mb": 10**6, "mib": 2**20}


ASKED = (  # of OpenCLIP's command line: all that the memory of a step follows from
    "model", "batch_size", "accum_freq", "precision", "device", "grad_checkpointing", "siglip", "local_loss",
    "gather_with_grad", "force_patch_dropout", "force_image_size", "force_context_length", "lock_image",
    "lock_image_unlocked_groups", "lock_image_freeze_bn_stats", "lock_text", "lock_text_unlocked_layers",
    "lock_text_freeze_layer_norm", "coca_caption_loss_weight", "coca_contrastive_loss_weight", "loss_dist_impl",
)  # fmt: skip


class GPU(NamedTuple):
    """A GPU as its maker's data sheet has it."""

    name: str
    bytes: int
    tflops: float | None  # in bfloat16, dense


GPUS = [
    GPU("A100-40", 40 * 10**9, 312), GPU("L40S-48", 48 * 10**9, 362), GPU("A100-80", 80 * 10**9, 312),
    GPU("H100-80", 80 * 10**9, 989), GPU("H200", 141 * 10**9, 989),
]  # fmt: skip


def find_gpu(text: str) -> GPU:
    """Returns the GPU of a type's name, or of bytes such as 24e9, 24GB, 24GiB; InputError for anything else."""
    for gpu in GPUS:
        if gpu.name.lower() == text.lower():
            return gpu
    size = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*(\w*)", text.lower())
    try:
        number = round(float(size[1]) * UNITS[size[2]])
    except (TypeError, KeyError, ValueError, OverflowError):
        number = 0
    if number < 10**8:
        types = ", ".join(gpu.name for gpu in GPUS)
        raise InputError(f"--gpu is {text}; expected one of {types}, or the bytes of its memory, such as 24GB")
    return GPU(f"a GPU of {number / 1e9:,.3g} GB", number, None)


def estimate_memory(plan: Plan, gpu: GPU | None = None) -> dict:
    """Returns the bytes that a rank's tensors take at their peak, and which GPUs hold them, for JSON.

    A tenth of a GPU is left for what is no tensor; that share is assumed. Raises InputError, with the largest
    --gpu-batch-max that fits, where `gpu` cannot hold the batch.
    """
    memory = _memory(plan)
    if "unknown" in memory:
        if gpu is not None:
            raise InputError(f"--gpu {gpu.name}: memory cannot be followed here ({memory['unknown']}); leave --gpu out")
        return memory
    memory |= {"reserve": RESERVE, "gpu": gpu._asdict() if gpu else None}
    if plan.device != "cpu":
        memory["held_by"] = [one.name for one in GPUS if _holds(one, memory)]
    if gpu is not None and not _holds(gpu, memory):
        raise InputError(_refusal(plan, gpu, memory["peak"]))
    return memory


def _holds(gpu: GPU, memory: dict) -> bool:
    return memory["peak"] <= (1 - RESERVE) * gpu.bytes


def _refusal(plan: Plan, gpu: GPU, peak: int) -> str:
    per_gpu = plan.batch_size * plan.accum_freq
    smaller = [size for size in divisors(per_gpu) if size < plan.batch_size]
    fits = 0
    while smaller:  # by halves: what a batch takes grows with it
        size = smaller[len(smaller) // 2]
        if _holds(gpu, _memory(dataclasses.replace(plan, batch_size=size, accum_freq=per_gpu // size))):
            fits, smaller = size, [larger for larger in smaller if larger > size]
        else:
            smaller = [less for less in smaller if less < size]
    checkpointing = "" if plan.recipe.flags.get("grad-checkpointing") else " or --set flags.grad-checkpointing=true"
    advice = f"--gpu-batch-max {fits} fits" if fits else f"no batch fits: give more GPUs{checkpointing}"
    return (
        f"--gpu: {plan.batch_size:,} samples take {peak / 1e9:,.3g} GB, and {gpu.name} has {gpu.bytes / 1e9:,.3g} GB, "
        f"of which a tenth is left for what is no tensor; {advice}"
    )


def _memory(plan: Plan) -> dict:
    """Returns the bytes of a rank, or under "unknown" why they are not."""
    args = vars(check_command(plan.command))
    if args["distill_model"] is not None:
        return {"unknown": "a teacher beside the model"}
    with_head = plan.recipe.superclip is not None
    inputs = {name: args[name] for name in ASKED if name in args}

    def trace() -> dict:

        return trace_step(argparse.Namespace(**inputs), plan.world_size, with_head)

    try:
        return kept("memory", {**inputs, "world_size": plan.world_size, "with_head": with_head}, trace)
    except Exception as error:  # a tower that tensors without values cannot pass, or one of a hub that is not reached
        return {"unknown": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
