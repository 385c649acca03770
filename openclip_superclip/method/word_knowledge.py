"""How well the head knows each word: sums, over the captions of an epoch, of the shares that it gives the words."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import ranks


class EpochWords(NamedTuple):
    """What an epoch's captions tell of every token; a share is a token's part of the softmax over the vocabulary."""

    captions: Tensor  # int64 [V], that hold it
    share_where_label: Tensor  # float32 [V], the mean over the pictures of those; NaN where there is none
    share_where_not: Tensor  # float32 [V], the mean over all other pictures; NaN where there is none
    num_captions: int  # trained on, without those that hold no word


class WordSums:
    """Adds up shares over the steps of an epoch, on the device.

    No buffers of the model: they are not saved, no cast of the model reaches them, and a run that resumes where an
    epoch starts needs none. A step's sums are float32, an epoch's float64: 1e8 shares of a frequent word would be lost
    in a float32 sum that is already large.

    Args:
        counted: bool [V], the tokens that are words.
    """

    def __init__(self, counted: Tensor):
        self.counted = counted
        self.sums = None  # float64 [3 * V + 1]: captions, shares where label, shares; captions in all

    def add(self, labels: Tensor, label_shares: Tensor, shares: Tensor, trained: Tensor) -> None:
        """Adds a batch.

        Args:
            labels: int64 [B, L], sorted by row; a repeated one counts once.
            label_shares: float32 [B, L], the labels' shares of their picture.
            shares: float32 [V], every token's shares, summed over the pictures that are trained on.
            trained: bool [B], the captions that are: those with a word that weighs anything.
        """
        self.counted = self.counted.to(labels.device)
        counts = self.counted[labels] & trained.unsqueeze(1)
        counts[:, 1:] &= labels[:, 1:] != labels[:, :-1]
        captions, of_labels = torch.zeros_like(shares), torch.zeros_like(shares)
        captions.scatter_add_(0, labels.flatten(), counts.flatten().float())
        of_labels.scatter_add_(0, labels.flatten(), (label_shares * counts).flatten())
        batch = torch.cat([captions, of_labels, shares, trained.sum().float().view(1)])
        if self.sums is None:
            self.sums = batch.to(self._dtype(batch))
        else:
            self.sums += batch

    def take(self, device: torch.device) -> EpochWords | None:
        """Returns the means over all ranks since the last call, and starts anew; None where no rank trained a caption.

        Collective where several ranks train together: each calls it, at an epoch's end, with its model's device.
        """
        sums, self.sums = self.sums, None
        if sums is None:
            empty = torch.zeros(3 * len(self.counted) + 1, device=device)
            sums = empty.to(self._dtype(empty))
        if ranks.world_size() > 1:
            ranks.begin_sum(sums, "words of an epoch").wait()
        sums = sums.cpu().double()
        num_captions = int(sums[-1])
        if not num_captions:
            return None
        captions, of_labels, shares = sums[:-1].view(3, -1)
        others = (shares - of_labels) / (num_captions - captions)
        return EpochWords(captions.long(), (of_labels / captions).float(), others.float(), num_captions)

    @staticmethod
    def _dtype(sums: Tensor) -> torch.dtype:
        return torch.float32 if sums.device.type == "mps" else torch.float64
