"""The data set `natural`: its scenes, captions and measures."""

import hashlib
import json
import random
from collections import Counter

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openclip_superclip.demo import natural
from openclip_superclip.demo.data import NATURAL, write_model
from openclip_superclip.demo.measures import measure_natural
from openclip_superclip.demo.natural import COLOURS, NUM_CONCEPTS, Thing, World, all_concepts, vocabulary, write_natural
from openclip_superclip.demo.scenes import drawings, split_of


@pytest.fixture(scope="module")
def world():
    return World(0)


@pytest.fixture(scope="module")
def shown(world):
    return [world.scene("train", index) for index in range(1500)]


def test_every_concept_is_drawn_by_all_designers_and_has_a_name_of_its_own():
    names = [concept.name for concept in all_concepts()]
    assert len(set(names)) == len(names) >= NUM_CONCEPTS
    for designer in (*natural.TRAINING_DESIGNERS, *natural.UNSEEN_DESIGNERS):
        assert {concept.object for concept in all_concepts()} <= set(drawings(designer))
    assert not set(natural.UNSEEN_DESIGNERS) & set(natural.TRAINING_DESIGNERS)


def test_a_seed_gives_the_scenes_of_the_published_study():
    found = hashlib.sha256()
    for index in range(50):
        scene = World(3).scene("train", index)
        found.update(scene.image.tobytes() + json.dumps(scene.captions).encode())
    assert found.hexdigest()[:16] == "b9da37e368babdc7"


def test_each_seed_has_other_concepts_frequencies_and_scenes(world):
    other = World(1)
    assert set(other.names) != set(world.names)
    assert other.names[:20] != world.names[:20]
    assert other.scene("train", 0).image.tobytes() != world.scene("train", 0).image.tobytes()
    assert world.scene("test", 0).image.tobytes() != world.scene("train", 0).image.tobytes()


def test_concepts_follow_zipfs_law(world, shown):
    counts = Counter(name for scene in shown for name in scene.objects)
    total = sum(counts.values())
    head, tail = (sum(counts[name] for name in names) / total for names in (world.names[:10], world.names[-100:]))
    assert 0.17 < head < 0.25
    assert 0.07 < tail < 0.13


def test_a_third_of_the_objects_is_unnamed_and_one_caption_in_five_has_words_that_do_not_apply(world, monkeypatch):
    mentioned = []
    mention = natural._mention
    monkeypatch.setattr(natural, "_mention", lambda rng, thing: mentioned.append(thing.concept) or mention(rng, thing))
    things = [Thing(concept, "small", None, place) for place, concept in enumerate(world.concepts[:4])]
    num_named = num_wrong = 0
    for index in range(2000):
        mentioned.clear()
        world._short(random.Random(index), things)
        named = {thing.concept for thing in things} & set(mentioned)
        num_named += len(named)
        num_wrong += set(mentioned) != named
    assert num_named / 8000 == pytest.approx(2 / 3, abs=0.03)
    assert num_wrong / 2000 == pytest.approx(1 / 5, abs=0.03)


def test_long_captions_name_everything_and_clean_ones_something_that_is_there(shown):
    for scene in shown[:300]:
        assert all(name in scene.captions["long"] for name in scene.objects)
        assert natural.UNKNOWN not in scene.captions["clean"]


def test_training_never_shows_a_set_or_a_coloured_concept_of_the_test_scenes(world, shown, monkeypatch):
    pairs = []
    draw = natural._paste
    monkeypatch.setattr(natural, "_paste", lambda image, thing, *more: pairs.append(thing) or draw(image, thing, *more))
    for index in range(300):
        world.scene("train", index)
    assert not any(thing.colour and world.is_new(thing.concept, thing.colour) for thing in pairs)
    assert any(thing.colour for thing in pairs)
    assert {split_of(scene.objects) for scene in shown if len(scene.objects) > 1} == {"train"}
    new = [world.is_new(concept, colour) for concept in world.concepts for colour in COLOURS]
    assert 0.08 < sum(new) / len(new) < 0.12


def test_the_vocabulary_spells_every_caption_with_clips_own_tokens(tmp_path, shown):
    write_model(tmp_path, vocabulary(), NATURAL[0].vision, natural.CONTEXT)
    ours, clips = open_clip.get_tokenizer(f"local-dir:{tmp_path}"), open_clip.SimpleTokenizer()
    for scene in shown[:200]:
        for text in scene.captions.values():
            tokens = [ours.decoder[token] for token in ours.encode(text)]
            assert tokens == [clips.decoder[token] for token in clips.encode(text)]


def test_shards_hold_both_captions_and_are_the_same_bytes_each_time(tmp_path):
    for folder in ("a", "b"):
        pattern = write_natural(tmp_path / folder, 5, 6, 4)
        assert pattern == f"{tmp_path / folder}/{{000000..000001}}.tar"
    first, second = ([p.read_bytes() for p in sorted((tmp_path / folder).glob("*.tar"))] for folder in ("a", "b"))
    assert first == second
    assert b"000000005.long.txt" in first[1]
    with pytest.raises(ValueError, match="another data set"):
        write_natural(tmp_path / "a", 6, 6, 4)


class Oracle(nn.Module):
    """Encodes an image, and a caption, by the objects and colours that they hold."""

    def __init__(self, world, known):
        super().__init__()
        self.names, self.known = world.names, known

    def tokenizer(self, texts):
        return torch.tensor([
            [float(f" {word} " in f" {text.replace(',', '')} ") for word in (*self.names, *COLOURS)] for text in texts
        ])  # fmt: skip

    def preprocess(self, image):
        return self.tokenizer([self.known[image.tobytes()]])[0]

    def encode_image(self, image, normalize=False):
        return F.normalize(image, dim=-1)

    encode_text = encode_image


def test_a_model_that_knows_objects_and_colours_finds_them(monkeypatch):
    world, known = World(0), {}
    scene = World.scene

    def noted(self, *args, **kwargs):
        found = scene(self, *args, **kwargs)
        known[found.image.tobytes()] = f"{found.captions['long']} {' '.join(found.objects)}"
        return found

    monkeypatch.setattr(World, "scene", noted)
    oracle = Oracle(world, known)
    sizes = {"scenes_per_concept": 1, "num_scenes": 50, "num_probe_scenes": 300}
    found = measure_natural(oracle, oracle.preprocess, oracle.tokenizer, **sizes)
    assert found["zero_shot"] > 95
    assert found["new_combinations"] > 95
    assert found["tagging"] > 95
    assert found["image_to_long_text_R@1"] > 80
    tuned = measure_natural(oracle, oracle.preprocess, oracle.tokenizer, "tune", **sizes)
    assert tuned["zero_shot"] > 95
    assert list(found) == list(natural.MEASURES)
