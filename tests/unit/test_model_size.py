"""The size of a model by arithmetic is that of the model that OpenCLIP
builds."""

import pytest
from support import parametrize
from support.models import write_hf_text_model, write_model

from openclip_superclip.plans.cost import _count, _counts_of_size
from openclip_superclip.plans.model_size import model_size
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe, shipped_recipes

CLIP = "datacomp1b/clip_vit-b-16_512m_bs16k"
SUPERCLIP = "datacomp1b/superclip_vit-b-16_512m_bs16k"


def assert_same_size(name, **settings):
    run = make_run(read_recipe(name, settings), 1, 8)
    ours, built = _counts_of_size(model_size(run.recipe)), _count(run)
    assert ours.pop("forward_gmacs") == pytest.approx(built.pop("forward_gmacs"), rel=1e-9)
    assert ours == built


@parametrize("model", ["ViT-B-16", "ViT-H-14-CLIPA", "RN50x4", "ViT-Ti-16-96", "RN-Ti-96"])
@parametrize("name", [CLIP, SUPERCLIP])
def test_the_size_of_a_model_is_that_of_the_one_that_openclip_builds(name, model):
    assert_same_size(name, model=model)


@parametrize(
    "flags",
    [
        {"flags.force-patch-dropout": "0.5", "method": "superflip"},
        {"flags.siglip": "true", "method": "supersiglip"},
        {"flags.force-image-size": "90", "flags.force-context-length": "20"},
        {"superclip.head_input": "both", "precision": "fp32"},
    ],
)
def test_flags_that_change_the_size_are_counted(flags):
    assert_same_size(SUPERCLIP, model="ViT-Ti-16-96", **flags)


@parametrize(
    "vision, text",
    [
        ({"ls_init_value": 0.1, "no_ln_pre": True, "pool_type": "avg"}, {"mlp_ratio": 2.5}),
        ({"image_size": [32, 48], "patch_size": [8, 16]}, {"proj_bias": True}),
        ({"final_ln_after_pool": True}, {"no_causal_mask": True, "ls_init_value": 0.1}),
    ],
)
def test_options_of_a_configuration_are_counted(vision, text, tmp_path):
    assert_same_size(SUPERCLIP, model=write_model(tmp_path, vision=vision, text=text))


@parametrize(
    "set_",
    [
        {"model": "ViT-B-16-SigLIP"},
        {"model": "coca_ViT-B-32"},
        {"flags.lock-image": "true"},
        {"precision": "pure_bf16"},
        {"model": "ViT-X"},
        {"model": "local-dir:nowhere"},
    ],
)
def test_the_size_of_other_models_is_only_that_of_the_built_one(set_):
    assert model_size(read_recipe(CLIP, set_)) is None


def test_a_tower_of_hugging_face_and_a_broken_configuration_have_no_computed_size(tmp_path):
    model = write_hf_text_model(tmp_path / "hf")
    assert model_size(read_recipe(CLIP, {"model": model})) is None
    for content in (
        "",
        "[]",
        '{"vision_cfg": 3}',
        '{"vision_cfg": {"layers": "x"}, "text_cfg": {}}',
    ):
        (tmp_path / "x.json").write_text(content)
        assert model_size(read_recipe(CLIP, {"model": f"{tmp_path}/x.json"})) is None


def test_the_sizes_of_shipped_recipes_are_known_without_openclip():
    unknown = {
        recipe.model
        for recipe in map(read_recipe, shipped_recipes())
        if not recipe.model.startswith("local-dir:") and model_size(recipe) is None
    }
    assert unknown == {"ViT-B-16-SigLIP2"}  # timm's
