"""From the probabilities of tokens to the shares of words."""

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from open_clip.constants import HF_CONFIG_NAME
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from ..checkpoints.architecture import architecture_of, fit
from ..checkpoints.checkpoint import Checkpoint, check_match, check_values, read_checkpoint
from ..checkpoints.run_outputs import run_behind
from ..environment import check_device
from ..errors import InputError
from ..method.head import head_input_of
from ..method.patch_tokens import head_input_map
from ..method.token_statistics import special_token_ids
from ..openclip.unpatched import plugins_model_class
from .lexicon import Lexicon, chosen_lexicon, lexicon, open_lexicon

FULL_BAR = 0.2  # score of a full bar: scaled by the best word of each image, 0.6 % would look certain
NUM_CANDIDATES = 512  # words of a picture that are looked at closely
SEEN_TOGETHER = 0.25  # of a word's share, at the patch where its tokens are seen best


class Shares:
    """How much of a caption each word is.

    The head was trained to predict ŷ, which divides 1 among the caption's tokens in proportion to their IDF weights w:
    p = softmax(logits) estimates it. A word's share is p of its token or, for a word of several,
    min(p_c / w_c) · Σ w_c over its tokens c: Σ p_c where they stand in the proportion that one word gives them, and
    what is more belongs to other words. A token of weight 0 (one that every caption holds) says nothing, and is left
    out of its words.

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
        """Returns the shares of words, [..., V] to [..., N]."""
        tokens = self.tokens[words]
        per_weight = probabilities[..., tokens.clamp_max(self.blank - 1)] / self.weights[tokens]  # [..., N, L]
        lowest = per_weight.masked_fill(tokens == self.blank, torch.inf).amin(dim=-1)
        return (lowest * self.totals[words]).nan_to_num(nan=0.0)

    def of_each(self, probabilities: Tensor, rows: Tensor, words: Tensor) -> Tensor:
        """Returns the share of one word in one row each, [B, V] to [M]: of words[m] in probabilities[rows[m]]."""
        tokens = self.tokens[words]
        per_weight = probabilities[rows[:, None], tokens.clamp_max(self.blank - 1)] / self.weights[tokens]  # [M, L]
        lowest = per_weight.masked_fill(tokens == self.blank, torch.inf).amin(dim=-1)
        return (lowest * self.totals[words]).nan_to_num(nan=0.0)

    def highest(self, probabilities: Tensor, top: int) -> dict[int, float]:
        """Returns the `top` words and their shares of probabilities [V], each word as if it were alone."""
        shares, words = self.of(probabilities).topk(min(top, len(self.totals)))
        return dict(zip(words.tolist(), shares.tolist(), strict=True))

    def divide(self, probabilities: Tensor, at_patches: Tensor, top: int) -> dict[int, float]:
        """Returns the `top` words and their shares where words divide the tokens: what one takes no other has.

        The highest share comes first and, among those within a factor of two of it, the word of most tokens: little of
        "hamburger" is left for "burger". Tokens join to a word only where they are seen together: of "melon" and "rose"
        in one picture no "melrose" is made.

        Args:
            probabilities: [V], of the mean patch token.
            at_patches: [patches, V].
        """
        _, candidates = self.of(probabilities).topk(min(NUM_CANDIDATES, len(self.totals)))
        peaks = self.of(at_patches, candidates).amax(dim=0)
        peaks[self.lengths[candidates] == 1] = torch.inf
        left, found = probabilities.clone(), {}
        for _ in range(min(top, len(candidates))):
            shares = self.of(left, candidates)
            shares = shares.where(peaks >= SEEN_TOGETHER * shares, 0.0)
            near = (shares > 0) & (shares >= shares.max() / 2)
            if not near.any():
                break
            place = (self.lengths[candidates] * near + shares).argmax()  # a share is below 1, a length a whole number
            word, share = candidates[place].item(), shares[place].item()
            tokens = self.tokens[word][self.tokens[word] != self.blank]
            left[tokens] = (left[tokens] - share * self.weights[tokens] / self.totals[word]).clamp_min(0.0)
            peaks[place] = -1.0  # found
            found[word] = share
        return dict(sorted(found.items(), key=lambda item: -item[1]))


class Opened(NamedTuple):
    """A model for evaluation, with its class head if it has one."""

    model: nn.Module
    tokenizer: Callable
    preprocess_cfg: PreprocessCfg
    token_weights: Tensor | None  # [V], what each token weighed as a label: its IDF; None without a head

    def preprocess(self) -> Callable:
        """Returns what makes a picture the model's input."""
        return image_transform_v2(self.preprocess_cfg, is_train=False)


def open_with_head(path: Path, architecture: str | None = None, device: str = "cpu") -> Opened:
    """Returns the model in a file or folder; InputError where that holds no class head.

    Args:
        architecture: the OpenCLIP model's name, where nothing beside the weights says it.
    """
    check_device(device)
    checkpoint = read_model(path)
    if not checkpoint.head():
        raise InputError(f"--model: {path} holds no class head, which is what sees words: {without_head(path)}")
    return open_checkpoint(checkpoint, architecture, device)


