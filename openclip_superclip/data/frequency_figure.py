"""The figure of `superclip frequencies --show`: how many tokens are how common."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ..atomic_files import whole_file
from ..method.idf import idf
from .frequency_file import Frequencies


def draw(path: Path, frequencies: Frequencies) -> None:
    """Draws two histograms: of captions a token, on a logarithmic axis, and of the weights that follow."""
    counts = frequencies.document_frequency
    held = counts[counts > 0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.hist(held.double().log10().numpy(), bins=40, color="#d1495b")
    left.set_xlabel("captions that hold the token, log10")
    right.hist(idf(held, frequencies.num_captions).numpy(), bins=40, color="#d1495b")
    right.set_xlabel("weight (IDF)")
    for axes in (left, right):
        axes.set_ylabel("tokens")
        axes.grid(alpha=0.3)
    figure.suptitle(
        f"{frequencies.num_captions:,} captions ({frequencies.captions}); {len(held):,} of {len(counts):,} tokens held",
        fontsize=9,
    )
    with whole_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
