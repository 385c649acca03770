"""Reads the patch tokens of OpenCLIP's vision towers through the towers' own `forward_intermediates`."""

from typing import NamedTuple

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import InputError

NEVER_NORMALISED = ("Hiera", "HieraDet")  # timm's towers that give their features as they are, and assert it


class PatchTokens(NamedTuple):
    """What a vision tower offers to the class head."""

    width: int  # W, channels of a patch token
    layout: str  # OpenCLIP's output_fmt: NLC for token towers, NCHW for convolutional ones
    has_final_norm: bool  # whether the tower's last LayerNorm fits its patch tokens
    description: str


def patch_tokens(visual: nn.Module) -> PatchTokens:
    """Returns how to read the patch tokens of an OpenCLIP vision tower; InputError where it has none."""
    if isinstance(visual, VisionTransformer):
        # An attentional pooler comes before the last norm, which then fits the pooled tokens: [B, queries, E].
        pooled_before_norm = visual.attn_pool is not None and visual.attn_pool_contrastive is None
        norm = "before the attentional pooler" if pooled_before_norm else "after the final LayerNorm"
        return PatchTokens(visual.transformer.width, "NLC", not pooled_before_norm, f"ViT patch tokens {norm}")
    if isinstance(visual, ModifiedResNet):
        return PatchTokens(visual.attnpool.k_proj.in_features, "NCHW", False, "ResNet's last feature map")
    trunk = getattr(visual, "trunk", None)
    has_features = hasattr(trunk, "forward_intermediates") and getattr(trunk, "feature_info", None)
    if isinstance(visual, TimmModel) and has_features:
        layout = "NLC" if hasattr(trunk, "num_prefix_tokens") else "NCHW"
        has_final_norm = _name(trunk) not in NEVER_NORMALISED
        what = f"last features of timm's {_name(trunk)}{'' if has_final_norm else ', not normalised'}"
        return PatchTokens(trunk.feature_info[-1]["num_chs"], layout, has_final_norm, what)
    raise InputError(
        f"--superclip needs a vision tower with patch features; {_name(visual if trunk is None else trunk)} has none "
        "(no forward_intermediates): choose a ViT, ResNet, ConvNeXt or another timm tower that has them"
    )


def encode_image(visual: nn.Module, tokens: PatchTokens, image: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the image features [B, E], exactly `visual(image)`, and the mean patch token, float32 [B, W]."""
    output = visual.forward_intermediates(
        image, indices=1, normalize_intermediates=tokens.has_final_norm, output_fmt=tokens.layout
    )
    return output["image_features"], _mean(output["image_intermediates"][-1], tokens.layout)


def patch_map(visual: nn.Module, tokens: PatchTokens, image: Tensor) -> Tensor:
    """Returns the patch tokens where they lie in the picture, [B, W, h, w]; their mean is `encode_image`'s."""
    output = visual.forward_intermediates(
        image,
        indices=1,
        normalize_intermediates=tokens.has_final_norm,
        intermediates_only=True,
        output_fmt="NCHW",
    )
    return output["image_intermediates"][-1]


def encode_image_with_pooled_tokens(visual: VisionTransformer, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns image features [B, E], CoCa's pooled tokens [B, Q, E] and the mean patch token, float32 [B, W].

    The first two are exactly `visual(image)` of a tower with `output_tokens`.
    """
    output = visual.forward_intermediates(
        image, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
    )
    patches = output["image_intermediates"][-1]  # [B, N, W]
    pooled, tokens = visual._pool(torch.cat([output["image_intermediates_prefix"][-1], patches], dim=1))
    if visual.proj is not None:
        pooled = pooled @ visual.proj
    if patch_tokens(visual).has_final_norm:
        patches = visual.ln_post(patches)
    return pooled, tokens, _mean(patches, "NLC")


def encode_image_with_pooled(visual: VisionTransformer, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns image features [B, E], the pooled vector [B, W] and the mean patch token [B, W]."""
    output = visual.forward_intermediates(
        image, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
    )
    patches = output["image_intermediates"][-1]  # [B, N, W]
    pooled, _ = visual._pool(torch.cat([output["image_intermediates_prefix"][-1], patches], dim=1))
    features = pooled @ visual.proj if visual.proj is not None else pooled
    return features, pooled.float(), _mean(visual.ln_post(patches), "NLC")


def _mean(patches: Tensor, layout: str) -> Tensor:
    return patches.mean(dim=1 if layout == "NLC" else (2, 3), dtype=torch.float32)


def _name(module: nn.Module) -> str:
    return type(module).__name__
