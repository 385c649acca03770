"""The transform from an image to the input of a model."""

from collections.abc import Callable

from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn


def preprocessing(model: nn.Module, **changes) -> Callable:
    """Returns an OpenCLIP model's own transform for evaluation, from a PIL image to a tensor [3, H,
    W], after `changes` to its preprocess_cfg."""
    config = PreprocessCfg(**model.visual.preprocess_cfg | changes)
    return image_transform_v2(config, is_train=False)
