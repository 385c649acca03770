"""How well the class head knows each word: its probabilities in a sample of the captions of an epoch."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import ranks

SAMPLE = 64  # captions of each batch and rank that are observed


class EpochWords(NamedTuple):
    """What the observed captions of an epoch show of every token; a share is its part of the head's softmax."""

    captions: Tensor  # int64 [V], observed captions that contain it
    share_where_label: Tensor  # float32 [V], the mean over the images of those; NaN if there is none
    share_where_not: Tensor  # float32 [V], the mean over all other images; NaN if there is none
    num_captions: int  # observed, without those that contain no word
    num_trained: int  # captions trained on, counted in the same way


class WordKnowledge:
    """Sums the head's probabilities over the steps of an epoch, on the device.

    The sums are no buffers of the model: they are not saved, no cast of the model reaches them, and a run that resumes
    at the start of an epoch needs none. They are float64: a rare word's 1e-8 would be lost in a large float32 sum.

    Args:
        counted: bool [V], the tokens that are words.
    """

    def __init__(self, counted: Tensor):
        self.counted = counted
        self.sums = None  # float64 [3 * V + 2]: captions, shares where label, shares where not; observed, trained

    @torch.no_grad()
    def observe(self, head: nn.Module, head_input: Tensor, tokens: Tensor) -> None:
        """Adds the first captions of a batch: head_input [B, W] and tokens [B, L]."""
        self.counted = self.counted.to(tokens.device)
        has_word = self.counted[tokens].any(dim=1)  # [B]
        observed = has_word[:SAMPLE]
        shares = head.logits(head_input[:SAMPLE]).float().softmax(dim=1) * observed.unsqueeze(1)  # [S, V]
        labels = torch.zeros_like(shares).scatter_(1, tokens[:SAMPLE].long(), 1.0) * self.counted
        shares_of_labels = (shares * labels).sum(dim=0)
        shares_of_others = (shares * (1.0 - labels)).sum(dim=0)  # exactly 0 for a token of every caption
        totals = torch.stack([observed.sum(), has_word.sum()]).float()
        sums = torch.cat([labels.sum(dim=0), shares_of_labels, shares_of_others, totals]).to(_dtype(shares))
        self.sums = sums if self.sums is None else self.sums.add_(sums)

    def take(self, device: torch.device) -> EpochWords | None:
        """Returns the means over all ranks since the last call, and starts again; None if no caption was observed.

        Collective if several ranks train together: each calls it, at the end of an epoch, with its model's device.
        """
        sums, self.sums = self.sums, None
        if sums is None:
            sums = torch.zeros(3 * len(self.counted) + 2, device=device)
            sums = sums.to(_dtype(sums))
        if ranks.world_size() > 1:
            ranks.begin_sum(sums, "words of an epoch").wait()
        sums = sums.cpu().double()
        num_captions, num_trained = map(int, sums[-2:])
        if not num_captions:
            return None
        captions, of_labels, of_others = sums[:-2].view(3, -1)
        where_label, where_not = of_labels / captions, of_others / (num_captions - captions)  # 0 / 0 is NaN
        return EpochWords(captions.long(), where_label.float(), where_not.float(), num_captions, num_trained)


def _dtype(sums: Tensor) -> torch.dtype:
    return torch.float32 if sums.device.type == "mps" else torch.float64
