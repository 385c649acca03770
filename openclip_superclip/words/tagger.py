"""Tags images with the words that a model's class head predicts, their scores and their locations."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from open_clip.constants import HF_CONFIG_NAME
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from ..checkpoints.architecture import architecture_of, fit
from ..checkpoints.checkpoint import Checkpoint, check_match, check_values, read_checkpoint
from ..checkpoints.run_outputs import latest_checkpoints, run_behind
from ..environment import check_device
from ..errors import InputError
from ..method.head import head_input_of
from ..method.patch_tokens import head_input_map
from ..method.token_statistics import special_token_ids
from ..openclip.unpatched import plugins_model_class
from .lexicon import Lexicon, open_lexicon

FULL_BAR = 0.2  # score of a full bar; relative to the best word of an image, a score of 0.6 % could fill it
NUM_CANDIDATES = 512  # highest words of an image that are considered
MIN_PEAK = 0.25  # minimum score at a word's best patch, relative to its score for the whole image
TOP = 10  # words per image, without --words
NO_HEAD = "train with --superclip, and export with --with-head"
SHORTEST = 1024  # pixels: images are reduced to this shorter side, which is enough for models and heat maps


class Shares:
    """Computes the probability of each word from the probabilities of tokens.

    The head is trained to predict ŷ, the distribution of the caption's tokens in proportion to their IDF weights w;
    p = softmax(logits) estimates it. The score of a word with one token is p of that token. The score of a word with
    several tokens c is min(p_c / w_c) · Σ w_c. This is Σ p_c if the tokens occur in the word's own proportions;
    probability in excess of these is attributed to other words. Tokens of weight 0, which every caption contains, carry
    no information and are ignored.

    Args:
        weights: w [V].
    """

    def __init__(self, lexicon: Lexicon, weights: Tensor):
        self.blank = lexicon.vocab_size
        self.weights = torch.cat([weights, weights.new_zeros(1)])  # [V + 1], 0 for the blank
        self.tokens = lexicon.tokens.where(self.weights[lexicon.tokens] > 0, self.blank)  # [N, L]
        self.lengths = (self.tokens != self.blank).sum(dim=1)  # [N]
        self.totals = self.weights[self.tokens].sum(dim=1)  # [N]

    def of(self, probabilities: Tensor, words: Tensor | list[int] | slice = slice(None)) -> Tensor:
        """Returns the scores of words [..., N], given the probabilities of tokens [..., V]."""
        tokens = self.tokens[words]
        per_weight = probabilities[..., tokens.clamp_max(self.blank - 1)] / self.weights[tokens]  # [..., N, L]
        least = per_weight.masked_fill(tokens == self.blank, torch.inf).amin(dim=-1)
        return (least * self.totals[words]).nan_to_num(nan=0.0)

    def highest(self, probabilities: Tensor, top: int) -> dict[int, float]:
        """Returns the `top` words of probabilities [V] with their scores, each scored independently."""
        scores, words = self.of(probabilities).topk(min(top, len(self.totals)))
        return dict(zip(words.tolist(), scores.tolist(), strict=True))

    def divide(self, probabilities: Tensor, at_patches: Tensor, top: int) -> dict[int, float]:
        """Returns the `top` words with their scores, counting the probability of each token only once.

        Words are selected greedily. Among the words whose score is at least half of the highest one, the word with the
        most tokens is selected, and its score is subtracted from its tokens: "hamburger" leaves little for "burger".
        The tokens of a word must peak together: "melon" and "rose" in different places do not make "melrose".

        Args:
            probabilities: [V], for the mean patch token.
            at_patches: [patches, V].
        """
        _, candidates = self.of(probabilities).topk(min(NUM_CANDIDATES, len(self.totals)))
        peaks = self.of(at_patches, candidates).amax(dim=0)
        peaks[self.lengths[candidates] == 1] = torch.inf
        left, found = probabilities.clone(), {}
        for _ in range(min(top, len(candidates))):
            scores = self.of(left, candidates)
            scores = scores.where(peaks >= MIN_PEAK * scores, 0.0)
            near = (scores > 0) & (scores >= scores.max() / 2)
            if not near.any():
                break
            best = (self.lengths[candidates] * near + scores).argmax()  # scores are below 1, lengths are integers
            word, score = candidates[best].item(), scores[best].item()
            tokens = self.tokens[word][self.tokens[word] != self.blank]
            left[tokens] = (left[tokens] - score * self.weights[tokens] / self.totals[word]).clamp_min(0.0)
            peaks[best] = -1.0  # found
            found[word] = score
        return dict(sorted(found.items(), key=lambda item: -item[1]))


class Opened(NamedTuple):
    """A model in evaluation mode, with its class head if it has one."""

    model: nn.Module
    tokenizer: Callable
    preprocess_cfg: PreprocessCfg
    token_weights: Tensor | None  # [V], IDF weight of each token; None without a head

    def preprocess(self) -> Callable:
        """Returns the transform from a PIL image to the model's input."""
        return image_transform_v2(self.preprocess_cfg, is_train=False)


