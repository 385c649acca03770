"""Evaluates models on the demo's scenes: zero-shot classification, retrieval, tagging and linear
probe."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from open_clip import build_zero_shot_classifier
from torch import Tensor, nn

from ..trainer import retrieval_metrics
from .scenes import NAMES, Scene, different_scenes, scenes

BATCH_SIZE = 250
WEIGHT_DECAY = 3e-4  # of the linear probe
# on the CPU, in evaluation mode; its preprocess and tokenizer
OpenedModel = tuple[nn.Module, Callable, Callable]
Measures = dict[str, float]  # by name, in percent


def measure(opened: OpenedModel, num_scenes: int = 1000, num_probe_scenes: int = 2000) -> Measures:
    """Returns the measures of a model on the scenes for the test, in percent.

    zero_shot: top-1 accuracy on scenes with one object, over all names.
    image_to_text_R@1, text_to_image_R@1: retrieval of long captions, for different scenes with at
        least two objects.
    tagging: the fraction of the k objects in such a scene that are among the k most similar names.
    linear_probe: the same fraction for a linear classifier of frozen image features, fitted to
        training scenes.
    """
    model, preprocess, tokenizer = opened
    singles = list(scenes(num_scenes, split="test", num_objects=(1,)))
    groups = different_scenes(num_scenes)
    probe_scenes = list(scenes(num_probe_scenes))
    with torch.inference_mode():
        classifier = name_classifier(model, tokenizer)  # [D, N]
        single_features, group_features, probe_features = (
            scene_features(model, preprocess, shown) for shown in (singles, groups, probe_scenes)
        )  # [S, D]
        captions = [scene.captions["long"] for scene in groups]
        recalls = retrieval_metrics(group_features, encode(model.encode_text, tokenizer, captions))
    group_labels = object_labels(groups)
    probe = fit_object_probe(probe_features, object_labels(probe_scenes))
    return {
        "zero_shot": fraction_found(single_features @ classifier, object_labels(singles)),
        "image_to_text_R@1": 100 * float(recalls["image_to_text_R@1"]),
        "text_to_image_R@1": 100 * float(recalls["text_to_image_R@1"]),
        "tagging": fraction_found(group_features @ classifier, group_labels),
        "linear_probe": fraction_found(probe(group_features), group_labels),
    }


def object_labels(shown: Sequence[Scene]) -> Tensor:
    """Returns 1 for each scene and name of an object in it, else 0, float32 [S, N]."""
    return torch.tensor([[float(name in scene.objects) for name in NAMES] for scene in shown])


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


def name_classifier(model: nn.Module, tokenizer: Callable) -> Tensor:
    """Returns OpenCLIP's zero-shot classifier of the plain names, [D, N]."""
    return build_zero_shot_classifier(model, tokenizer, NAMES, ("{}",)).float()


def scene_features(model: nn.Module, preprocess: Callable, shown: Sequence[Scene]) -> Tensor:
    """Returns the normalized image features of the scenes, [S, D]."""

    def images(batch: Sequence[Scene]) -> Tensor:
        return torch.stack([preprocess(scene.image) for scene in batch])

    return encode(model.encode_image, images, shown)


def encode(encoder: Callable, prepare: Callable, items: Sequence) -> Tensor:
    """Returns the normalized features of the items, float32 [S, D]."""
    batches = [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]
    return torch.cat([encoder(prepare(batch), normalize=True).float() for batch in batches])
