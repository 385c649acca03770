"""Counts are of captions, exact, and the same on every rank; IDF follows
from them."""

import itertools
import math

import torch
from open_clip.tokenizer import HFTokenizer
from support import cases, input_error, parametrize, table
from support.models import assert_equal, write_tokenizer
from support.three_steps import results_of
from torch.testing import assert_close

from openclip_superclip import TokenStatistics
from openclip_superclip.method.idf import special_token_ids


def captions(num, length, vocab=50, seed=0):
    return torch.randint(0, vocab, (num, length), generator=torch.Generator().manual_seed(seed))


def counted_with_sets(batches, vocab, ignored=()):
    """Document frequency and number of captions, by loops over Python
    sets."""
    document_frequency, num_captions = [0] * vocab, 0
    for tokens in batches:
        for caption in tokens.tolist():
            words = set(caption) - set(ignored)
            num_captions += bool(words)
            for word in words:
                document_frequency[word] += 1
    return document_frequency, num_captions


SIZES = [(1, 1, 2), (7, 1, 50), (5, 30, 7), (64, 20, 997)]


@parametrize("ignored", [(), (0,), (1, 9999)], ids=str)
@parametrize("batch, length, vocab", SIZES)
def test_counts_equal_those_of_python_sets_and_idf_follows_from_them(batch, length, vocab, ignored):
    statistics = TokenStatistics(vocab, ignored)
    batches = [captions(batch, length, vocab, seed) for seed in range(3)]
    for tokens in batches:
        statistics.update(tokens)
    document_frequency, num_captions = counted_with_sets(batches, vocab, ignored)
    assert statistics.document_frequency.tolist() == document_frequency
    assert statistics.num_captions == num_captions
    idf = [math.log((num_captions + 1) / (df + 1)) for df in document_frequency]
    expected = [0.0 if token in ignored else value for token, value in enumerate(idf)]
    assert_close(statistics.idf(), torch.tensor(expected), atol=1e-7, rtol=1e-6)


@parametrize("cast", [None, torch.nn.Module.bfloat16, torch.nn.Module.half, torch.nn.Module.double])
def test_counts_stay_exact_beyond_what_a_float_can_hold_after_a_cast_and_in_a_state_dict(cast):
    statistics = TokenStatistics(10)
    statistics.document_frequency.fill_(10**12 + 1)
    statistics.num_captions.fill_(2**60 + 3)
    if cast:
        cast(statistics)
    statistics.update(torch.tensor([[1, 2], [2, 3]]))
    assert statistics.document_frequency.dtype == statistics.num_captions.dtype == torch.int64
    assert (statistics.document_frequency[:5] - 10**12).tolist() == [1, 2, 3, 2, 1]
    assert statistics.num_captions.item() == 2**60 + 5
    assert statistics.idf().dtype == torch.float32
    restored = TokenStatistics(10)
    restored.load_state_dict(statistics.state_dict())
    for counted in (statistics, restored):
        counted.update(torch.tensor([[3, 4]]))
    assert_equal(restored.state_dict(), statistics.state_dict())
    assert restored.state_dict().keys() == {"num_captions", "document_frequency"}


@cases("token, row, column", table("losses: ids outside the vocabulary"))
def test_an_id_outside_the_vocabulary_is_named_with_its_caption_and_the_batch_not_counted(
    token, row, column
):
    statistics, tokens = TokenStatistics(50), captions(6, 9)
    statistics.update(tokens)
    tokens[row, column] = token
    with input_error(rf"caption {row} of the batch holds token id {token}\b.*ends at 49\b"):
        statistics.update(tokens)
    assert statistics.num_captions == 6


@parametrize("batch_sizes", [(4, 4), (1, 7)], ids=str)
def test_two_ranks_count_as_one(batch_sizes, tmp_path):
    steps = [
        [captions(size, 9, seed=10 * step + rank) for rank, size in enumerate(batch_sizes)]
        for step in range(3)
    ]

    def count(rank, world_size):
        statistics = TokenStatistics(50, [0])
        assert [statistics.update(batches[rank]) for batches in steps] == [sum(batch_sizes)] * 3
        return statistics.state_dict()

    expected = counted_with_sets(itertools.chain(*steps), 50, [0])
    for state in results_of(count, 2, tmp_path / "ranks"):
        assert (state["document_frequency"].tolist(), state["num_captions"]) == expected


def test_only_words_of_a_hugging_face_tokenizers_captions_are_counted(tmp_path):
    known = "a the red blue cat [UNK] [CLS] [SEP] [PAD] dog sits on mat"
    write_tokenizer(tmp_path, known.split())
    tokenizer = HFTokenizer(str(tmp_path), context_length=8)
    assert special_token_ids(tokenizer) == (0, 5, 6, 7, 8)  # its own, and 0
    statistics = TokenStatistics(13, special_token_ids(tokenizer))
    statistics.update(tokenizer(["the cat sits on the mat", "dog", "unheard of"]))
    assert statistics.num_captions == 2
    assert statistics.document_frequency.tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1]
