"""The chunked class loss equals its definition, is no less exact, and never
holds [B, V]."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from support import cases, parametrize, table
from support.models import rounding
from support.operators import SeesOperators
from torch import nn

from openclip_superclip import class_loss, plain_class_loss
from openclip_superclip.method import loss

SIZES = table("losses: sizes of class losses")
IDF = {
    "positive": lambda idf: idf,
    "ones": torch.ones_like,
    "zeros among them": lambda idf: idf * (torch.arange(len(idf)) % 2),
    "all zero": torch.zeros_like,
}
UPSTREAM = {
    "of a mean": lambda losses: torch.full_like(losses, 1 / len(losses)),
    "of a sum": torch.ones_like,
    "zero": torch.zeros_like,
}
# The type of the weights and that of autocast.
PRECISIONS = {
    "fp32": (torch.float32, None),
    "bf16 autocast": (torch.float32, torch.bfloat16),
    "fp16 autocast": (torch.float32, torch.float16),
    "pure bf16": (torch.bfloat16, None),
}


def problem(batch=7, width=16, vocab=101, length=9, dtype=torch.float32):
    """Leaves (features, weight, bias), tokens with repetitions and an empty
    caption (all 0), idf (0 for id 0)."""
    rng = torch.Generator().manual_seed(batch * vocab)
    features = torch.randn(batch, width, generator=rng)
    weight = torch.randn(vocab, width, generator=rng)
    bias = torch.randn(vocab, generator=rng)
    tokens = torch.randint(0, vocab, (batch, length), generator=rng)
    tokens[0, length // 2 :] = tokens[0, 0]  # a repeated token
    if batch > 2:
        tokens[2] = 0  # an empty caption: nothing but an id that is no word
    idf = torch.rand(vocab, generator=rng) + 0.1
    idf[0] = 0.0
    return tuple(x.to(dtype).requires_grad_() for x in (features, weight, bias)), tokens, idf


def exact_class_loss(features, weight, bias, tokens, idf):
    """The truth: torch's own cross-entropy against targets by a slow loop
    over sets of words, in float64."""
    target = torch.zeros(len(tokens), len(idf), dtype=torch.float64)
    for row, caption in enumerate(tokens.tolist()):
        parts = {token: idf[token].item() for token in set(caption)}
        total = sum(parts.values())
        for token, part in parts.items():
            target[row, token] = part / total if total else 0.0
    logits = F.linear(features.double(), weight.double(), bias.double())
    return nn.CrossEntropyLoss(reduction="none")(logits, target)


def losses_and_gradients(
    function, leaves, *args, upstream=torch.ones_like, autocast=None, **kwargs
):
    """The losses and the gradients by features, weight and bias, as a list
    of four."""
    with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
        losses = function(*leaves, *args, **kwargs)
    gradients = torch.autograd.grad(
        losses, leaves, upstream(losses.detach().float()).to(losses.dtype)
    )
    return [losses.detach(), *gradients]


def rounding_bounds(leaves, tokens, idf, upstream):
    """The largest errors of float32's losses and gradients by features,
    weight and bias, for any order of summation.

    To first order: each result is a sum, and its error is that of the
    summation (`rounding`) and that of the summed terms.
    """
    features, weight, bias = (leaf.detach().double() for leaf in leaves)
    batch, width = features.shape
    vocab, length = len(idf), tokens.shape[1]
    labels = torch.zeros(batch, vocab, dtype=torch.float64).scatter_(1, tokens, 1.0)
    target = F.normalize(labels * idf.double(), p=1, dim=1)
    magnitude = features.abs() @ weight.abs().T + bias.abs()  # [B, V]
    logits_error = rounding(width + 1) * magnitude
    probabilities = F.linear(features, weight, bias).softmax(dim=1)
    # logsumexp: the logits' errors by their probabilities, the sum of V
    # exponentials, and the highest logit, which is subtracted and added
    logsumexp_error = (
        (probabilities * logits_error).sum(dim=1)
        + rounding(vocab)
        + rounding(2) * magnitude.amax(dim=1)
    )
    target_error = rounding(length) * target
    losses = (
        logsumexp_error
        + (target * logits_error + target_error * magnitude).sum(dim=1)
        + rounding(length) * (target * magnitude).sum(dim=1)
    )
    residual = (probabilities - target).abs()
    residual_error = (
        probabilities * (logits_error + logsumexp_error[:, None])
        + target_error
        + rounding(3) * (probabilities + target)
    )
    scale = upstream(losses).abs()[:, None]
    of_captions = scale * (residual_error + rounding(batch + 2) * residual)  # summed over captions
    of_tokens = scale * (residual_error + rounding(vocab + 2) * residual)  # over the vocabulary
    return [
        losses,
        of_tokens @ weight.abs(),
        of_captions.T @ features.abs(),
        of_captions.sum(dim=0),
    ]


class SumsOneByOne(SeesOperators):
    """Replaces matrix products by ones that add up the products one after
    another: no library's sums round more often."""

    def observe(self, function, args, results):
        if function not in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
            return
        left, right = args
        total = torch.zeros_like(results[0])
        for column, row in zip(left.T, right, strict=True):
            total += column[:, None] * row
        results[0].copy_(total)


