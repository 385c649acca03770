"""Counts are of captions, exact, and the same on every rank; IDF follows from them."""

import math

import open_clip
import pytest
import torch
import torch.distributed as dist
from open_clip.tokenizer import HFTokenizer
from support.models import write_tokenizer
from support.training_runs import run_ranks

from openclip_superclip import InputError, TokenStatistics
from openclip_superclip.method.idf import special_token_ids


def captions(num, length, vocab=50, seed=0):
    return torch.randint(0, vocab, (num, length), generator=torch.Generator().manual_seed(seed))


def counted_with_sets(batches, vocab, ignored=()):
    """Document frequency and number of captions, by loops over Python sets."""
    document_frequency, num_captions = [0] * vocab, 0
    for caption in (caption for batch in batches for caption in batch.tolist()):
        words = set(caption) - set(ignored)
        num_captions += bool(words)
        for word in words:
            document_frequency[word] += 1
    return document_frequency, num_captions


SIZES = [(1, 1, 2), (7, 1, 50), (5, 30, 7), (64, 20, 997)]


@pytest.mark.parametrize("ignored", [(), (0,), (1, 9999)], ids=str)
@pytest.mark.parametrize(("batch", "length", "vocab"), SIZES)
def test_counts_equal_those_of_python_sets(batch, length, vocab, ignored):
    statistics = TokenStatistics(vocab, ignored)
    batches = [captions(batch, length, vocab, seed) for seed in range(3)]
    for tokens in batches:
        statistics.update(tokens)
    document_frequency, num_captions = counted_with_sets(batches, vocab, ignored)
    assert statistics.document_frequency.tolist() == document_frequency
    assert statistics.num_captions == num_captions


def test_idf_is_the_logarithm_of_captions_over_document_frequency_each_plus_one():
    statistics = TokenStatistics(50, ignored_tokens=[0])
    batches = [captions(6, 9, seed=seed) for seed in range(4)]
    for tokens in batches:
        statistics.update(tokens)
    document_frequency, num_captions = counted_with_sets(batches, 50, [0])
    expected = [math.log((num_captions + 1) / (df + 1)) for df in document_frequency]
    expected[0] = 0.0
    torch.testing.assert_close(statistics.idf(), torch.tensor(expected), atol=1e-7, rtol=1e-6)
    assert statistics.idf().dtype == torch.float32


def test_counts_stay_exact_beyond_what_a_float_can_hold():
    statistics = TokenStatistics(10)
    statistics.document_frequency.fill_(10**12)
    statistics.num_captions.fill_(2**60)
    statistics.update(torch.tensor([[1, 2], [2, 3]]))
    assert statistics.document_frequency[:5].tolist() == [10**12, 10**12 + 1, 10**12 + 2, 10**12 + 1, 10**12]
    assert statistics.num_captions.item() == 2**60 + 2


def test_a_state_dict_brings_the_counts_back():
    statistics, restored = TokenStatistics(50, [0]), TokenStatistics(50, [0])
    statistics.update(captions(6, 9))
    state = statistics.state_dict()
    assert state.keys() == {"num_captions", "document_frequency"}
    assert {value.dtype for value in state.values()} == {torch.int64}
    restored.load_state_dict(state)
    restored.update(captions(6, 9, seed=1))
    statistics.update(captions(6, 9, seed=1))
    assert torch.equal(restored.document_frequency, statistics.document_frequency)
    assert torch.equal(restored.num_captions, statistics.num_captions)
    assert torch.equal(restored.idf(), statistics.idf())


@pytest.mark.parametrize("cast", [torch.nn.Module.bfloat16, torch.nn.Module.half, torch.nn.Module.double])
def test_no_cast_of_the_model_touches_the_counts(cast):
    statistics = TokenStatistics(50, [0])
    statistics.document_frequency.fill_(10**12 + 1)
    statistics.num_captions.fill_(10**12 + 3)
    cast(statistics)
    assert statistics.document_frequency.dtype == statistics.num_captions.dtype == torch.int64
    assert (statistics.document_frequency == 10**12 + 1).all()
    assert statistics.idf().dtype == torch.float32


@pytest.mark.parametrize(("token", "row", "column"), [(50, 0, 0), (-1, 2, 4), (10**9, 5, 1)])
def test_an_id_outside_the_vocabulary_is_named_with_its_caption_and_the_batch_not_counted(token, row, column):
    statistics, tokens = TokenStatistics(50), captions(6, 9)
    statistics.update(tokens)
    tokens[row, column] = token
    with pytest.raises(InputError, match=rf"caption {row} of the batch holds token id {token}\b.*ends at 49\b"):
        statistics.update(tokens)
    assert statistics.num_captions == 6


def count_as_a_rank(batch_sizes):
    dist.init_process_group("gloo")
    statistics, counted = TokenStatistics(50, [0]), []
    for step in range(3):
        batches = [captions(size, 9, seed=10 * step + rank) for rank, size in enumerate(batch_sizes)]
        assert statistics.update(batches[dist.get_rank()]) == sum(batch_sizes)
        counted += batches
    document_frequency, num_captions = counted_with_sets(counted, 50, [0])
    assert statistics.document_frequency.tolist() == document_frequency
    assert statistics.num_captions == num_captions
    dist.destroy_process_group()
    print("equal")


@pytest.mark.parametrize("batch_sizes", [(4, 4), (1, 7)], ids=str)
def test_two_ranks_count_what_one_would(batch_sizes, tmp_path):
    runs = run_ranks(count_as_a_rank, batch_sizes, world_size=2, cwd=tmp_path)
    assert [(run.returncode, run.output.strip()) for run in runs] == [(0, "equal")] * 2


def test_openclips_tokenizer_adds_no_other_ids_to_a_caption():
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    words = set(tokenizer.encode("a red cat"))
    assert set(tokenizer("a red cat")[0].tolist()) - words == set(special_token_ids(tokenizer))


def test_only_words_of_a_hugging_face_tokenizers_captions_are_counted(tmp_path):
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    write_tokenizer(tmp_path, ["a", "the", "red", "blue", "cat", *special, "dog", "sits", "on", "mat"])
    tokenizer = HFTokenizer(str(tmp_path), context_length=8)
    assert special_token_ids(tokenizer) == (0, 5, 6, 7, 8)  # its own, and 0
    statistics = TokenStatistics(13, special_token_ids(tokenizer))
    statistics.update(tokenizer(["the cat sits on the mat", "dog", "unheard of"]))
    assert statistics.num_captions == 2
    assert statistics.document_frequency.tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1]
