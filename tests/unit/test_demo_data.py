"""The demo's tiles, scenes, shards and measures, and those of the data set
`natural`."""

import functools
import hashlib
import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from support import DATA, parametrize, read_json
from torch import nn

from openclip_superclip.demo import natural
from openclip_superclip.demo import scenes as drawn
from openclip_superclip.demo.data import NATURAL, needed_merges, write_model
from openclip_superclip.demo.natural import COLOURS, World, vocabulary
from openclip_superclip.demo.scene_measures import (
    measure_natural,
    measure_transfer,
    predicted_names,
)
from openclip_superclip.demo.scenes import (
    DESIGNERS,
    NAMES,
    SECOND_DESIGNERS,
    different_scenes,
    names_of,
    scenes,
)
from openclip_superclip.study.study_file import MEASURES


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


class Oracle(nn.Module):
    """Encodes images and texts by the words in them; `known` contains the
    texts of images."""

    def __init__(self, words, known):
        super().__init__()
        self.words, self.known = words, known

    def tokenizer(self, texts):
        texts = [f" {text.replace(',', '')} " for text in texts]
        return torch.tensor([[float(f" {word} " in text) for word in self.words] for text in texts])

    def preprocess(self, image):
        return self.tokenizer([self.known[image.tobytes()]])[0]

    def encode_image(self, image, normalize=False):
        return F.normalize(image, dim=-1)

    encode_text = encode_image


def test_the_scenes_are_those_of_the_published_studies():
    shown = {
        "first": scenes(50, seed=3),
        "second": scenes(50, seed=3, designers=SECOND_DESIGNERS),
        "unseen": scenes(50, seed=3, designers=drawn.UNSEEN_DESIGNERS),
        "natural": map(functools.partial(World(3).scene, "train"), range(50)),
    }
    digests = {}
    for name, of_name in shown.items():
        found = hashlib.sha256()
        for scene in of_name:
            found.update(scene.image.tobytes() + json.dumps(scene.captions).encode())
        digests[name] = found.hexdigest()[:16]
    assert digests == read_json(DATA / "scene_digests.json")


def test_no_set_of_objects_is_in_two_splits():
    held = {
        split: {frozenset(scene.objects) for scene in scenes(300, split=split, num_objects=(2, 3))}
        for split in drawn.SPLITS
    }
    assert all(
        drawn.split_of(list(objects)) == split for split in drawn.SPLITS for objects in held[split]
    )
    assert len(frozenset().union(*held.values())) == sum(len(sets) for sets in held.values())
    groups = different_scenes(300, seed=0, split="test")  # for retrieval: all different
    assert len({frozenset(scene.objects) for scene in groups}) == 300
    assert min(len(scene.objects) for scene in groups) == 2


def test_shards_of_one_seed_are_the_same_bytes_and_are_not_written_again(tmp_path, monkeypatch):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        drawn.write_shards(tmp_path / folder, 30, seed, samples_per_shard=20)
    assert sorted(contents(tmp_path / "a")) == ["000000.tar", "000001.tar", "dataset.json"]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not set(contents(tmp_path / "a").values()) & set(contents(tmp_path / "c").values())
    monkeypatch.setattr(drawn, "make_scene", None)
    drawn.write_shards(tmp_path / "c", 30, 1, 20)
    with pytest.raises(ValueError, match="another data set"):
        drawn.write_shards(tmp_path / "c", 30, 2, 20)


