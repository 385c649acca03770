"""The class head's input from OpenCLIP's vision towers, through their own
`forward_intermediates`."""

from typing import NamedTuple

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import InputError

NEVER_NORMALISED = ("Hiera", "HieraDet")  # timm's towers without a final norm, which they assert


class PatchTokens(NamedTuple):
    """The patch tokens of a vision tower."""

    width: int  # W, the number of channels
    layout: str  # OpenCLIP's output_fmt: NLC for token towers, NCHW for convolutional ones
    has_final_norm: bool  # whether the tower's last LayerNorm applies to patch tokens
    description: str


def patch_tokens(visual: nn.Module) -> PatchTokens:
    """Returns how to read the patch tokens of an OpenCLIP vision tower; InputError if it has
    none."""
    if isinstance(visual, VisionTransformer):
        # An attentional pooler comes before the last norm, which then applies to pooled tokens: [B,
        # queries, E].
        is_pooled_first = visual.attn_pool is not None and visual.attn_pool_contrastive is None
        where = "before the attentional pooler" if is_pooled_first else "after the final LayerNorm"
        return PatchTokens(
            width=visual.transformer.width,
            layout="NLC",
            has_final_norm=not is_pooled_first,
            description=f"ViT patch tokens {where}",
        )
    if isinstance(visual, ModifiedResNet):
        return PatchTokens(
            width=visual.attnpool.k_proj.in_features,
            layout="NCHW",
            has_final_norm=False,
            description="ResNet's last feature map",
        )
    trunk = getattr(visual, "trunk", None)
    has_features = hasattr(trunk, "forward_intermediates") and getattr(trunk, "feature_info", None)
    if isinstance(visual, TimmModel) and has_features:
        layout = "NLC" if hasattr(trunk, "num_prefix_tokens") else "NCHW"
        has_final_norm = type(trunk).__name__ not in NEVER_NORMALISED
        description = f"last features of timm's {type(trunk).__name__}"
        if not has_final_norm or isinstance(getattr(trunk, "norm", None), nn.Identity):
            description += ", not normalised"
        width = trunk.feature_info[-1]["num_chs"]
        return PatchTokens(width, layout, has_final_norm, description)
    tower = type(visual if trunk is None else trunk).__name__
    raise InputError(
        f"--superclip needs a vision tower with patch features; {tower} has none (no "
        "forward_intermediates): use a ViT, ResNet, ConvNeXt or another timm tower that has them"
    )


def head_width(visual: nn.Module, tokens: PatchTokens, head_input: str) -> int:
    """Returns the width of the class head's input, one of HEAD_INPUTS; InputError if the tower
    does not have it."""
    if head_input == "patches":
        return tokens.width
    if isinstance(visual, VisionTransformer) and not (
        visual.attn_pool is None and visual.pool_type == "none"
    ):
        width = visual.proj.shape[0]
    elif isinstance(visual, TimmModel) and not hasattr(visual.head, "pool"):
        width = getattr(visual.trunk, "head_hidden_size", None) or visual.trunk.num_features
    else:
        raise InputError(
            f"--superclip-head-input {head_input}: this {type(visual).__name__} has no pooled "
            "vector before the projection: leave the flag out, or use a ViT with pool_type tok or "
            "avg"
        )
    return width


def head_input_map(
    visual: nn.Module, tokens: PatchTokens, image: Tensor, head_input: str
) -> Tensor:
    """Returns the class head's input at each patch, [B, W, h, w]; the mean is its input for the
    whole image.

    For "pooled" there is a single vector, h = w = 1.
    """
    if head_input == "pooled":
        _, _, pooled = encode_image(visual, tokens, image, "pooled")
        return pooled[:, :, None, None]
    output = visual.forward_intermediates(
        image,
        indices=1,
        normalize_intermediates=tokens.has_final_norm,
        intermediates_only=True,
        output_fmt="NCHW",
    )
    return output["image_intermediates"][-1]


class Reading:
    """Receives the class head's input when passed, with the image, to a tower changed by
    `make_readable`.

    A plain object instead of a list or dict, because wrappers such as FSDP would copy these.
    """

    def __init__(self, tokens: PatchTokens, head_input: str):
        self.tokens = tokens
        self.head_input = head_input
        self.vector = None  # float32 [B, W], after the call