def open_checkpoint(checkpoint: Checkpoint, architecture: str | None = None, device: str = "cpu") -> Opened:
    """Returns the model of a checkpoint, with its class head if it has one; InputError where it cannot be built.

    Args:
        architecture: the OpenCLIP model's name, where nothing beside the weights says it.
    """
    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns of a model without weights: they come below
    path, record = checkpoint.path, run_behind(checkpoint)
    found = architecture_of(path, record.options, architecture, flag="--architecture")
    fitted, weights = fit(found, checkpoint.weights)
    tokenizer = found.tokenizer()
    if checkpoint.head():
        with plugins_model_class():
            head = {"ignored_tokens": special_token_ids(tokenizer), "head_input": head_input_of(weights)}
            model = fitted.on("cpu", superclip=head)
    else:
        model = fitted.on("cpu")
    check_match(weights, model.state_dict(), str(path), found.name)
    check_values(weights, f"--model: {path}")
    model.load_state_dict(weights)
    token_weights = _token_weights(model, record.options) if checkpoint.head() else None
    preprocess_cfg = PreprocessCfg(**model.visual.preprocess_cfg)
    return Opened(model.eval().requires_grad_(False).to(device), tokenizer, preprocess_cfg, token_weights)


def _token_weights(model: nn.Module, options: dict) -> Tensor:
    counts = model.statistics
    equal = options.get("superclip_idf") == "off" or not counts.num_captions
    return counts.counted.float() if equal else counts.idf()


def read_model(path: Path) -> Checkpoint:
    """Returns what the file or folder of --model holds; InputError where that is no model of OpenCLIP's."""
    if not path.exists():
        raise InputError(f"--model: there is no file or folder {path}")
    if path.is_dir() and (path / "config.json").is_file() and not (path / HF_CONFIG_NAME).is_file():
        raise InputError(f"--model: {path} is for transformers; export the checkpoint with --with-head alone")
    try:
        return read_checkpoint(path)
    except InputError as error:
        raise InputError(f"--model: {error}") from error


def without_head(path: Path) -> str:
    """Returns what to do about a model that holds no class head."""
    return "export its checkpoint with --with-head" if path.is_dir() else "it is of a run without --superclip"


TOP = 10  # words of a picture, where nobody says how many
FINER = 4  # a picture's pixels for one of the model's, at least; more change nothing
SHORTEST = 1024  # pixels: heat maps show a picture finer than most models see it


class Seen(NamedTuple):
    """A word in a picture."""

    word: str
    score: float  # its share of the caption's IDF-weighted words, 0 to 1
    peak: float  # the same share at the patch where it is highest
    map: Tensor | None = None  # [h, w], the same share at every patch; None of an earlier call's words


class Tagger:
    """Names the words of pictures, with scores that are shares of the caption's IDF-weighted words (see `Shares`).

    Args:
        words: the words to look for, as --words gives them; without, every word that the lexicon holds, and the words
            divide the tokens between them.
        top: how many words a picture; None for 10 of the lexicon's, or all that were chosen.
    """

    def __init__(self, opened: Opened, words: str | None, top: int | None):
        self.model, self.preprocess, self.preprocess_cfg = opened.model, opened.preprocess(), opened.preprocess_cfg
        self.device = opened.model.class_head.weight.device
        vocab_size = opened.model.statistics.vocab_size
        self.is_open = words is None
        if self.is_open:
            self.lexicon = open_lexicon(opened.tokenizer, vocab_size)
        else:
            self.lexicon = chosen_lexicon(words, opened.tokenizer, vocab_size)
        self.top = top or (TOP if self.is_open else len(self.lexicon.words))
        self.tokenizer, self.weights = opened.tokenizer, opened.token_weights.cpu()
        self.shares = Shares(self.lexicon, self.weights)

    def of_words(self, words: list[str]) -> "Tagger | None":
        """Returns a tagger of the same model that looks for these words alone; None where it can spell none of them."""
        chosen = lexicon(words, self.tokenizer, self.model.statistics.vocab_size)
        if not chosen.words:
            return None
        other = copy.copy(self)
        other.is_open, other.lexicon, other.top = False, chosen, len(chosen.words)
        other.shares = Shares(chosen, self.weights)
        return other

    @property
    def shortest(self) -> int:
        """How many pixels a picture's shorter side needs."""
        size = self.preprocess_cfg.size
        return max(SHORTEST, FINER * (max(size) if isinstance(size, tuple | list) else size))

    @torch.inference_mode()
    def tag(self, pictures: Sequence[Image.Image]) -> list[list[Seen]]:
        """Returns the words of each picture, the highest score first."""
        if not pictures:
            return []
        images = torch.stack([self.preprocess(picture) for picture in pictures]).to(self.device)
        visual, tokens, reads = self.model.visual, self.model.patch_tokens, self.model.class_head.reads
        patches = head_input_map(visual, tokens, images, reads).float()  # [B, W, h, w]
        return list(map(self._words, patches))  # one at a time: the vocabulary's logits at every patch are large

    def _words(self, patches: Tensor) -> list[Seen]:
        """Returns the words of one picture, patches [W, h, w]."""
        mean = self._probabilities(patches.mean(dim=(1, 2)))  # [V]
        at_patches = self._probabilities(patches.flatten(1).T)  # [h · w, V]
        best = self.shares.divide(mean, at_patches, self.top) if self.is_open else self.shares.highest(mean, self.top)
        words = list(best)
        maps = self.shares.of(at_patches, words).T.unflatten(1, patches.shape[1:])  # [K, h, w]
        return [
            Seen(self.lexicon.words[word], best[word], map.max().item(), map)
            for word, map in zip(words, maps, strict=True)
        ]

    def _probabilities(self, tokens: Tensor) -> Tensor:
        return self.model.class_head.logits(tokens).float().softmax(dim=-1).cpu()
