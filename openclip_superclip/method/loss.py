"""The class loss of SuperCLIP: softmax cross-entropy against the IDF-weighted words of the
caption."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError

# Bytes of a chunk's logits, and the fewest captions of a chunk. Every chunk reads and writes the
# weight's gradient (152 MB at B/16), so that the time depends on the captions of a chunk: few are
# slow, many use more memory. Accelerators need many rows for efficient matrix products.
CHUNKS = {"cpu": (32 * 2**20, 256), "cuda": (512 * 2**20, 1)}
CACHE_BYTES = 2 * 2**20  # of a processor's core

# Probabilities of rare words lie below float16's normal range; a small power of two lifts them
# without overflow.
FLOAT16_SCALE = 16.0

NOT_UNIFORM = "the class losses have different upstream gradients: take their sum or mean"


def plain_class_loss(
    features: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, idf: Tensor
) -> Tensor:
    """Returns the class loss of each caption, float32 [B], computed directly from its definition
    (paper, section 3).

    Args:
        features: [B, W], the head's normalised input.
        weight: [V, W], one row per token.
        bias: [V].
        tokens: [B, L], the captions' token ids; a repeated id counts once.
        idf: [V], the weight of each token as a label; 0 leaves a token out.
    """
    logits = F.linear(features, weight, bias).float()  # [B, V]
    labels = torch.zeros_like(logits).scatter_(1, tokens, 1.0)  # [B, V], K-hot
    target = F.normalize(labels * idf, p=1, dim=1)  # sums to 1, or to 0 if every weight is 0
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)


def class_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    tokens: Tensor,
    idf: Tensor,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    """Returns `plain_class_loss(features, weight, bias, tokens, idf)`, float32 [B], without a
    [B, V] tensor.

    Differentiable in the first three. The captions are processed in chunks: each chunk's logits are
    computed once, and loss and gradients are computed from them immediately, so that the backward
    pass only scales the gradients. This requires that all losses have the same upstream gradient:
    take their sum or mean. Otherwise the backward pass fails, with a RuntimeError on a CPU and a
    failed assertion of the device on a GPU, for which it never waits.

    The first five arguments are those of `plain_class_loss`.

    Args:
        chunk_size: most captions per chunk; by default as many as fill the bytes in CHUNKS with
            logits, and at least the fewest in CHUNKS.
    """
    labels, target = sparse_target(tokens, idf)
    device = features.device.type
    if chunk_size is None:
        chunk_bytes, fewest = CHUNKS.get(device, CHUNKS["cuda"])
        chunk_size = max(fewest, chunk_bytes // (4 * len(weight)))
    compute_dtype = (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    )
    needs_grad = [
        torch.is_grad_enabled() and leaf.requires_grad for leaf in (features, weight, bias)
    ]
    tensors = features, weight, bias, labels, target
    losses, *_ = torch.ops.superclip.class_loss(*tensors, chunk_size, compute_dtype, needs_grad)
    return losses


def sparse_target(tokens: Tensor, idf: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the labels [B, L] and their target probabilities [B, L]: each row sums to 1, or to 0
    if all weights of a caption are 0."""
    labels, _ = tokens.long().sort(dim=1)
    weights = idf.float()[labels]
    weights[:, 1:].masked_fill_(labels[:, 1:] == labels[:, :-1], 0.0)
    total = weights.sum(dim=1, keepdim=True)
    return labels, weights / total.clamp_min(1e-12)


