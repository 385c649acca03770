"""Heat maps of words: images with one panel per word, bright where the class head sees it."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from open_clip.utils import to_2tuple
from PIL import Image
from torch import nn

from ..evaluation.preprocessing import preprocessing
from ..files import write_bytes
from ..rendering import png, pyplot
from .tagger import SeenWord

SIDE = 448  # pixels of a drawn image: higher than the resolution of most models
COLUMNS = 6
# fraction of the highest peak: words with lower peaks are not scaled to full brightness
FAINTEST = 0.1


def draw_heat_map(
    path: Path, image: Image.Image, words: Sequence[SeenWord], model: nn.Module
) -> None:
    """Draws the image as cropped for the model, and one heat map per word.

    A heat map's brightness is the word's score at each patch, relative to its peak and
    interpolated.
    """
    plt = pyplot()
    shown = _as_model_sees(image, model)  # [H, W, 3]
    num_panels = 1 + len(words)
    rows = math.ceil(num_panels / COLUMNS)
    columns = min(num_panels, COLUMNS)
    height = shown.shape[0] / shown.shape[1]
    size = (2.3 * columns, (2.3 * height + 0.55) * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for panel in grid.flat:
        panel.set_axis_off()
    first, *others = grid.flat
    first.imshow(shown)
    first.set_title("as the model sees it", fontsize=10)
    brightest = max(word.peak for word in words)
    for panel, word in zip(others, words, strict=False):
        heat = F.interpolate(word.map[None, None], shown.shape[:2], mode="bilinear")[0, 0].numpy()
        peak = max(word.peak, FAINTEST * brightest, 1e-12)
        panel.imshow(_coloured(shown, (heat / peak).clip(0, 1)))
        panel.set_title(f"{word.word}\n{word.score:.1%}, at best {word.peak:.0%}", fontsize=10)
    write_bytes(path, png(figure))


def _coloured(shown: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns an image [H, W, 3], bright and in its colours where `heat` [H, W] is 1, dark and
    grey where it is 0."""
    glow = pyplot().get_cmap("inferno")(0.05 + 0.9 * heat)[..., :3]
    grey = shown.mean(axis=2, keepdims=True)
    light = heat[..., None]
    tinted = grey * (1 - light) + shown * light
    return (0.5 - 0.2 * light) * glow + (0.35 + 0.35 * light) * tinted


def _as_model_sees(image: Image.Image, model: nn.Module) -> np.ndarray:
    """Returns the image after the model's resizing and cropping, at a higher resolution: [H, W,
    3] in [0, 1]."""
    size = to_2tuple(model.visual.preprocess_cfg["size"])
    finer = math.ceil(SIDE / max(size))
    larger = tuple(finer * side for side in size)
    transform = preprocessing(model, size=larger, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return transform(image).permute(1, 2, 0).clamp(0, 1).numpy()