def assert_close(ours, expected, tolerance=1e-5):
    for ours_, expected_ in zip(ours, expected, strict=True):
        torch.testing.assert_close(
            ours_, expected_, atol=tolerance, rtol=tolerance, check_dtype=False
        )


def assert_within(ours, expected, bounds):
    for ours_, expected_, bound in zip(ours, expected, bounds, strict=True):
        assert (ours_ - expected_).norm() <= bound.norm()


@cases("batch, width, vocab, length, chunk_size", SIZES)
@cases("idf_of", IDF)
def test_both_losses_are_cross_entropy_with_soft_targets_made_from_sets(
    batch, width, vocab, length, chunk_size, idf_of
):
    leaves, tokens, idf = problem(batch, width, vocab, length)
    arguments = leaves, tokens, idf_of(idf)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = losses_and_gradients(exact_class_loss, exact_leaves, *arguments[1:])
    bounds = rounding_bounds(*arguments, torch.ones_like)
    assert_within(losses_and_gradients(plain_class_loss, *arguments), exact, bounds)
    ours = losses_and_gradients(class_loss, *arguments, chunk_size=chunk_size)
    assert_within(ours, exact, bounds)
    with SumsOneByOne():
        ours = losses_and_gradients(class_loss, *arguments, chunk_size=chunk_size)
    assert_within(ours, exact, bounds)


@cases("batch, width, vocab, length, chunk_size", SIZES)
def test_half_precision_exceeds_the_bounds_of_float32(batch, width, vocab, length, chunk_size):
    arguments = problem(batch, width, vocab, length)
    options = {"chunk_size": chunk_size, "autocast": torch.float16}
    exact = losses_and_gradients(exact_class_loss, *arguments)
    half = losses_and_gradients(class_loss, *arguments, **options)
    bounds = rounding_bounds(*arguments, torch.ones_like)
    for ours, exact_, bound in zip(half, exact, bounds, strict=True):
        assert (ours - exact_).norm() > bound.norm()


