"""Classification without CLIP_benchmark: sklearn on a few pictures a class, and on the nearest neighbours."""

import statistics

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize
from tqdm import tqdm

from .kept_features import Features
from .outcomes import MEAN, Outcome, right

SHOTS = (1, 2, 4, 8, 16)  # pictures a class
FEWSHOT_DRAWS = 5
NEIGHBOURS = 20
ITERATIONS = 1000


def few_shot(by_split: dict[str, Features]) -> tuple[dict[str, float | None], dict[str, Outcome]]:
    """Returns the accuracy of a logistic regression on k pictures a class, mean over draws, as `fewshot_acc1@k`.

    The features are normalised as CLIP_benchmark's probe normalises them, then standardised by the pictures drawn;
    sklearn's defaults otherwise. None where a class has fewer pictures.
    """
    pictures, labels = _arrays(by_split["train"])
    test, expected = _arrays(by_split["test"])
    metrics, outcomes = {"draws": FEWSHOT_DRAWS}, {}
    fewest = min(np.unique(labels, return_counts=True)[1])
    with tqdm(total=len(SHOTS) * FEWSHOT_DRAWS, desc="few-shot", unit=" fits", leave=False) as progress:
        for shots in SHOTS:
            hits = np.zeros(len(expected), np.uint8)
            for draw in range(FEWSHOT_DRAWS if shots <= fewest else 0):
                drawn = _drawn(labels, shots, draw)
                fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
                hits += fitted.fit(pictures[drawn], labels[drawn]).predict(test) == expected
                progress.update()
            metrics[f"fewshot_acc1@{shots}"] = None
            if shots <= fewest:
                metrics[f"fewshot_acc1@{shots}"] = statistics.fmean(hits.tolist()) / FEWSHOT_DRAWS
                of = np.full(len(expected), FEWSHOT_DRAWS, np.uint8)
                outcomes[f"fewshot_acc1@{shots}"] = Outcome(MEAN, hits, of)
    return metrics, outcomes


def nearest_neighbours(by_split: dict[str, Features]) -> tuple[dict[str, float], dict[str, Outcome]]:
    """Returns, as `knn_acc1`, how often the nearest training pictures vote right; nearer ones weigh more."""
    pictures, labels = _arrays(by_split["train"])
    test, expected = _arrays(by_split["test"])
    neighbours = min(NEIGHBOURS, len(labels))
    fitted = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute", weights="distance")
    fitted.fit(pictures, labels)
    hits = [
        fitted.predict(test[start : start + 1000]) == expected[start : start + 1000]
        for start in tqdm(range(0, len(test), 1000), desc="nearest neighbours", unit=" k pictures", leave=False)
    ]
    hits = np.concatenate(hits)
    return {"knn_acc1": float(hits.mean()), "neighbours": neighbours}, {"knn_acc1": right(hits)}


def _arrays(features: Features) -> tuple[np.ndarray, np.ndarray]:
    return normalize(features.images.float(), dim=-1).numpy(), features.targets.numpy()


def _drawn(labels: np.ndarray, shots: int, draw: int) -> np.ndarray:
    """Returns the places of `shots` pictures of every class; the same for every model."""
    rng = np.random.default_rng((draw, shots))
    order = rng.permutation(len(labels))
    return np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)])
