"""The word records of training follow their definition, do not depend on rounding, and use a fixed sample."""

import pytest
import torch

from openclip_superclip.method.head import ClassHead
from openclip_superclip.method.idf import SAMPLE, WordKnowledge

BATCH, WIDTH, VOCAB, LENGTH = 13, 16, 53, 9
COUNTED = torch.arange(VOCAB) > 0  # 0 is padding


def batch(num: int = BATCH, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB, (num, LENGTH), generator=generator)
    tokens[3] = 0  # a caption without words
    tokens[4, 1:] = tokens[4, 0]  # a caption of one word
    return torch.randn(num, WIDTH, generator=generator), tokens


def head(seed: int = 0) -> ClassHead:
    torch.manual_seed(seed)
    return ClassHead(WIDTH, VOCAB)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shares_are_the_softmax_with_and_without_the_word_as_a_label(dtype, autocast):
    model, knowledge = head().to(dtype), WordKnowledge(COUNTED)
    features, tokens = batch()
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        knowledge.observe(model, features, tokens)
        knowledge.observe(model, features, tokens)
        shares = model.logits(features).float().softmax(dim=1).detach()
    labels = torch.zeros(BATCH, VOCAB, dtype=torch.bool).scatter_(1, tokens, True) & COUNTED
    trained = labels.any(dim=1)
    words = knowledge.take(torch.device("cpu"))
    assert words.num_captions == words.num_trained == 2 * trained.sum() == 2 * (BATCH - 1)
    assert torch.equal(words.captions, 2 * labels.sum(dim=0))
    others = trained[:, None] & ~labels
    close = {"rtol": 1e-5, "atol": 1e-9, "equal_nan": True}
    torch.testing.assert_close(words.share_where_label, (shares * labels).sum(0) / labels.sum(0), **close)
    torch.testing.assert_close(words.share_where_not, (shares * others).sum(0) / others.sum(0), **close)
    assert knowledge.take(torch.device("cpu")) is None


@pytest.mark.parametrize("seed", range(4))
def test_a_token_in_every_caption_has_no_share_without_the_label_despite_rounding(seed):
    knowledge = WordKnowledge(torch.ones(VOCAB, dtype=torch.bool))
    for step in range(5):
        features, tokens = batch(seed=10 * seed + step)
        tokens[:, 0], tokens[:, 1] = 0, VOCAB - 1
        knowledge.observe(head(seed), features, tokens)
    words = knowledge.take(torch.device("cpu"))
    assert (words.captions[[0, -1]] == words.num_captions).all()
    assert words.share_where_not[[0, -1]].isnan().all()
    assert words.share_where_not[1:-1].isfinite().all()


def test_the_first_captions_of_a_batch_are_observed_and_all_are_counted_as_trained():
    features, tokens = batch(SAMPLE + 20)
    of_all, of_first = WordKnowledge(COUNTED), WordKnowledge(COUNTED)
    of_all.observe(head(), features, tokens)
    of_first.observe(head(), features[:SAMPLE], tokens[:SAMPLE])
    ours, expected = of_all.take(torch.device("cpu")), of_first.take(torch.device("cpu"))
    torch.testing.assert_close(ours[:4], expected[:4], rtol=0, atol=0, equal_nan=True)
    assert (ours.num_captions, ours.num_trained) == (SAMPLE - 1, SAMPLE + 19)


def test_a_probability_is_not_lost_in_the_sum_over_1e9_captions():
    knowledge, model = WordKnowledge(COUNTED), head()
    knowledge.observe(model, *batch())
    single = knowledge.sums[VOCAB : 2 * VOCAB].clone()
    knowledge.sums += 1e9
    before = knowledge.sums.clone()
    knowledge.observe(model, *batch())
    of_labels = (knowledge.sums - before)[VOCAB : 2 * VOCAB]
    assert 0 < of_labels[of_labels > 0].min() < 1e-2
    torch.testing.assert_close(of_labels, single, rtol=0, atol=1e-6)
