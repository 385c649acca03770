"""Evaluates models on the demo's scenes: zero-shot classification, retrieval, tagging and linear
probe."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from open_clip import build_zero_shot_classifier
from torch import Tensor, nn

from ..openclip import retrieval_metrics
from . import natural
from .scenes import (
    DESIGNERS,
    NAMES,
    UNSEEN_DESIGNERS,
    Designers,
    Scene,
    different,
    different_scenes,
    names_of,
    scenes,
)

BATCH_SIZE = 250
WEIGHT_DECAY = 3e-4  # of the linear probe
PLAIN_NAMES = ("{}",)  # templates for zero-shot classification
# on the CPU, in evaluation mode; its preprocess and tokenizer
OpenedModel = tuple[nn.Module, Callable, Callable]
Measures = dict[str, float]  # by name, most of them in percent


def measure(
    opened: OpenedModel,
    split: str,
    seed: int = 0,
    num_scenes: int = 1000,
    num_probe_scenes: int = 2000,
    designers: Designers = DESIGNERS,
    trained_on: Designers = DESIGNERS,
) -> Measures:
    """Returns the measures of a model on scenes of a split, in percent.

    zero_shot: top-1 accuracy on scenes with one object, over all names.
    image_to_text_R@1, text_to_image_R@1: retrieval of long captions, for different scenes with at
        least two objects.
    tagging: the fraction of the k objects in such a scene that are among the k most similar names.
    linear_probe: the same fraction for a linear classifier of frozen image features, fitted to
        training scenes by the designers `trained_on`.
    """
    singles = list(scenes(num_scenes, seed, split, num_objects=(1,), designers=designers))
    groups = different_scenes(num_scenes, seed, split, designers)
    probe_scenes = list(scenes(num_probe_scenes, seed, "train", designers=trained_on))
    captions = {"text": "long"}
    return _measure(
        opened, singles, groups, probe_scenes, names_of(designers), PLAIN_NAMES, captions
    )


def _measure(
    opened: OpenedModel,
    singles: Sequence[Scene],
    groups: Sequence[Scene],
    probe_scenes: Sequence[Scene],
    names: Sequence[str],
    templates: Sequence[str],
    captions: Mapping[str, str],
) -> Measures:
    """Returns the measures of `measure`; `captions` has the kind of caption for the retrieval of
    each text."""
    model, preprocess, tokenizer = opened
    retrieval = {}
    with torch.inference_mode():
        classifier = name_classifier(model, tokenizer, names, templates)  # [D, N]
        single_features, group_features, probe_features = (
            scene_features(model, preprocess, shown) for shown in (singles, groups, probe_scenes)
        )  # [S, D]
        for text, kind in captions.items():
            texts = [scene.captions[kind] for scene in groups]
            text_features = encode(model.encode_text, tokenizer, texts)
            recalls = retrieval_metrics(group_features, text_features)
            retrieval[f"image_to_{text}_R@1"] = 100 * float(recalls["image_to_text_R@1"])
            retrieval[f"{text}_to_image_R@1"] = 100 * float(recalls["text_to_image_R@1"])
    group_labels = object_labels(groups, names)
    probe = fit_object_probe(probe_features, object_labels(probe_scenes, names))
    return {
        "zero_shot": fraction_found(single_features @ classifier, object_labels(singles, names)),
        **retrieval,
        "tagging": fraction_found(group_features @ classifier, group_labels),
        "linear_probe": fraction_found(probe(group_features), group_labels),
    }


def measure_transfer(opened: OpenedModel, split: str, seed: int, **sizes: int) -> Measures:
    """Returns the measures of `measure` on a seed's scenes by the unseen designer, and on the
    others as seen_NAME.

    The sizes are those of `measure`. In both cases, the linear probe is fitted to scenes by the
    training designers.
    """
    unseen = measure(opened, split, seed, designers=UNSEEN_DESIGNERS, **sizes)
    seen = measure(opened, split, seed, **sizes)
    return unseen | {f"seen_{name}": score for name, score in seen.items()}


def measure_natural(
    opened: OpenedModel,
    split: str = "test",
    seed: int = 0,
    scenes_per_concept: int = 5,
    num_scenes: int = 1000,
    num_probe_scenes: int = 3000,
) -> Measures:
    """Returns a model's measures on the held-out scenes of a seed, in percent.

    zero_shot: top-1 accuracy on scenes with one object by the unseen designer, equally many for
        each concept. The split "tune", for tuning learning rates, uses the training designers.
    new_combinations: top-1 accuracy over all pairs of a colour and a name, on scenes with one
        object in a colour in which training never shows it.
    image_to_text_R@1, text_to_image_R@1: retrieval of correct short captions, for scenes with sets
        of at least two objects that training never shows.
    image_to_long_text_R@1, long_text_to_image_R@1: the same with captions that name everything.
    tagging, linear_probe: as in `measure`.
    """
    world = natural.World(seed)
    designers = natural.UNSEEN_DESIGNERS if split == "test" else natural.TRAINING_DESIGNERS
    singles = [
        world.scene(split, index, (1,), designers, world.concepts[index // scenes_per_concept])
        for index in range(len(world.concepts) * scenes_per_concept)
    ]
    several = (world.scene(split, index, (2, 3)) for index in itertools.count())
    groups = different(num_scenes, several, caption="clean")
    probe_scenes = [world.scene("train", index) for index in range(num_probe_scenes)]
    captions = {"text": "clean", "long_text": "long"}
    measures = _measure(
        opened, singles, groups, probe_scenes, world.names, natural.TEMPLATES, captions
    )
    measures["new_combinations"] = _measure_new_combinations(opened, world, split)
    return {name: measures[name] for name in natural.MEASURES}


def _measure_new_combinations(opened: OpenedModel, world: natural.World, split: str) -> float:
    """Returns the accuracy over all pairs of a colour and a name, in percent, on scenes of those
    that training never shows."""
    model, preprocess, tokenizer = opened
    pairs = [(concept, colour) for concept in world.concepts for colour in natural.COLOURS]
    phrases = [f"{colour} {concept.name}" for concept, colour in pairs]
    is_new = torch.tensor([world.is_new(*pair) for pair in pairs])  # [P]
    shown = [
        world.scene(split, index, (1,), concept=concept, colour=colour)
        for index, (concept, colour) in enumerate(pairs)
        if is_new[index]
    ]
    with torch.inference_mode():
        # [D, P]
        classifier = name_classifier(model, tokenizer, phrases, natural.TEMPLATES[:1])
        features = scene_features(model, preprocess, shown)  # [S, D]
    return fraction_found(features @ classifier, torch.eye(len(pairs))[is_new])


def predicted_names(opened: OpenedModel, shown: Sequence[Scene]) -> list[str]:
    """Returns the name that is most similar to each scene, as zero-shot classification predicts
    it."""
    model, preprocess, tokenizer = opened
    with torch.inference_mode():
        # [S, N]
        similarities = scene_features(model, preprocess, shown) @ name_classifier(model, tokenizer)
    return [NAMES[index] for index in similarities.argmax(dim=1).tolist()]


def representative(outcomes: Sequence[tuple[bool, ...]], number: int) -> list[int]:
    """Returns indices of `number` outcomes, in order, in which the number of each outcome is
    within one of its fraction of all; of each outcome, the first places are taken."""
    chosen = []
    num_seen = 0
    for outcome in sorted(set(outcomes)):
        places = [index for index, other in enumerate(outcomes) if other == outcome]
        num_seen += len(places)
        num_wanted = round(number * num_seen / len(outcomes)) - len(chosen)
        chosen += places[:num_wanted]
    return sorted(chosen)


def object_labels(shown: Sequence[Scene], names: Sequence[str] = NAMES) -> Tensor:
    """Returns 1 for each scene and name of an object in it, else 0, float32 [S, N]."""
    return torch.tensor([[float(name in scene.objects) for name in names] for scene in shown])


def fraction_found(scores: Tensor, labels: Tensor) -> float:
    """Returns the mean fraction of a scene's k objects that are among its k highest scores [S,
    N], in percent."""
    labels = labels.double()
    num_objects = labels.sum(dim=1, keepdim=True)  # [S, 1]
    by_rank = labels.gather(1, scores.argsort(dim=1, descending=True))  # [S, N]
    among_best = torch.arange(labels.shape[1]) < num_objects  # [S, N]
    return 100 * ((by_rank * among_best).sum(dim=1) / num_objects.squeeze(1)).mean().item()


def fit_object_probe(features: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns a linear multi-label classifier [S, D] -> [S, N], fitted deterministically by
    L-BFGS from zero."""
    mean = features.mean(dim=0)
    std = features.std(dim=0) + 1e-6
    inputs = (features - mean) / std  # L-BFGS converges slowly on features with a small variance
    weight = torch.zeros(labels.shape[1], features.shape[1], requires_grad=True)  # [N, D]
    bias = torch.zeros(labels.shape[1], requires_grad=True)  # [N]
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(inputs, weight, bias)  # [S, N]
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(labels)
        loss = loss + WEIGHT_DECAY * weight.square().sum()
        loss.backward()
        return loss

    def probe(features: Tensor) -> Tensor:
        return F.linear((features - mean) / std, weight.detach(), bias.detach())

    optimizer.step(closure)
    return probe


def name_classifier(
    model: nn.Module,
    tokenizer: Callable,
    names: Sequence[str] = NAMES,
    templates: Sequence[str] = PLAIN_NAMES,
) -> Tensor:
    """Returns OpenCLIP's zero-shot classifier of the names, [D, N].

    By default, the prompts are the plain names."""
    return build_zero_shot_classifier(model, tokenizer, names, templates).float()


def scene_features(model: nn.Module, preprocess: Callable, shown: Sequence[Scene]) -> Tensor:
    """Returns the normalized image features of the scenes, [S, D]."""

    def images(batch: Sequence[Scene]) -> Tensor:
        return torch.stack([preprocess(scene.image) for scene in batch])

    return encode(model.encode_image, images, shown)


def encode(encoder: Callable, prepare: Callable, items: Sequence) -> Tensor:
    """Returns the normalized features of the items, float32 [S, D]."""
    batches = [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]
    return torch.cat([encoder(prepare(batch), normalize=True).float() for batch in batches])
