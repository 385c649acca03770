"""From the probabilities of tokens to the shares of words."""

import torch
from torch import Tensor

from .lexicon import Lexicon

NUM_CANDIDATES = 512  # words of a picture that are looked at closely
SEEN_TOGETHER = 0.25  # of a word's share, at the patch where its tokens are seen best


class Shares:
    """How much of a caption each word is.

    The head was trained to predict ŷ, which divides 1 among the caption's tokens in proportion to their IDF weights w:
    p = softmax(logits) estimates it. A word's share is p of its token or, for a word of several,
    min(p_c / w_c) · Σ w_c over its tokens c: Σ p_c where they stand in the proportion that one word gives them, and
    what is more belongs to other words. A token of weight 0 (one that every caption holds) says nothing, and is left
    out of its words.

    Args:
        weights: w [V].
    """

    def __init__(self, lexicon: Lexicon, weights: Tensor):
        self.blank = lexicon.vocab_size
        self.weights = torch.cat([weights, weights.new_zeros(1)])  # [V + 1], 0 for the blank
        self.tokens = lexicon.tokens.where(self.weights[lexicon.tokens] > 0, self.blank)  # [N, L]
        self.lengths = (self.tokens != self.blank).sum(dim=1)  # [N]
        self.totals = self.weights[self.tokens].sum(dim=1)  # [N]

    def of(self, probabilities: Tensor, words: Tensor | list[int] | slice = slice(None)) -> Tensor:
        """Returns the shares of words, [..., V] to [..., N]."""
        tokens = self.tokens[words]
        per_weight = probabilities[..., tokens.clamp_max(self.blank - 1)] / self.weights[tokens]  # [..., N, L]
        lowest = per_weight.masked_fill(tokens == self.blank, torch.inf).amin(dim=-1)
        return (lowest * self.totals[words]).nan_to_num(nan=0.0)

    def of_each(self, probabilities: Tensor, rows: Tensor, words: Tensor) -> Tensor:
        """Returns the share of one word in one row each, [B, V] to [M]: of words[m] in probabilities[rows[m]]."""
        tokens = self.tokens[words]
        per_weight = probabilities[rows[:, None], tokens.clamp_max(self.blank - 1)] / self.weights[tokens]  # [M, L]
        lowest = per_weight.masked_fill(tokens == self.blank, torch.inf).amin(dim=-1)
        return (lowest * self.totals[words]).nan_to_num(nan=0.0)

    def highest(self, probabilities: Tensor, top: int) -> dict[int, float]:
        """Returns the `top` words and their shares of probabilities [V], each word as if it were alone."""
        shares, words = self.of(probabilities).topk(min(top, len(self.totals)))
        return dict(zip(words.tolist(), shares.tolist(), strict=True))

    def divide(self, probabilities: Tensor, at_patches: Tensor, top: int) -> dict[int, float]:
        """Returns the `top` words and their shares where words divide the tokens: what one takes no other has.

        The highest share comes first and, among those within a factor of two of it, the word of most tokens: little of
        "hamburger" is left for "burger". Tokens join to a word only where they are seen together: of "melon" and "rose"
        in one picture no "melrose" is made.

        Args:
            probabilities: [V], of the mean patch token.
            at_patches: [patches, V].
        """
        _, candidates = self.of(probabilities).topk(min(NUM_CANDIDATES, len(self.totals)))
        peaks = self.of(at_patches, candidates).amax(dim=0)
        peaks[self.lengths[candidates] == 1] = torch.inf
        left, found = probabilities.clone(), {}
        for _ in range(min(top, len(candidates))):
            shares = self.of(left, candidates)
            shares = shares.where(peaks >= SEEN_TOGETHER * shares, 0.0)
            near = (shares > 0) & (shares >= shares.max() / 2)
            if not near.any():
                break
            place = (self.lengths[candidates] * near + shares).argmax()  # a share is below 1, a length a whole number
            word, share = candidates[place].item(), shares[place].item()
            tokens = self.tokens[word][self.tokens[word] != self.blank]
            left[tokens] = (left[tokens] - share * self.weights[tokens] / self.totals[word]).clamp_min(0.0)
            peaks[place] = -1.0  # found
            found[word] = share
        return dict(sorted(found.items(), key=lambda item: -item[1]))
