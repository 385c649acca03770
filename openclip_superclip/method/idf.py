"""The weights of words: inverse document frequency, while the captions are counted or over a whole data set."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import InputError


def idf(document_frequency: Tensor, num_captions: Tensor | int) -> Tensor:
    """Returns the weights max(0, log(|D| / (1 + df))), float32 [V] (paper, eq. 4).

    A token that every caption holds would have a weight just below 0.

    Args:
        document_frequency: int64 [V], captions that hold the token.
        num_captions: |D|; online, the captions seen so far and one more, so that no weight falls below 0.
    """
    on_mps = document_frequency.device.type == "mps"
    ratio = num_captions / (document_frequency + 1).to(torch.float32 if on_mps else torch.float64)
    return ratio.log().clamp_min(0).float()


@dataclass(frozen=True)
class DocumentFrequency:
    """How many captions hold each token, int64 [V], and how many captions there are."""

    document_frequency: Tensor = field(repr=False)
    num_captions: int


class FixedIDF(nn.Module):
    """The weights of the words over a whole data set, float32 [V]: those of `counted` tokens, 0 for the others.

    The buffer holds counts: no cast of the model touches them. It is not saved, the file is read at every start.
    """

    def __init__(self, frequencies: DocumentFrequency, counted: Tensor):
        super().__init__()
        found = frequencies.document_frequency
        vocab_size = len(counted)
        if found[vocab_size:].any():
            raise InputError(
                f"--superclip-idf: the file counts {len(found):,} tokens, the text tower's vocabulary ends at "
                f"{vocab_size - 1}"
            )
        padded = nn.functional.pad(found[:vocab_size], (0, max(0, vocab_size - len(found))))
        self.num_captions = frequencies.num_captions
        self.register_buffer("document_frequency", padded, persistent=False)
        self.register_buffer("counted", counted.clone(), persistent=False)

    def forward(self) -> Tensor:
        return idf(self.document_frequency, self.num_captions) * self.counted
