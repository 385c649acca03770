"""Draws the heat maps of `superclip words --heatmap`."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from ..files import write_bytes
from ..pages import png, pyplot
from .tagger import Seen

SIDE = 448  # pixels of a drawn image: higher than the resolution of most models
COLUMNS = 6
FAINTEST = 0.1  # fraction of the highest peak: words with lower peaks are not scaled to full brightness


def draw(path: Path, image: Image.Image, words: Sequence[Seen], preprocess_cfg: PreprocessCfg) -> None:
    """Draws the image as cropped for the model, and one heat map per word.

    A heat map's brightness is the word's score at each patch, relative to its peak and interpolated.
    """
    plt = pyplot()
    shown = as_model_sees(image, preprocess_cfg)  # [H, W, 3]
    rows, columns = math.ceil((1 + len(words)) / COLUMNS), min(1 + len(words), COLUMNS)
    height = shown.shape[0] / shown.shape[1]
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.3 * columns, (2.3 * height + 0.55) * rows), squeeze=False, layout="constrained"
    )
    panels = grid.flatten()
    for panel in panels:
        panel.set_axis_off()
    panels[0].imshow(shown)
    panels[0].set_title("as the model sees it", fontsize=10)
    brightest = max(seen.peak for seen in words)
    grey = shown.mean(axis=2, keepdims=True)
    for panel, seen in zip(panels[1:], words, strict=False):
        heat = F.interpolate(seen.map[None, None], shown.shape[:2], mode="bilinear")[0, 0].numpy()
        light = (heat / max(seen.peak, FAINTEST * brightest, 1e-12)).clip(0, 1)[..., None]  # 1: colour, 0: dark
        glow = plt.get_cmap("inferno")(0.05 + 0.9 * light[..., 0])[..., :3]
        panel.imshow((0.5 - 0.2 * light) * glow + (0.35 + 0.35 * light) * (grey * (1 - light) + shown * light))
        panel.set_title(f"{seen.word}\n{seen.score:.1%}, at best {seen.peak:.0%}", fontsize=10)
    write_bytes(path, png(figure, bbox_inches="tight"))


def as_model_sees(image: Image.Image, preprocess_cfg: PreprocessCfg) -> np.ndarray:
    """Returns the image after the model's resizing and cropping, at a higher resolution: [H, W, 3] in [0, 1]."""
    size = preprocess_cfg.size if isinstance(preprocess_cfg.size, tuple | list) else (preprocess_cfg.size,) * 2
    finer = math.ceil(SIDE / max(size))
    config = replace(
        preprocess_cfg, size=tuple(finer * side for side in size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    return image_transform_v2(config, is_train=False)(image).permute(1, 2, 0).clamp(0, 1).numpy()
