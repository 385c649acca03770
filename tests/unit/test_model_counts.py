"""The recorded counts of the shipped recipes' models are those of the models
that OpenCLIP builds."""

import pytest
from support import parametrize, read_json
from support.model_counts import rows
from support.models import write_model

from openclip_superclip.demo.data import write_model as write_demo_model
from openclip_superclip.plans.cost import COUNTS, known_counts
from openclip_superclip.plans.recipe_files import read_recipe

CLIP = "datacomp1b/clip_vit-b-16_512m_bs16k"


@pytest.mark.slow
def test_the_recorded_counts_are_those_of_the_shipped_recipes_models():
    assert read_json(COUNTS)["models"] == rows()


@parametrize(
    "set_", [{"samples": "2048000"}, {"precision": "fp32"}, {"flags.val-data": "x.csv", "lr": "1"}]
)
def test_options_that_leave_the_model_as_it_is_leave_its_counts_known(set_):
    assert known_counts(read_recipe(CLIP, set_)) == known_counts(read_recipe(CLIP))


@parametrize(
    "set_",
    [
        {"model": "local-dir:nowhere"},
        {"flags.pretrained": "openai"},
        {"flags.lock-image": "true"},
        {"precision": "pure_bf16"},
        {"superclip.head_input": "pooled", "method": "superclip"},
    ],
)
def test_other_models_are_counted_when_they_are_built(set_):
    assert known_counts(read_recipe(CLIP, set_)) is None


def test_the_model_of_a_folder_is_known_by_its_configuration_without_weights(tmp_path):
    demo = "demo/superclip_demo-model_8k_bs64"
    write_demo_model(tmp_path / "model")
    model = {"model": f"local-dir:{tmp_path}/model"}
    assert known_counts(read_recipe(demo, model))["parameters"] == 1_325_592
    (tmp_path / "model/open_clip_model.safetensors").touch()  # which training would load
    assert known_counts(read_recipe(demo, model)) is None
    assert known_counts(read_recipe(demo, {"model": write_model(tmp_path / "other")})) is None