@cases("batch, width, vocab, length, chunk_size", SIZES)
@cases("precision", PRECISIONS)
@cases("upstream", UPSTREAM)
def test_the_chunked_loss_errs_by_roundings_and_in_half_precision_little_more_than_the_plain_one(
    batch, width, vocab, length, chunk_size, precision, upstream
):
    dtype, autocast = precision
    leaves, tokens, idf = problem(batch, width, vocab, length, dtype)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    options = {"upstream": upstream, "autocast": autocast}
    truth = losses_and_gradients(
        exact_class_loss, exact_leaves, tokens, idf.double(), upstream=upstream
    )
    plain = losses_and_gradients(plain_class_loss, leaves, tokens, idf, **options)
    ours = losses_and_gradients(class_loss, leaves, tokens, idf, chunk_size=chunk_size, **options)
    assert (
        [x.dtype for x in ours] == [x.dtype for x in plain] == [torch.float32, dtype, dtype, dtype]
    )
    bounds = rounding_bounds(leaves, tokens, idf, upstream)
    if dtype == torch.float32 and not autocast:
        assert_within(ours, truth, bounds)
        return
    # The types round operands and results by 2^-12 or more, thousands of
    # times as much as a processor's order of summation changes.
    for exact, bound, plain_, ours_ in zip(truth, bounds, plain, ours, strict=True):
        of_type = torch.finfo(ours_.dtype).eps * exact.norm()
        plain_error = (exact - plain_).norm()
        assert (exact - ours_).norm() <= 3 * plain_error + 2 * of_type + bound.norm()


def error_on_rare_words(function):
    """Relative error of the weight's gradient in rows of tokens that no
    caption holds, in float16 with exact logits."""
    vocab, rng = 49_999, torch.Generator().manual_seed(0)
    features = torch.randint(-2, 3, (8, 16), generator=rng) / 2
    weight = torch.randint(-2, 3, (vocab, 16), generator=rng) / 4
    bias = torch.randint(-8, 9, (vocab,), generator=rng) / 4
    tokens = torch.randint(0, vocab, (8, 6), generator=rng)
    args = (
        [x.requires_grad_() for x in (features, weight, bias)],
        tokens,
        torch.rand(vocab, generator=rng),
    )
    rare = torch.ones(vocab, dtype=torch.bool)
    rare[tokens.unique()] = False
    truth = losses_and_gradients(exact_class_loss, *args, upstream=UPSTREAM["of a mean"])[2][rare]
    found = losses_and_gradients(
        function, *args, upstream=UPSTREAM["of a mean"], autocast=torch.float16
    )[2][rare]
    return (found - truth).norm() / truth.norm()


def test_float16_keeps_the_gradients_of_rare_words_better_than_the_plain_loss():
    assert error_on_rare_words(class_loss) < error_on_rare_words(plain_class_loss) / 4


def test_the_order_the_repetition_and_the_integer_type_of_tokens_change_nothing():
    leaves, tokens, idf = problem()
    twice = torch.cat([tokens, tokens.flip(1)], dim=1).to(torch.uint8)
    found = (losses_and_gradients(class_loss, leaves, given, idf) for given in (tokens, twice))
    torch.testing.assert_close(*found)


def test_logits_too_large_for_an_exponential_give_finite_losses():
    (features, weight, bias), tokens, idf = problem()
    leaves = [features.detach().mul(1e3).requires_grad_(), weight, bias]
    ours = losses_and_gradients(class_loss, leaves, tokens, idf)
    assert all(x.isfinite().all() for x in ours)
    assert_close(ours, losses_and_gradients(exact_class_loss, leaves, tokens, idf), tolerance=1e-3)


def test_a_second_backward_may_have_another_upstream_gradient():
    leaves, tokens, idf = problem()
    losses = class_loss(*leaves, tokens, idf)
    for upstream in (UPSTREAM["of a mean"], UPSTREAM["of a sum"]):
        ours = torch.autograd.grad(losses, leaves, upstream(losses.detach()), retain_graph=True)
        exact = losses_and_gradients(exact_class_loss, leaves, tokens, idf, upstream=upstream)
        assert_close(ours, exact[1:])


class Allocations(SeesOperators):
    """Shapes of the tensors that own new memory, made while it is on."""

    def __init__(self, *known):
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.alive = []  # so that no address is used twice
        self.shapes = []

    def observe(self, function, args, results):
        for result in results:
            if result.untyped_storage().data_ptr() not in self.known:
                self.known.add(result.untyped_storage().data_ptr())
                self.alive.append(result)
                self.shapes.append(tuple(result.shape))

    def largest(self):
        return max(torch.Size(shape).numel() for shape in self.shapes)


