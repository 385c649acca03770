"""What is summed up of each word while it is learned equals its definition, and changes no loss and no gradient."""

import pytest
import torch

from openclip_superclip import class_loss
from openclip_superclip.method.word_knowledge import WordSums

BATCH, WIDTH, VOCAB, LENGTH = 13, 16, 53, 9
PRECISIONS = {"fp32": (torch.float32, None), "bf16": (torch.float32, torch.bfloat16), "pure": (torch.bfloat16, None)}


def inputs(dtype=torch.float32) -> dict:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH), generator=generator)
    tokens[3] = 0  # a caption without a word
    tokens[4, 1:] = tokens[4, 0]  # of one word
    idf = torch.rand(VOCAB, generator=generator) + 0.5
    idf[0] = 0  # which is padding
    idf[7] = 0  # a word that every caption holds
    weight = torch.randn(VOCAB, WIDTH, generator=generator)
    leaves = torch.randn(BATCH, WIDTH, generator=generator), weight, torch.randn(VOCAB, generator=generator)
    features, weight, bias = (leaf.to(dtype).requires_grad_() for leaf in leaves)
    return {"features": features, "weight": weight, "bias": bias, "tokens": tokens, "idf": idf}


def counted() -> torch.Tensor:
    return torch.arange(VOCAB) > 0


@pytest.mark.parametrize("scale", [1.0, torch.tensor(0.37)])
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize(("dtype", "autocast"), PRECISIONS.values(), ids=PRECISIONS)
def test_shares_are_the_softmax_where_a_word_is_a_label_and_where_it_is_not(dtype, autocast, chunk_size, scale):
    given, sums = inputs(dtype), WordSums(counted())
    given["bias"].requires_grad_(chunk_size is None)  # a head whose bias is locked is summed up as well
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        class_loss(**given, scale=scale, chunk_size=chunk_size, word_sums=sums)
        class_loss(**given, scale=scale, word_sums=sums)
        with torch.no_grad():
            class_loss(**given, word_sums=sums)  # no step: not summed
        features, weight, bias = (given[name].detach() for name in ("features", "weight", "bias"))
        logits = torch.nn.functional.linear(features.to(weight.dtype), weight, bias)
    shares = logits.float().softmax(dim=1)
    labels = torch.zeros(BATCH, VOCAB, dtype=torch.bool).scatter_(1, given["tokens"], True) & counted()
    trained = (labels & (given["idf"] > 0)).any(dim=1)
    labels &= trained[:, None]
    words = sums.take(torch.device("cpu"))
    assert words.num_captions == 2 * trained.sum() == 2 * (BATCH - 1)
    assert torch.equal(words.captions, 2 * labels.sum(dim=0))
    where_label = (shares * labels).sum(dim=0) / labels.sum(dim=0)
    others = trained[:, None] & ~labels
    where_not = (shares * others).sum(dim=0) / others.sum(dim=0)
    close = {"rtol": 2e-4 if dtype == torch.float32 and autocast is None else 0.05, "atol": 1e-7, "equal_nan": True}
    torch.testing.assert_close(words.share_where_label, where_label, **close)
    torch.testing.assert_close(words.share_where_not, where_not, **close)
    assert sums.take(torch.device("cpu")) is None


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_summing_up_changes_no_bit_of_losses_and_gradients(chunk_size):
    results = []
    for sums in (None, WordSums(counted())):
        given = inputs()
        losses = class_loss(**given, chunk_size=chunk_size, word_sums=sums)
        losses.mean().backward()
        results.append([losses.detach(), *(given[name].grad for name in ("features", "weight", "bias"))])
    assert all(map(torch.equal, *results))


def test_a_share_is_not_lost_in_the_sum_of_an_epoch_of_1e9_captions():
    sums = WordSums(counted())
    class_loss(**inputs(), word_sums=sums)
    sums.sums += 1e9
    before = sums.sums.clone()
    class_loss(**inputs(), word_sums=sums)
    of_labels = (sums.sums - before)[VOCAB : 2 * VOCAB]
    assert 0 < of_labels[of_labels > 0].min() < 1e-3
    single = WordSums(counted())
    class_loss(**inputs(), word_sums=single)
    torch.testing.assert_close(of_labels, single.sums[VOCAB : 2 * VOCAB], rtol=0, atol=1e-6)
