"""What a model has learned of the demo's scenes: zero-shot, retrieval, tagging and linear-probe measures."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import torch
import torch.nn.functional as F
from open_clip import build_zero_shot_classifier
from PIL import Image
from torch import Tensor, nn

from ..openclip import retrieval_metrics
from .scenes import DESIGNERS, NAMES, Scene, make_scene, names_of, scenes

BATCH_SIZE = 250


def measure(
    model: nn.Module,
    preprocess: Callable,
    tokenizer: Callable,
    split: str = "test",
    seed: int = 0,
    device: str | torch.device = "cpu",
    num_scenes: int = 1000,
    num_probe_scenes: int = 2000,
    designers: Sequence[str] = DESIGNERS,
    trained_on: Sequence[str] = DESIGNERS,
) -> dict[str, float]:
    """The model's measures on scenes of a split by some designers, in percent. `device` is where the model is.

    The designers whom it was trained on have drawn the same objects: the linear probe's scenes are theirs.

    zero_shot: one-object scenes whose object is, of all names, the most similar (top-1).
    image_to_text_R@1, text_to_image_R@1: scenes of two objects or more, no two alike, and their long captions.
    tagging: the share of such a scene's k objects that are among the k most similar names.
    linear_probe: the same share for a linear classifier of frozen image features, fitted to training scenes.
    """
    singles = list(scenes(num_scenes, seed, split, num_objects=(1,), designers=designers))
    groups = different_scenes(num_scenes, seed, split, designers)
    probe_scenes = list(scenes(num_probe_scenes, seed, "train", designers=trained_on))
    names = names_of(designers)
    with evaluating(model):
        classifier = name_classifier(model, tokenizer, device, names)  # [D, N]
        single_features = scene_features(model, preprocess, singles, device)  # [S, D]
        group_features = scene_features(model, preprocess, groups, device)
        probe_features = scene_features(model, preprocess, probe_scenes, device)
        captions = [scene.captions["long"] for scene in groups]
        caption_features = encode_in_batches(model.encode_text, tokenizer, captions, device)
    retrieval = retrieval_metrics(group_features, caption_features, logit_scale=1.0)  # a scale changes no rank
    probe = fit_probe(probe_features, object_labels(probe_scenes, names))
    return {
        "zero_shot": share_found(single_features @ classifier, object_labels(singles, names)),
        "image_to_text_R@1": 100 * float(retrieval["image_to_text_R@1"]),
        "text_to_image_R@1": 100 * float(retrieval["text_to_image_R@1"]),
        "tagging": share_found(group_features @ classifier, object_labels(groups, names)),
        "linear_probe": share_found(probe(group_features), object_labels(groups, names)),
    }


def describe(
    model: nn.Module,
    preprocess: Callable,
    tokenizer: Callable,
    num: int = 6,
    split: str = "test",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> list[tuple[Image.Image, list[str], list[str]]]:
    """A few scenes of two objects or more: each picture, its k objects and the k names most similar to it."""
    groups = different_scenes(num, seed, split)
    with evaluating(model):
        scores = scene_features(model, preprocess, groups, device) @ name_classifier(model, tokenizer, device)  # [S, N]
    ranked = scores.argsort(dim=1, descending=True).tolist()
    return [
        (scene.image, scene.objects, [NAMES[name] for name in names[: len(scene.objects)]])
        for scene, names in zip(groups, ranked, strict=True)
    ]


def different_scenes(num: int, seed: int, split: str, designers: Sequence[str] = DESIGNERS) -> list[Scene]:
    """The first `num` scenes of a split that have two objects or more, no two of them the same objects."""
    found: dict[frozenset[str], Scene] = {}
    for index in count():
        if len(found) == num:
            return list(found.values())
        scene = make_scene(seed, index, split, range(2, 5), designers)
        found.setdefault(frozenset(scene.objects), scene)


def object_labels(shown: Sequence[Scene], names: Sequence[str] = NAMES) -> Tensor:
    """1 where a scene shows the object of that name, else 0. [S, N]"""
    return torch.tensor([[float(name in scene.objects) for name in names] for scene in shown])


def share_found(scores: Tensor, labels: Tensor) -> float:
    """The share of a scene's k objects among its k best scores [S, N], mean over the scenes, in percent."""
    labels = labels.double()
    num_objects = labels.sum(dim=1, keepdim=True)  # [S, 1]
    by_rank = labels.gather(1, scores.argsort(dim=1, descending=True))  # [S, N]
    among_best = torch.arange(labels.shape[1]) < num_objects  # [S, N]
    return 100 * ((by_rank * among_best).sum(dim=1) / num_objects.squeeze(1)).mean().item()


def fit_probe(features: Tensor, labels: Tensor, weight_decay: float = 3e-4) -> Callable[[Tensor], Tensor]:
    """A linear multi-label classifier [S, D] -> [S, N], fitted from zero by L-BFGS: nothing in it is random."""
    mean, std = features.mean(dim=0), features.std(dim=0) + 1e-6
    inputs = (features - mean) / std  # L-BFGS is slow on inputs that differ by little, as normalised features do
    weight = torch.zeros(labels.shape[1], features.shape[1], requires_grad=True)  # [N, D]
    bias = torch.zeros(labels.shape[1], requires_grad=True)  # [N]
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(inputs, weight, bias)  # [S, N]
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(labels)
        loss = loss + weight_decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return lambda features: F.linear((features - mean) / std, weight.detach(), bias.detach())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, without gradients; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def name_classifier(
    model: nn.Module, tokenizer: Callable, device: str | torch.device, names: Sequence[str] = NAMES
) -> Tensor:
    """OpenCLIP's zero-shot classifier of the plain names: the captions have no prompt around them either. [D, N]"""
    return build_zero_shot_classifier(model, tokenizer, names, ["{}"], device=device).float().cpu()


def scene_features(
    model: nn.Module, preprocess: Callable, shown: Sequence[Scene], device: str | torch.device
) -> Tensor:
    """The scenes' normalised image features. [S, D]"""

    def stack(batch: Sequence[Scene]) -> Tensor:
        return torch.stack([preprocess(scene.image) for scene in batch])

    return encode_in_batches(model.encode_image, stack, shown, device)


def encode_in_batches(encode: Callable, prepare: Callable, items: Sequence, device: str | torch.device) -> Tensor:
    """The items' normalised features, float32, on the CPU. [S, D]"""
    batches = [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]
    return torch.cat([encode(prepare(batch).to(device), normalize=True).float().cpu() for batch in batches])