def test_transfer_measures_a_model_that_knows_only_seen_drawings_at_100_and_at_chance():
    singles = [*scenes(50, 7, "tune", num_objects=(1,))]
    known = [*singles, *different_scenes(50, 7, "tune"), *scenes(1000, 7)]
    unseen = [
        *scenes(50, 7, "tune", num_objects=(1,), designers=drawn.UNSEEN_DESIGNERS),
        *different_scenes(50, 7, "tune", drawn.UNSEEN_DESIGNERS),
    ]
    texts = {scene.image.tobytes(): "something" for scene in unseen}
    texts |= {scene.image.tobytes(): scene.captions["long"] for scene in known}
    oracle = Oracle([*NAMES, "something"], texts)
    opened = (oracle, oracle.preprocess, oracle.tokenizer)
    found = measure_transfer(opened, "tune", 7, num_scenes=50, num_probe_scenes=1000)
    assert tuple(found) == MEASURES["transfer"]
    seen = [score for name, score in found.items() if name.startswith("seen_")]
    assert seen == pytest.approx([100] * len(seen))
    assert max(found["zero_shot"], found["tagging"], found["text_to_image_R@1"]) < 15
    assert predicted_names(opened, singles) == [scene.objects[0] for scene in singles]


# The data set `natural`


@pytest.fixture(scope="module")
def world():
    return World(0)


@pytest.fixture(scope="module")
def shown(world):
    return [world.scene("train", index) for index in range(1500)]


def test_training_never_shows_a_set_or_a_coloured_concept_of_the_test_scenes(
    world, shown, monkeypatch
):
    pairs = []
    draw = natural._paste
    monkeypatch.setattr(
        natural,
        "_paste",
        lambda image, thing, *more: pairs.append(thing) or draw(image, thing, *more),
    )
    for index in range(300):
        world.scene("train", index)
    assert not any(thing.colour and world.is_new(thing.concept, thing.colour) for thing in pairs)
    assert any(thing.colour for thing in pairs)
    assert {drawn.split_of(scene.objects) for scene in shown if len(scene.objects) > 1} == {"train"}
    new = [world.is_new(concept, colour) for concept in world.concepts for colour in COLOURS]
    assert 0.08 < sum(new) / len(new) < 0.12


VOCABULARIES = {
    "natural": (vocabulary(), NATURAL.vision, natural.CONTEXT),
    "scenes": (names_of(DESIGNERS),),
    "scenes of other designers": (names_of(SECOND_DESIGNERS),),
}


@parametrize("kind", VOCABULARIES)
def test_the_vocabulary_of_a_data_set_spells_every_caption_with_clips_own_tokens(
    kind, shown, tmp_path
):
    words, *options = VOCABULARIES[kind]
    designers = DESIGNERS if kind == "scenes" else SECOND_DESIGNERS
    captioned = shown[:200] if kind == "natural" else scenes(300, designers=designers)
    assert write_model(tmp_path, words, *options) == f"local-dir:{tmp_path}"
    ours, clips = open_clip.get_tokenizer(f"local-dir:{tmp_path}"), open_clip.SimpleTokenizer()
    for text in (text for scene in captioned for text in scene.captions.values()):
        tokens = [ours.decoder[token] for token in ours.encode(text)]
        assert tokens == [clips.decoder[token] for token in clips.encode(text)]
        assert len(tokens) + 2 <= ours.context_length or kind == "natural"
    if kind != "natural":
        assert ours.vocab_size == 512 + len(needed_merges(words)) + 2 < 1024


def test_a_model_that_finds_objects_and_colours_measures_nearly_100(monkeypatch):
    world, known = World(0), {}
    scene = World.scene

    def noted(self, *args, **kwargs):
        found = scene(self, *args, **kwargs)
        known[found.image.tobytes()] = f"{found.captions['long']} {' '.join(found.objects)}"
        return found

    monkeypatch.setattr(World, "scene", noted)
    oracle = Oracle([*world.names, *COLOURS], known)
    opened = (oracle, oracle.preprocess, oracle.tokenizer)
    sizes = {"scenes_per_concept": 1, "num_scenes": 50, "num_probe_scenes": 50}
    found = measure_natural(opened, **sizes)
    assert min(found["zero_shot"], found["new_combinations"], found["tagging"]) > 95
    assert found["image_to_long_text_R@1"] > 80
    assert list(found) == list(natural.MEASURES)
    assert measure_natural(opened, "tune", **sizes)["zero_shot"] > 95
