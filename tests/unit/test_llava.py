"""LLaVA's contract: transformers' own LLaVA takes an exported vision tower
as it is."""

import open_clip
import pytest
import torch
from support.models import assert_equal, plain_model, random_weights, write_random_model
from support.training_runs import execute
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

IMAGE_TOKEN, PATCHES = 49, 16
LAYER = -2  # LLaVA-1.5 reads the patch tokens before the last block


@torch.no_grad()
def test_llava_loads_the_tower_strictly_and_has_its_hidden_states(tmp_path):
    weights, _, model = write_random_model(
        tmp_path, text={"vocab_size": 49408, "width": 32, "heads": 2}
    )
    folder = tmp_path / "out"
    execute(f"export {weights} --model {model} --out {folder} --format hf")
    tower, loading = CLIPVisionModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    language = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=language,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=PATCHES,
        vision_feature_layer=LAYER,
        vision_feature_select_strategy="default",
    )
    llava = LlavaForConditionalGeneration(config).eval()  # before any tower is loaded
    llava.model.vision_tower.load_state_dict(tower.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    expected = tower.eval()(images, output_hidden_states=True).hidden_states
    found = llava.model.vision_tower(images, output_hidden_states=True).hidden_states
    assert_equal(found, expected)
    stock = plain_model(model, random_weights(model))
    read = stock.visual.forward_intermediates(
        images, indices=[0], normalize_intermediates=False, output_fmt="NLC"
    )
    torch.testing.assert_close(
        expected[LAYER][:, 1:], read["image_intermediates"][0], atol=1e-5, rtol=0
    )
    processor = CLIPImageProcessor.from_pretrained(folder)
    assert processor.image_mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert processor.crop_size["height"] == 32
