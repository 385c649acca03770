"""Document frequencies of the tokens, and their IDF weights."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..errors import InputError
from . import distributed


def idf(document_frequency: Tensor, num_captions: Tensor | int) -> Tensor:
    """Returns the weights max(0, log(|D| / (1 + df))), float32 [V] (paper, eq. 4).

    Without the maximum, a token in every caption would have a weight just below 0.

    Args:
        document_frequency: int64 [V], number of captions that contain the token.
        num_captions: |D|; online, the number of captions so far plus one, so that no weight is
            negative.
    """
    ratio = num_captions / (document_frequency + 1).to(_dtype(document_frequency))
    return ratio.log().clamp_min(0).float()


class FixedIDF(nn.Module):
    """IDF weights over a whole data set, float32 [V]: 0 for tokens that are not `counted`.

    `document_frequency`, int64 [V], is the number of captions that contain each token.

    The counts are int64 buffers: they are saved with the model, so that its commands weight words
    as training did, and casts of the model do not change them. A run reads them from its file at
    every start.
    """

    def __init__(self, document_frequency: Tensor, num_captions: int | Tensor, counted: Tensor):
        super().__init__()
        num_tokens = len(document_frequency)
        vocab_size = len(counted)
        if document_frequency[vocab_size:].any():
            raise InputError(
                f"--superclip-idf: the file counts {num_tokens:,} tokens; the text tower's "
                f"vocabulary ends at {vocab_size - 1}"
            )
        padded = nn.functional.pad(
            document_frequency[:vocab_size], (0, max(0, vocab_size - num_tokens))
        )
        self.register_buffer("num_captions", torch.as_tensor(num_captions, device=padded.device))
        self.register_buffer("document_frequency", padded)
        self.register_buffer("counted", counted.clone(), persistent=False)

    def forward(self) -> Tensor:
        return idf(self.document_frequency, self.num_captions) * self.counted


class TokenStatistics(nn.Module):
    """Counts the captions of all ranks that contain each token of the vocabulary (document
    frequency).

    The counts are int64 buffers: they are saved with the model, exact, and unchanged by casts of
    the model. Ids in `ignored_tokens` are not counted and have weight 0; captions that contain only
    such ids are not counted.

    Args:
        vocab_size: V, the number of token ids.
        ignored_tokens: ids that are not words, such as start, end and padding.
    """

    def __init__(self, vocab_size: int, ignored_tokens: Iterable[int] = ()):
        super().__init__()
        self.vocab_size = vocab_size
        counted = torch.ones(vocab_size, dtype=torch.bool)
        ignored = {token for token in ignored_tokens if token < vocab_size}
        counted[sorted(ignored)] = False
        self.num_ignored = len(ignored)
        self.register_buffer("counted", counted, persistent=False)  # bool [V]
        self.register_buffer("num_captions", torch.zeros((), dtype=torch.int64))
        self.register_buffer("document_frequency", torch.zeros(vocab_size, dtype=torch.int64))
        # captions with words, and all captions, since the last report
        self.register_buffer("lately", torch.zeros(2, dtype=torch.int64), persistent=False)
        self._checked_ids = False

    def update(self, tokens: Tensor) -> Tensor:
        """Adds a batch of captions, tokens [B, L], and returns the number of captions on all ranks
        (int64 scalar).

        Collective with torch.distributed or Horovod: every rank must call it; batch sizes may
        differ. Raises InputError for an id outside the vocabulary.
        """
        return self.finish(self.begin(tokens))

    def begin(self, tokens: Tensor) -> Callable[[], Tensor]:
        """Counts tokens [B, L] on this rank and starts the sum over the ranks; returns what waits
        for it, for `finish`."""
        # in a graph, the text tower's embedding refuses wrong ids
        if not torch.compiler.is_compiling():
            self._check_ids(tokens)
        tokens, _ = tokens.long().sort(dim=1)
        counts = self.counted[tokens]  # [B, L]
        counts[:, 1:] &= tokens[:, 1:] != tokens[:, :-1]  # a repeated token counts once
        # [V + 2]: captions per token, captions with any token, captions
        message = torch.zeros(self.vocab_size + 2, dtype=torch.int64, device=tokens.device)
        message.scatter_add_(0, tokens.flatten(), counts.flatten().long())
        message[-2] = counts.any(dim=1).sum()
        message[-1] = len(tokens)
        return distributed.begin_sum(message, "token counts")

    def finish(self, update: Callable[[], Tensor]) -> Tensor:
        """Adds the counts of all ranks and returns the number of captions on all ranks (int64
        scalar)."""
        message = update()
        self.document_frequency += message[:-2]
        self.num_captions += message[-2]
        self.lately += message[-2:]
        return message[-1]

    def report(self, weights: Tensor) -> str:
        """Returns the mean of `weights`, float32 [V], over the words of all captions so far, and
        how many captions since the last report had no words."""
        occurrences = self.document_frequency.cpu().double()
        mean = (weights.cpu() * occurrences).sum() / occurrences.sum()
        with_words, captions = self.lately.tolist()
        self.lately.zero_()
        return (
            f"mean IDF weight of a word {mean:.2f}; {captions - with_words:,} of {captions:,} "
            "captions without words"
        )

    def idf(self) -> Tensor:
        """Returns the weights log((N + 1) / (df + 1)), float32 [V], 0 for ignored tokens (paper,
        eq. 4, online form).

        Equals the authors' running means in float64, computed from integer counts.
        """
        return idf(self.document_frequency, self.num_captions + 1) * self.counted

    def _check_ids(self, tokens: Tensor) -> None:
        """Raises InputError for an id outside the vocabulary; on accelerators, only the first
        batch is checked."""
        if self._checked_ids and tokens.device.type != "cpu":
            return
        self._checked_ids = True
        wrong = (tokens < 0) | (tokens >= self.vocab_size)
        if wrong.any():
            caption, position = wrong.nonzero()[0].tolist()
            raise InputError(
                f"caption {caption} of the batch holds token id "
                f"{tokens[caption, position].item()}, but the text tower's vocabulary ends at "
                f"{self.vocab_size - 1}: tokenizer and text_cfg.vocab_size do not match"
            )


def special_token_ids(tokenizer) -> tuple[int, ...]:
    """Returns the ids that an OpenCLIP tokenizer adds to every caption: start, end, padding and the
    like.

    0 is always included: OpenCLIP's own tokenizer pads with it (there it is also the token "!"),
    and so does OpenCLIP's wrapper of Hugging Face tokenizers if it strips the separator.
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # OpenCLIP's Hugging Face wrappers
    return tuple(sorted({0, *inner.all_special_ids}))


def _dtype(counts: Tensor) -> torch.dtype:
    return torch.float32 if counts.device.type == "mps" else torch.float64
