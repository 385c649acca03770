"""The demo's scenes, shards, model and measures."""

import hashlib
import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from support import input_error
from torch import nn

from openclip_superclip.demo import scenes as drawn
from openclip_superclip.demo.data import needed_merges, write_model
from openclip_superclip.demo.measures import measure
from openclip_superclip.demo.scenes import NAMES, different_scenes, scenes
from openclip_superclip.study.study_file import OF_SCENES

DIGEST = "938f87102b3586fb"  # of the scenes of the published studies


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


class Oracle(nn.Module):
    """Encodes images and texts by the names in them; `known` contains the texts of images."""

    def __init__(self, known):
        super().__init__()
        self.known = known

    def tokenizer(self, texts):
        texts = [f", {text}, " for text in texts]
        return torch.tensor([[float(f", {name}, " in text) for name in NAMES] for text in texts])

    def preprocess(self, image):
        return self.tokenizer([self.known[image.tobytes()]])[0]

    def encode_image(self, image, normalize=False):
        return F.normalize(image, dim=-1)

    encode_text = encode_image


def test_the_scenes_are_those_of_the_published_studies():
    digest = hashlib.sha256()
    for scene in scenes(50, seed=3):
        digest.update(scene.image.tobytes() + json.dumps(scene.captions).encode())
    assert digest.hexdigest()[:16] == DIGEST


def test_no_set_of_objects_is_in_two_splits():
    held = {
        split: {frozenset(scene.objects) for scene in scenes(300, split=split, num_objects=(2, 3))}
        for split in drawn.SPLITS
    }
    assert all(
        drawn.split_of(list(objects)) == split for split in drawn.SPLITS for objects in held[split]
    )
    assert len(frozenset().union(*held.values())) == sum(len(sets) for sets in held.values())
    groups = different_scenes(300)  # for retrieval: all different
    assert len({frozenset(scene.objects) for scene in groups}) == 300
    assert min(len(scene.objects) for scene in groups) == 2


def test_shards_of_one_seed_are_the_same_bytes_and_are_not_written_again(tmp_path, monkeypatch):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        drawn.write_shards(tmp_path / folder, 30, samples_per_shard=20, seed=seed)
    assert sorted(contents(tmp_path / "a")) == ["000000.tar", "000001.tar", "dataset.json"]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not set(contents(tmp_path / "a").values()) & set(contents(tmp_path / "c").values())
    monkeypatch.setattr(drawn, "make_scene", None)
    drawn.write_shards(tmp_path / "c", 30, 20, seed=1)
    with input_error("another data set"):
        drawn.write_shards(tmp_path / "c", 30, 20, seed=2)


def test_a_stopped_drawing_resumes_and_foreign_shards_are_kept(tmp_path):
    drawn.write_shards(tmp_path / "a", 30, samples_per_shard=20)
    drawn.write_shards(tmp_path / "b", 30, samples_per_shard=20)
    (tmp_path / "a/000001.tar").unlink()  # as if stopped before it
    drawn.write_shards(tmp_path / "a", 30, samples_per_shard=20)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    (tmp_path / "b/dataset.json").unlink()
    before = contents(tmp_path / "b")
    with input_error("b/000000.tar was not written by this command"):
        drawn.write_shards(tmp_path / "b", 30, samples_per_shard=20)
    assert contents(tmp_path / "b") == before


def test_a_model_that_finds_the_objects_measures_100_and_one_that_finds_none_chance():
    singles = list(scenes(50, split="test", num_objects=(1,)))
    training = list(scenes(1000))
    held_out = [*singles, *different_scenes(50)]
    captions = {scene.image.tobytes(): scene.captions["long"] for scene in (*held_out, *training)}
    same = captions | {scene.image.tobytes(): NAMES[0] for scene in held_out}
    found = {}
    for name, known in {"objects": captions, "none": same}.items():
        oracle = Oracle(known)
        opened = (oracle, oracle.preprocess, oracle.tokenizer)
        found[name] = measure(opened, num_scenes=50, num_probe_scenes=1000)
    assert tuple(found["objects"]) == OF_SCENES
    assert list(found["objects"].values()) == pytest.approx([100] * len(OF_SCENES))
    assert max(found["none"].values()) < 15


def test_the_vocabulary_spells_every_caption_with_clips_own_tokens(tmp_path):
    write_model(tmp_path)
    ours = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    clips = open_clip.SimpleTokenizer()
    captions = [text for scene in scenes(300) for text in scene.captions.values()]
    for text in captions:
        tokens = [ours.decoder[token] for token in ours.encode(text)]
        assert tokens == [clips.decoder[token] for token in clips.encode(text)]
        assert len(tokens) + 2 <= ours.context_length
    assert ours.vocab_size == 512 + len(needed_merges(NAMES)) + 2 < 1024