def losses_and_gradients(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    target: Tensor,
    chunk_size: int,
    compute_dtype: torch.dtype,
    needs_grad: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the losses, float32 [B], and the gradients of their sum for features [B, W], weight
    [V, W] and bias [V], empty where `needs_grad` is false.

    `labels` and `target`, [B, L], are those of `sparse_target`. A caption without words has no loss
    and no gradient.
    """
    has_words = (target.sum(dim=1) > 0).float()  # [B]
    num_chunks = max(1, math.ceil(len(features) / chunk_size))
    chunk_size = max(1, math.ceil(len(features) / num_chunks))  # equal chunks
    lift = FLOAT16_SCALE if compute_dtype == torch.float16 else 1.0
    compute_weight = weight.detach().to(compute_dtype)  # [V, W]
    compute_bias = bias.detach().to(compute_dtype)
    # On a CPU, first-touch page faults cost as much as the softmax: all chunks share one buffer.
    in_place = features.device.type == "cpu" and compute_dtype == torch.float32
    buffer = weight.new_empty(chunk_size, len(weight)) if in_place else None  # [C, V]
    losses = features.new_empty(len(features), dtype=torch.float32)
    grad_features = torch.empty_like(features) if needs_grad[0] else None
    grad_weight = torch.empty_like(weight, dtype=torch.float32) if needs_grad[1] else None
    grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_grad[2] else None

    with torch.autocast(features.device.type, enabled=False):
        for start in range(0, num_chunks * chunk_size, chunk_size):  # also of an empty batch
            rows = slice(start, start + chunk_size)
            x = features[rows].detach()  # [C, W]
            scale = has_words[rows]  # [C]
            if in_place:
                logits = torch.mm(x.float(), compute_weight.T, out=buffer[: len(x)])  # [C, V]
                label_logits = logits.gather(1, labels[rows]) + compute_bias[labels[rows]]  # [C, L]
                probabilities, logsumexp = _softmax_in_place(logits, compute_bias)
            else:
                logits = torch.addmm(compute_bias, x.to(compute_dtype), compute_weight.T)  # [C, V]
                label_logits = logits.gather(1, labels[rows]).float()  # [C, L]
                probabilities, logsumexp = _softmax(logits)
            losses[rows] = scale * (logsumexp - (target[rows] * label_logits).sum(dim=1))
            if not any(needs_grad):
                continue
            # [C, V], d loss / d logits
            residual = probabilities.scatter_add_(1, labels[rows], -target[rows])
            if grad_bias is not None:
                grad_bias.addmv_(residual.T, scale)
            residual = (residual.mul_(lift) if lift != 1.0 else residual).to(compute_dtype)
            scale = (scale / lift).unsqueeze(1)
            if needs_grad[0]:
                grad_features[rows] = (residual @ compute_weight).float() * scale
            if needs_grad[1]:
                _add_product(
                    grad_weight, residual.T, (x.float() * scale).to(compute_dtype), first=start == 0
                )
    gradients = zip((grad_features, grad_weight, grad_bias), (features, weight, bias), strict=True)
    return losses, *(
        leaf.new_empty(0) if gradient is None else gradient.to(leaf.dtype)
        for gradient, leaf in gradients
    )


def _softmax(logits: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns the probabilities, float32 [C, V], of logits [C, V] and their logsumexp, [C]."""
    highest = logits.amax(dim=1).float()
    probabilities = torch.softmax(logits, dim=1, dtype=torch.float32, out=out)
    # The highest probability is at least 1 / V, so its logarithm gives logsumexp without a second
    # exponential.
    return probabilities, highest - probabilities.amax(dim=1).log()


def _softmax_in_place(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `_softmax(logits + bias)`, with the probabilities in the memory of `logits`.

    Each block of rows is read and written several times, and stays in the processor's cache.
    """
    blocks = logits.split(max(1, CACHE_BYTES // (4 * logits.shape[1])))
    logsumexp = [_softmax(block.add_(bias), out=block)[1] for block in blocks]
    return logits, torch.cat(logsumexp)


def _multiplied(gradients: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Returns the gradients times the first upstream gradient: in place, unless torch traces and
    needs both."""
    if len(upstream) == 0:
        return gradients
    factor = upstream[0]
    if any(type(gradient) is not Tensor for gradient in gradients):
        return [gradient * factor.to(gradient.dtype) for gradient in gradients]
    return [gradient.mul_(factor.to(gradient.dtype)) for gradient in gradients]


# An operator of torch: torch.compile traces a training step as one graph, and calls this instead of
# tracing it.
_class_loss = torch.library.custom_op(
    "superclip::class_loss",
    losses_and_gradients,
    mutates_args=(),
    schema="(Tensor features, Tensor weight, Tensor bias, Tensor labels, Tensor target, "
    "SymInt chunk_size, ScalarType compute_dtype, bool[] needs_grad) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


@_class_loss.register_fake
def _empty_results(features, weight, bias, *others):
    *_, needs_grad = others
    losses = features.new_empty(len(features), dtype=torch.float32)
    leaves = zip((features, weight, bias), needs_grad, strict=True)
    return losses, *(
        torch.empty_like(leaf) if is_needed else leaf.new_empty(0) for leaf, is_needed in leaves
    )


def _keep_gradients(ctx, inputs, output) -> None:
    _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]
    ctx.gradients = gradients


@torch.autograd.function.once_differentiable
def _backward(ctx, upstream, *_):  # upstream [B]
    gradients = ctx.gradients
    ctx.gradients = None  # which the first backward pass multiplies in place and returns
    if gradients is None:
        _, *gradients = torch.ops.superclip.class_loss(*ctx.saved_tensors, *ctx.options)
    # on the device, without waiting for it; NaN equals NaN
    is_uniform = torch.isclose(upstream, upstream[:1], rtol=0, atol=0, equal_nan=True).all()
    torch._assert_async(is_uniform, NOT_UNIFORM)
    return *_multiplied(gradients, upstream), *[None] * 5


_class_loss.register_autograd(_backward, setup_context=_keep_gradients)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Adds left @ right to the float32 `total`, which is uninitialized for the first product."""
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, beta=0 if first else 1, out=total)
    elif first:
        total.copy_(left @ right)
    else:
        total += left @ right


class SuperCLIPLoss(nn.Module):
    """Adds `class_loss` = weight * mean of the class losses to the output of an OpenCLIP loss
    (paper, section 3).

    Args:
        contrastive: OpenCLIP's loss: ClipLoss, SigLipLoss, CoCaLoss, DistillClipLoss.
        weight: λ.
        gradient_scale: multiplies the class loss's gradient but not its value. OpenCLIP's ClipLoss
            gathers features without gradients by default; each rank's gradient is then 1 /
            world_size of the loss's, and λ keeps its meaning only if the class loss's is, too.
    """

    def __init__(self, contrastive: nn.Module, weight: float = 1.0, gradient_scale: float = 1.0):
        super().__init__()
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"weight is {weight}; expected a finite number, 0 or more")
        self.contrastive = contrastive
        self.weight = weight
        self.gradient_scale = gradient_scale

    def forward(
        self, *, class_losses: Tensor | None = None, output_dict: bool = False, **outputs: Tensor
    ):
        """Returns the weighted losses, a dict or a tuple according to `output_dict`.

        Args:
            class_losses: [B], from the model in training mode. Without them InputError is raised,
                unless this module is in evaluation mode: then there is no class_loss.
            outputs: the model's other outputs, passed to the OpenCLIP loss.
        """
        if class_losses is None and self.training:
            raise InputError(
                "SuperCLIPLoss got no class_losses: give the model a head with "
                "openclip_superclip.add_class_head and keep it in training mode, "
                "or call eval() on the loss for the contrastive loss alone"
            )
        # OpenCLIP 4 takes CoCa's labels from the tokens of both captions
        if {"logits", "labels"} <= outputs.keys():
            outputs["labels"] = outputs["labels"][:, : outputs["logits"].shape[1]]
        losses = self.contrastive(**outputs, output_dict=True)
        if class_losses is not None:
            class_loss = self.weight * class_losses.mean()
            if self.gradient_scale != 1.0:
                scaled = self.gradient_scale * class_loss
                class_loss = scaled + (class_loss - scaled).detach()
            losses["class_loss"] = class_loss
        return losses if output_dict else tuple(losses.values())