def read_model(path: Path) -> Checkpoint:
    """Returns the checkpoint of --model, the latest one if it is a run's folder. Raises InputError if there is none."""
    if not path.exists():
        raise InputError(f"--model: there is no file or folder {path}")
    if (path / "config.json").is_file() and not (path / HF_CONFIG_NAME).is_file():
        raise InputError(f"--model: {path} is for transformers; export the checkpoint with --with-head alone")
    if (path / "checkpoints").is_dir():
        last = next(iter(latest_checkpoints(path / "checkpoints")), None)
        if last is None:
            raise InputError(f"--model: {path} is a run without a checkpoint; expected checkpoints/epoch_N.pt in it")
        path = Path(last)
    try:
        return read_checkpoint(path)
    except InputError as error:
        raise InputError(f"--model: {error}") from error


def open_with_head(path: Path, architecture: str | None = None, device: str | None = None) -> Opened:
    """Opens the model in a file or folder with `open_checkpoint`. Raises InputError if it has no class head."""
    device = check_device(device)
    checkpoint = read_model(path)
    if not checkpoint.head():
        raise InputError(f"--model: {path} holds no class head, which sees the words: {NO_HEAD}")
    return open_checkpoint(checkpoint, architecture, device)


def open_checkpoint(checkpoint: Checkpoint, architecture: str | None = None, device: str = "cpu") -> Opened:
    """Returns the model of a checkpoint, with its class head if it has one. Raises InputError if it cannot be built.

    Args:
        architecture: name of the OpenCLIP model, if it is not recorded with the weights.
    """
    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that the model has no weights, which are loaded below
    path, record, has_head = checkpoint.path, run_behind(checkpoint), bool(checkpoint.head())
    found = architecture_of(path, record.options, architecture, flag="--architecture")
    fitted, weights = fit(found, checkpoint.weights)
    tokenizer, head = found.tokenizer(), {}
    if has_head:
        head["superclip"] = {"ignored_tokens": special_token_ids(tokenizer), "head_input": head_input_of(weights)}
    with plugins_model_class():
        model = fitted.on("cpu", **head)
    check_match(weights, model.state_dict(), str(path), found.name)
    check_values(weights, f"--model: {path}")
    model.load_state_dict(weights)
    token_weights = None
    if has_head:
        counts = model.statistics
        is_unweighted = record.options.get("superclip_idf") == "off" or not counts.num_captions
        token_weights = counts.counted.float() if is_unweighted else counts.idf()
    preprocess_cfg = PreprocessCfg(**model.visual.preprocess_cfg)
    return Opened(model.eval().requires_grad_(False).to(device), tokenizer, preprocess_cfg, token_weights)


class Seen(NamedTuple):
    """A word in an image."""

    word: str
    score: float  # its predicted fraction of the caption's IDF-weighted words, 0 to 1
    peak: float  # the score at the best patch
    map: Tensor | None = None  # [h, w], the score at each patch; None if read from a file


class Tagger:
    """Tags images with words; `Shares` defines the scores.

    Args:
        chosen: words to score, independently of each other; None for all words of the model's lexicon, with each token
            counted only once.
        top: maximum number of words per image; the default is 10, or all of `chosen`.
    """

    def __init__(self, opened: Opened, chosen: Lexicon | None = None, top: int | None = None):
        self.opened, self.is_open, weights = opened, chosen is None, opened.token_weights.cpu()
        self.lexicon = open_lexicon(opened.tokenizer, len(weights)) if chosen is None else chosen
        self.top = top or (TOP if self.is_open else len(self.lexicon.words))
        self.shares = Shares(self.lexicon, weights)
        self.preprocess = opened.preprocess()

    @torch.inference_mode()
    def tag(self, image: Image.Image) -> list[Seen]:
        """Returns the words of an image, highest score first."""
        model, head = self.opened.model, self.opened.model.class_head
        inputs = self.preprocess(image)[None].to(head.weight.device)
        (patches,) = head_input_map(model.visual, model.patch_tokens, inputs, head.reads).float()  # [W, h, w]
        mean = self._probabilities(patches.mean(dim=(1, 2)))  # [V]
        at_patches = self._probabilities(patches.flatten(1).T)  # [h · w, V]
        best = self.shares.divide(mean, at_patches, self.top) if self.is_open else self.shares.highest(mean, self.top)
        maps = self.shares.of(at_patches, list(best)).T.unflatten(1, patches.shape[1:])  # [K, h, w]
        return [
            Seen(self.lexicon.words[word], score, map.max().item(), map)
            for (word, score), map in zip(best.items(), maps, strict=True)
        ]

    def _probabilities(self, inputs: Tensor) -> Tensor:
        return self.opened.model.class_head.logits(inputs).float().softmax(dim=-1).cpu()
