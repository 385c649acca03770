"""LLaVA's contract: transformers' CLIPVisionModel, which LLaVA builds its tower from, takes an export as it is."""

import open_clip
import pytest
import torch
from support.models import plain_model, random_weights, write_model
from transformers import CLIPImageProcessor, CLIPVisionModel

from openclip_superclip.__main__ import main

LAYER = -2  # LLaVA-1.5 reads the patch tokens before the last block


@torch.no_grad()
def test_an_exported_tower_has_the_hidden_states_that_llava_reads_and_its_processor_the_pixels(tmp_path):
    model = write_model(tmp_path / "model", text={"vocab_size": 49408, "width": 32, "heads": 2})
    torch.save(random_weights(model), tmp_path / "weights.pt")
    out = tmp_path / "out"
    assert main(["export", f"{tmp_path}/weights.pt", "--model", model, "--out", str(out), "--format", "hf"]) == 0
    tower, loading = CLIPVisionModel.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"]
    assert all(name.startswith(("text_", "visual_projection", "logit_scale")) for name in loading["unexpected_keys"])
    images = torch.randn(2, 3, 32, 32)
    found = tower.eval()(images, output_hidden_states=True).hidden_states
    stock = plain_model(model, random_weights(model))
    read = stock.visual.forward_intermediates(images, indices=[0], normalize_intermediates=False, output_fmt="NLC")
    torch.testing.assert_close(found[LAYER][:, 1:], read["image_intermediates"][0], atol=1e-5, rtol=0)
    processor = CLIPImageProcessor.from_pretrained(out)
    assert processor.image_mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert processor.crop_size["height"] == 32