class _Readable:
    """A vision tower that also accepts a `Reading`.

    The output is unchanged, for hooks and wrappers."""

    def forward(self, image: Tensor, reading: Reading | None = None):
        if reading is None:
            return super().forward(image)
        features, pooled_tokens, reading.vector = encode_image(
            self, reading.tokens, image, reading.head_input
        )
        return (features, pooled_tokens) if getattr(self, "output_tokens", False) else features


def make_readable(visual: nn.Module) -> None:
    """Makes an OpenCLIP vision tower accept a `Reading` in addition to the image; without one,
    nothing changes."""
    kind = type(visual)
    visual.__class__ = type(kind.__name__, (_Readable, kind), {"__module__": kind.__module__})


def encode_image(
    visual: nn.Module, tokens: PatchTokens, image: Tensor | dict, head_input: str = "patches"
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns the outputs of a tower, exactly those of `visual(image)`, and the class head's input,
    float32 [B, W].

    The outputs are image features [B, E] and CoCa's pooled tokens [B, Q, E], if the tower has them.
    Every branch computes the features last: FSDP gathers the tower's weights when their gradient
    enters the tower, and autograd starts with the latest results.
    """
    reads_pooled = head_input == "pooled"
    if isinstance(visual, VisionTransformer) and (reads_pooled or visual.output_tokens):
        return _read_vit(visual, tokens, image, head_input)
    if isinstance(image, dict):  # of OpenCLIP 4's NaFlex
        return _read_naflex(visual, image, head_input)
    if isinstance(visual, TimmModel) and reads_pooled:
        return _read_timm(visual, image)
    output = visual.forward_intermediates(
        image, indices=1, normalize_intermediates=tokens.has_final_norm, output_fmt=tokens.layout
    )
    return output["image_features"], None, _mean(output["image_intermediates"][-1], tokens.layout)


def _read_vit(
    visual, tokens: PatchTokens, image: Tensor, head_input: str
) -> tuple[Tensor, Tensor, Tensor]:
    output = visual.forward_intermediates(
        image, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
    )
    patches = output["image_intermediates"][-1]  # [B, N, W]
    every_token = torch.cat([output["image_intermediates_prefix"][-1], patches], dim=1)
    pooled, pooled_tokens = visual._pool(every_token)
    if head_input == "pooled":
        vector = _vector(pooled)
    else:
        vector = _mean(visual.ln_post(patches) if tokens.has_final_norm else patches, "NLC")
    return pooled if visual.proj is None else pooled @ visual.proj, pooled_tokens, vector


def _read_timm(visual, image: Tensor) -> tuple[Tensor, None, Tensor]:
    trunk = visual.trunk
    final = trunk.forward_features(image)
    pooled = trunk.forward_head(final, pre_logits=True)
    features = visual.head(trunk.forward_head(final) if trunk.num_classes else pooled)
    return features, None, _vector(pooled)


def _read_naflex(visual, image: dict, head_input: str) -> tuple[Tensor, None, Tensor]:
    """Supports the patches of OpenCLIP 4's NaFlex, with images of different shapes: the mean
    excludes padding."""
    trunk = visual.trunk
    read = trunk.forward_features(
        image["patches"], patch_coord=image["patch_coord"], patch_valid=image["patch_valid"]
    )
    tokens = read["patches"]  # [B, prefix + N, W]
    valid = read["patch_valid"]  # [B, N]
    patches = tokens[:, trunk.num_prefix_tokens :]
    num_patches = valid.sum(dim=1, keepdim=True).clamp_min(1)
    patch_mean = (patches.float() * valid.unsqueeze(2)).sum(dim=1) / num_patches
    pooled = trunk.forward_head(tokens, pre_logits=True, patch_valid=valid)
    features = visual.head(
        trunk.forward_head(tokens, patch_valid=valid) if trunk.num_classes else pooled
    )
    return features, None, _vector(pooled) if head_input == "pooled" else patch_mean


def _vector(pooled: Tensor) -> Tensor:
    """Returns the pooled vector, float32 [B, W]; some poolers return one query, [B, 1, W]."""
    return pooled.reshape(len(pooled), -1).float()


def _mean(patches: Tensor, layout: str) -> Tensor:
    return patches.mean(dim=1 if layout == "NLC" else (2, 3), dtype=torch.float32)
