"""Image features are the tower's own to the last bit, and the patch mean is
that of the patches alone."""

import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP
from open_clip.timm_model import TimmModel
from support import DATA, cases, input_error, parametrize, read_json
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import nn
from torch.testing import assert_close

from openclip_superclip.method.head_input import (
    Reading,
    encode_image,
    head_input_map,
    head_width,
    make_readable,
    patch_tokens,
)
from openclip_superclip.method.model import reaches_head

TEXT = {"context_length": 4, "vocab_size": 10, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
POOLER = {"attn_pooler_queries": 5, "attn_pooler_heads": 2}
# OpenCLIP's parallel and cascade pooling need width = embed_dim
SQUARE = {"width": 32, "head_width": 16}
TOWERS = read_json(DATA / "vision_towers.json")
EVERY_NATIVE = cases("vision_cfg", TOWERS["native"])
EVERY_INPUT = parametrize("head_input", ["patches", "pooled"])


def tower(vision_cfg):
    """The vision tower of a CLIP model of OpenCLIP's."""
    torch.manual_seed(0)
    return CLIP(embed_dim=32, vision_cfg=vision_cfg, text_cfg=TEXT).visual


def native_tower(vision_cfg):
    visual = tower({**VIT, **vision_cfg})
    nn.init.normal_(visual.ln_post.weight)  # a norm that is not the identity
    nn.init.normal_(visual.ln_post.bias)
    return visual


def images(visual):
    return torch.randn(3, 3, *visual.image_size, generator=torch.Generator().manual_seed(1))


def same_dropout(function, *args):
    torch.manual_seed(5)
    return function(*args)


@EVERY_NATIVE
@parametrize("training", [True, False], ids=["training", "evaluation"])
@EVERY_INPUT
def test_image_features_of_a_native_vit_are_its_own_to_the_last_bit(
    vision_cfg, training, head_input
):
    visual = native_tower(vision_cfg).train(training)
    tokens = patch_tokens(visual)
    features, _, vector = same_dropout(encode_image, visual, tokens, images(visual), head_input)
    own = same_dropout(visual, images(visual))
    own = own[0] if visual.output_tokens else own
    assert torch.equal(features, own)
    assert vector.shape == (3, head_width(visual, tokens, head_input))
    assert vector.dtype == torch.float32
    if head_input == "pooled":
        assert_close(vector @ visual.proj, own.reshape(3, -1))


@EVERY_NATIVE
def test_the_patch_mean_of_a_native_vit_leaves_the_class_token_out(vision_cfg):
    visual = native_tower(vision_cfg).train()
    seen = []
    visual.transformer.register_forward_hook(lambda module, args, output: seen.append(output))
    same_dropout(visual, images(visual))
    (tokens,) = seen  # [B, 1 + N, W], the class token first
    kept = 0.5 if "patch_dropout" in vision_cfg else 1
    num_patches = int(kept * visual.grid_size[0] * visual.grid_size[1])
    assert tokens.shape[1] == 1 + num_patches
    is_pooled_before_norm = vision_cfg.get("attentional_pool") is True
    patches = tokens[:, 1:] if is_pooled_before_norm else visual.ln_post(tokens[:, 1:])
    _, _, patch_mean = same_dropout(encode_image, visual, patch_tokens(visual), images(visual))
    assert_close(patch_mean, patches.mean(dim=1))


@cases("other", TOWERS["others"])
@EVERY_INPUT
@torch.no_grad()
def test_image_features_of_other_towers_are_their_own_or_the_heads_input_is_refused(
    other, head_input
):
    size, width, pooled = other["size"], other["width"], other["pooled"]
    visual = tower(other["vision_cfg"]).eval()
    tokens = patch_tokens(visual)
    assert tokens.width == width
    if head_input == "pooled" and pooled == "none":
        with input_error("^--superclip-head-input pooled.*has no pooled vector"):
            head_width(visual, tokens, head_input)
        return
    image = torch.randn(2, 3, size, size)
    features, _, vector = encode_image(visual, tokens, image, head_input)
    assert torch.equal(features, visual(image))
    assert vector.shape == (2, head_width(visual, tokens, head_input))
    assert vector.dtype == torch.float32
    if head_input == "patches":
        assert_close(head_input_map(visual, tokens, image, "patches").mean(dim=(2, 3)), vector)
    else:
        assert_close(visual.head(vector), features, rtol=1e-4, atol=1e-5)


@cases("other", TOWERS["others"])
def test_the_parameters_on_which_the_heads_input_depends_are_known(other):
    visual = tower(other["vision_cfg"])
    image = torch.randn(2, 3, other["size"], other["size"])
    encode_image(visual, patch_tokens(visual), image)[2].sum().backward()
    for name, parameter in visual.named_parameters():
        assert reaches_head(name, "patches") == (parameter.grad is not None), name


@cases("name, pool", {"test_vit": "token", "test_vit2": "avg", "test_vit3": "map"})
@torch.no_grad()
def test_the_patch_mean_of_a_timm_vit_leaves_class_and_register_tokens_out(name, pool):
    visual = tower({"timm_model_name": name, "image_size": 160, "timm_pool": pool}).eval()
    assert visual.trunk.num_prefix_tokens == 1
    image = torch.randn(2, 3, 160, 160)
    tokens = visual.trunk.forward_features(image)  # after the trunk's last norm
    _, _, patch_mean = encode_image(visual, patch_tokens(visual), image)
    assert_close(patch_mean, tokens[:, visual.trunk.num_prefix_tokens :].mean(dim=1))


@torch.no_grad()
def test_the_patch_mean_is_float32_under_autocast():
    visual = native_tower({})
    with torch.autocast("cpu", torch.bfloat16):
        features, _, patch_mean = encode_image(visual, patch_tokens(visual), images(visual))
    assert features.dtype == torch.bfloat16
    assert patch_mean.dtype == torch.float32


COCA = {
    "one pooler": {"attentional_pool": True},
    "parallel": {"attentional_pool": "parallel", **SQUARE},
    "cascade": {"attentional_pool": "cascade", **SQUARE},
}


@cases("vision_cfg", COCA)
def test_features_and_pooled_tokens_of_coca_are_its_own_to_the_last_bit(vision_cfg):
    vision_cfg = {**VIT, **POOLER, **vision_cfg, "output_tokens": True, "patch_dropout": 0.5}
    torch.manual_seed(0)
    multimodal_cfg = {**TEXT, "width": 32}
    model = CoCa(embed_dim=32, vision_cfg=vision_cfg, text_cfg=TEXT, multimodal_cfg=multimodal_cfg)
    visual = model.visual.train()
    own_features, own_pooled = same_dropout(visual, images(visual))
    make_readable(visual)
    reading = Reading(patch_tokens(visual), "patches")
    features, pooled = same_dropout(visual, images(visual), reading)
    assert torch.equal(features, own_features)
    assert torch.equal(pooled, own_pooled)
    # without dropout, as a map has none
    _, _, vector = encode_image(visual.eval(), reading.tokens, images(visual))
    patches = head_input_map(visual, reading.tokens, images(visual), "patches")
    assert_close(patches.mean(dim=(2, 3)), vector)
    visual.train().output_tokens = False
    _, _, expected = same_dropout(encode_image, visual, reading.tokens, images(visual))
    assert torch.equal(reading.vector, expected)


def test_a_tower_or_a_trunk_without_features_is_refused_by_name():
    with input_error("vision tower with patch features; Linear has none"):
        patch_tokens(nn.Linear(3, 4))
    visual = tower(TOWERS["others"]["timm EfficientNet"]["vision_cfg"])
    visual.trunk = nn.Sequential(visual.trunk)
    with input_error("vision tower with patch features; Sequential has none"):
        patch_tokens(visual)


def naflex_tower(pool):
    """A tower that takes images of any shape, as OpenCLIP 4's --use-naflex
    makes it."""
    visual = TimmModel("test_vit", embed_dim=16, image_size=160)
    cfg = NaFlexVitCfg(
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        pos_embed_grid_size=(4, 4),
        global_pool=pool,
        class_token=True,
    )
    visual.trunk, visual.head = NaFlexVit(cfg, num_classes=0), nn.Linear(32, 16)
    return visual.eval()


def patches_of(image, padding):
    """What NaFlex's collator makes of images [B, 3, 32, 32]; the padding
    holds large numbers."""
    patches = (
        image.unflatten(3, (4, 8))
        .unflatten(2, (4, 8))
        .permute(0, 2, 4, 3, 5, 1)
        .reshape(len(image), 16, -1)
    )
    coordinates = torch.cartesian_prod(torch.arange(4), torch.arange(4)).expand(len(image), -1, -1)
    return {
        "patches": nn.functional.pad(patches, (0, 0, 0, padding), value=100.0),
        "patch_coord": nn.functional.pad(coordinates, (0, 0, 0, padding)),
        "patch_valid": (torch.arange(16 + padding) < 16).expand(len(image), -1),
    }


@EVERY_INPUT
@parametrize("pool", ["avg", "token", "map"])
@torch.no_grad()
def test_padding_of_a_naflex_image_enters_neither_the_features_nor_what_the_head_reads(
    pool, head_input
):
    visual, image = naflex_tower(pool), torch.randn(3, 3, 32, 32)
    tokens = patch_tokens(visual)
    padded = patches_of(image, padding=5)
    features, _, vector = encode_image(visual, tokens, padded, head_input)
    assert torch.equal(features, visual(padded))
    for same in (patches_of(image, padding=0), image):
        expected_features, _, expected_vector = encode_image(visual, tokens, same, head_input)
        assert_close(features, expected_features)
        assert_close(vector, expected_vector)
    assert vector.dtype == torch.float32
    if head_input == "patches":
        assert_close(vector, head_input_map(visual, tokens, image, "patches").mean(dim=(2, 3)))


def test_a_vit_without_pooling_is_refused_for_its_pool_type():
    visual = native_tower({"pool_type": "none"})
    with input_error(r"has no pooled vector .* pool_type tok or avg$"):
        head_width(visual, patch_tokens(visual), "pooled")
