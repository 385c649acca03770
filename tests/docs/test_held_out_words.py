"""The plugin of the study held_out_words leaves exactly the words of the
seed's objects out."""

from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from support import parametrize, read_json, read_rows
from support.pages import ROOT, script

from openclip_superclip.demo.data import VIT, write_model
from openclip_superclip.demo.scenes import NAMES
from openclip_superclip.method.idf import special_token_ids
from openclip_superclip.method.model import SuperCLIP
from openclip_superclip.study.study_file import read_study

FOLDER = ROOT / "studies/held_out_words"
plugin = script("studies/held_out_words/held_out_words.py")
HALVES = read_json(FOLDER / "halves.json")


@parametrize("seed", HALVES)
def test_each_seed_holds_out_the_half_of_the_objects_that_is_written_down(seed):
    assert plugin.held_out_objects(int(seed)) == HALVES[seed]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The tokenizer of the demo's ViT, and two equal models, one of them as
    the plugin changes it."""
    name = write_model(tmp_path_factory.mktemp("demo") / "model-vit", vision=VIT)
    tokenizer = open_clip.get_tokenizer(name)
    folder = Path(name.removeprefix("local-dir:"))
    config = read_json(folder / "open_clip_config.json")["model_cfg"]
    options = {"ignored_tokens": special_token_ids(tokenizer), "idf": "off"}
    plain, changed = (SuperCLIP(**config, superclip=options) for _ in range(2))
    changed.load_state_dict(plain.state_dict())
    args = SimpleNamespace(model=name, seed=100, held_out_words=50)
    plugin.open_clip_model_created(args, changed)
    return tokenizer, plain, changed


def test_the_labels_lack_the_words_of_held_out_objects_and_nothing_else(models):
    tokenizer, plain, changed = models
    held_out = HALVES["100"]
    captions = tokenizer([", ".join(NAMES[start : start + 3]) for start in range(0, 100, 3)])
    for model in (plain, changed):
        model.statistics.update(captions)
    left_out = torch.zeros(len(plain.statistics.counted), dtype=torch.bool)
    left_out[[token for name in held_out for token in tokenizer.encode(name)]] = True
    kept = [token for name in NAMES if name not in held_out for token in tokenizer.encode(name)]
    assert not left_out[kept].any()
    before, after = plain.statistics, changed.statistics
    assert before.document_frequency[left_out].all()
    assert not after.document_frequency[left_out].any()
    assert not after.idf()[left_out].any()
    assert torch.equal(before.document_frequency[~left_out], after.document_frequency[~left_out])
    assert torch.equal(before.counted & ~left_out, after.counted)


def test_the_loss_of_an_image_is_that_of_its_kept_words(models):
    tokenizer, plain, changed = models
    held_out = HALVES["100"]
    kept = [name for name in NAMES if name not in held_out]
    head_input = torch.randn(3, changed.class_head.weight.shape[1])

    def losses(model, *captions):
        return model.class_head(head_input, tokenizer(captions), model._idf_weights())

    mixed = [f"{kept[0]}, {held_out[0]}", kept[1], held_out[1]]
    whole, without = losses(plain, *mixed), losses(changed, *mixed)
    assert without[0] == losses(plain, f"{kept[0]},", kept[1], kept[1])[0] != whole[0]
    assert without[1] == whole[1]
    assert without[2] == 0 != whole[2]


def test_the_scores_are_those_of_all_arms_and_of_the_same_weights_as_the_studys():
    study = read_study(str(FOLDER / "held_out_words.yaml"))
    scored, recorded = (read_rows(FOLDER / name) for name in ("study.csv", "all_objects.csv"))
    weights = [
        [(row["arm"], row["seed"], row["checkpoint"]) for row in rows]
        for rows in (scored, recorded)
    ]
    assert weights[0] == weights[1]
    arms = [(arm, f"{seed}") for seed in study.result_seeds for arm in study.arms]
    assert [run[:2] for run in weights[0]] == arms