@parametrize("precision", [None, torch.bfloat16, torch.float16], ids=str)
@cases("upstream", UPSTREAM)
def test_no_tensor_has_the_size_of_batch_times_vocabulary(precision, upstream):
    leaves, tokens, idf = problem(64, 8, 1009, 6)
    with Allocations(*leaves, tokens, idf) as made:
        losses_and_gradients(
            class_loss, leaves, tokens, idf, chunk_size=4, upstream=upstream, autocast=precision
        )
    assert made.largest() == 8 * 1009  # the weight's gradient; a chunk's logits are 4 * 1009


@parametrize("megabytes, rows", [(3.5, 3), (0.1, 1), (100, 20)])
def test_a_chunk_has_the_captions_that_fit_the_budget_and_at_least_one(
    monkeypatch, megabytes, rows
):
    vocab = 2**18
    monkeypatch.setitem(loss.CHUNKS, "cpu", (int(megabytes * 4 * vocab), 1))
    leaves, tokens, idf = problem(20, 2, vocab, 6)
    with torch.no_grad(), Allocations(*leaves, tokens, idf) as made:
        losses = class_loss(*leaves, tokens, idf)
    assert made.largest() == rows * vocab
    assert not {leaf.shape for leaf in leaves} & set(made.shapes)  # no gradients
    assert_close([losses], [exact_class_loss(*leaves, tokens, idf).detach()])


@parametrize("needed", [(0,), (1, 2), (0, 2)], ids=str)
def test_only_the_gradients_that_are_needed_are_computed(needed):
    leaves, tokens, idf = problem(8, 16, 101, 6)
    exact = losses_and_gradients(exact_class_loss, leaves, tokens, idf)[1:]
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index in needed)
    with Allocations(*leaves, tokens, idf) as made:
        losses = class_loss(*leaves, tokens, idf, chunk_size=2)
        ours = torch.autograd.grad(losses.sum(), [leaves[i] for i in needed])
    assert_close(ours, [exact[i] for i in needed])
    not_needed = {shape for i, shape in enumerate([(8, 16), (101, 16), (101,)]) if i not in needed}
    assert not not_needed & set(made.shapes)


def test_the_backward_pass_costs_no_second_pass_and_no_memory():
    leaves, tokens, idf = problem(64, 8, 1009, 6)
    with Allocations(*leaves, tokens, idf) as made:
        losses = class_loss(*leaves, tokens, idf, chunk_size=4)
        made.shapes.clear()
        torch.autograd.grad(losses.mean(), leaves)
    assert made.largest() <= 64


@parametrize("is_second", [False, True])
def test_different_upstream_gradients_are_refused_and_nan_is_passed_on(is_second):
    leaves, tokens, idf = problem()
    losses = class_loss(*leaves, tokens, idf)
    if is_second:
        losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="different upstream gradients: take their sum or mean"):
        torch.autograd.grad(losses, leaves, torch.arange(7.0), retain_graph=True)
    gradients = torch.autograd.grad(losses, leaves, torch.full((7,), torch.nan))
    assert all(gradient.isnan().all() for gradient in gradients)


def test_a_second_derivative_is_refused():
    leaves, tokens, idf = problem()
    losses = class_loss(*leaves, tokens, idf)
    (gradient,) = torch.autograd.grad(losses.mean().square(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# As an operator of torch


@parametrize("needs_grad", [(True, True, True), (False, True, False)], ids=str)
@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_finds_no_fault_with_the_operator(dtype, needs_grad):
    leaves, tokens, idf = problem(dtype=dtype)
    for leaf, needed in zip(leaves, needs_grad, strict=True):
        leaf.requires_grad_(needed)
    arguments = *leaves, *loss.sparse_target(tokens, idf), 3, dtype, [*needs_grad]
    torch.library.opcheck(torch.ops.superclip.class_loss, arguments, raise_exception=True)
