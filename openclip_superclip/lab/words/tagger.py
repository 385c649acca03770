"""Maps words to the tokens that spell them, and tags images with the words that a model's class
head predicts."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from open_clip.constants import HF_CONFIG_NAME
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from ...checkpoints.architecture import architecture_of, fit
from ...checkpoints.run_outputs import run_options
from ...checkpoints.weights import (
    Checkpoint,
    check_match,
    check_values,
    checkpoint_of,
    fixed_idf,
    read_checkpoint,
)
from ...data.captions import token_texts
from ...environment import check_device
from ...errors import InputError, listed, reason
from ...method.head import head_input_of
from ...method.head_input import head_input_map
from ...method.idf import special_token_ids
from ...openclip.hook_calls import plugins_model_class

# score of a full bar; relative to the best word of an image, a score of 0.6 % could fill it
FULL_BAR = 0.2
TOP = 10  # words per image, without --words
NO_HEAD = "train with --superclip, and export with --with-head"
SHORTEST_WORD = 3  # letters: shorter tokens are almost always the end of a longer word
CHUNK = 4096  # words tokenized at once


class Lexicon(NamedTuple):
    """N words and their tokens."""

    words: list[str]
    tokens: Tensor  # int64 [N, L], the ids of each word, padded with V
    vocab_size: int  # V


def open_lexicon(tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words that are single tokens of the tokenizer, about 32,000 for CLIP's
    vocabulary."""
    texts = enumerate(token_texts(tokenizer, vocab_size))
    words = {
        text.lower(): [id] for id, text in texts if text.isalpha() and len(text) >= SHORTEST_WORD
    }
    if isinstance(tokenizer, SimpleTokenizer):  # its texts mark parts of words
        return Lexicon(
            list(words),
            torch.tensor(list(words.values()), dtype=torch.int64).view(-1, 1),
            vocab_size,
        )
    every = lexicon(list(words), tokenizer, vocab_size)
    is_single = (every.tokens < vocab_size).sum(dim=1) == 1
    return Lexicon(
        list(itertools.compress(every.words, is_single)), every.tokens[is_single, :1], vocab_size
    )


def chosen_lexicon(flag: str, tokenizer: Callable, vocab_size: int) -> Lexicon:
    """Returns the words and phrases of --words, a comma-separated list or a file with one per
    line."""
    try:
        lines = (
            Path(flag).read_text("utf-8-sig").splitlines()
            if os.path.isfile(flag)
            else flag.split(",")
        )
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--words: {flag} cannot be read as text ({reason(error)})") from error
    words = [" ".join(line.split()) for line in lines if line.strip()]
    if not words:
        raise InputError(
            f"--words is '{flag}'; expected words separated by commas, or a file with one per line"
        )
    chosen = lexicon(words, tokenizer, vocab_size)
    if unknown := [word for word in words if word not in chosen.words]:
        raise InputError(f"--words: the model's tokenizer has no tokens for {listed(unknown)}")
    return chosen


def lexicon(
    words: list[str], tokenizer: Callable, vocab_size: int, at_start: bool = False
) -> Lexicon:
    """Returns the words and phrases that the tokenizer has tokens for, as spelled after a space
    or at the start."""
    found = {
        word: ids
        for word, ids in zip(words, _spell(words, tokenizer, vocab_size, at_start), strict=True)
        if ids
    }
    longest = max(map(len, found.values()), default=1)
    rows = [[*ids, *[vocab_size] * (longest - len(ids))] for ids in found.values()]
    return Lexicon(list(found), torch.tensor(rows, dtype=torch.int64).view(-1, longest), vocab_size)


def start_differs(tokenizer: Callable) -> bool:
    """Returns whether a word at the start of a caption has other tokens, as with RoBERTa's and
    Gemma's tokenizers."""
    return (
        not isinstance(tokenizer, SimpleTokenizer)
        and len(set(tokenizer.tokenizer.tokenize("a a"))) > 1
    )


def _spell(
    words: list[str], tokenizer: Callable, vocab_size: int, at_start: bool
) -> list[list[int]]:
    """Returns the distinct token ids of each word, as the class loss counts them; [] if a part
    of it is unknown."""
    special, unknown, num_before = set(special_token_ids(tokenizer)), set(), 0
    if isinstance(tokenizer, SimpleTokenizer):
        rows = map(tokenizer.encode, words)
    else:
        inner = tokenizer.tokenizer  # some tokenizers use the unknown token as the end token, too
        if not at_start and start_differs(tokenizer):
            words, num_before = [f"a {word}" for word in words], len(inner.tokenize("a"))
        chunks = (
            tokenizer(words[start : start + CHUNK]).tolist()
            for start in range(0, len(words), CHUNK)
        )
        rows = itertools.chain.from_iterable(chunks)
        unknown = {inner.unk_token_id} - {
            inner.eos_token_id,
            inner.bos_token_id,
            inner.pad_token_id,
        }
    ids = (
        [] if unknown.intersection(row) else [id for id in row if id not in special][num_before:]
        for row in rows
    )
    return [list(dict.fromkeys(word)) if max(word, default=0) < vocab_size else [] for word in ids]


class WordProbabilities:
    """Computes the probability of each word from the probabilities of tokens.

    The head is trained to predict ŷ, the distribution of the caption's tokens in proportion to
    their IDF weights w; p = softmax(logits) estimates it. The score of a word with one token is p
    of that token. The score of a word with several tokens c is min(p_c / w_c) · Σ w_c. This is Σ
    p_c if the tokens occur in the word's own proportions; probability in excess of these is
    attributed to other words. Tokens of weight 0, which every caption contains, carry no
    information and are ignored. `weights` are w [V].
    """

    def __init__(self, lexicon: Lexicon, weights: Tensor):
        self.blank = lexicon.vocab_size
        self.weights = torch.cat([weights, weights.new_zeros(1)])  # [V + 1], 0 for the blank
        tokens = lexicon.tokens.to(weights.device)
        self.tokens = tokens.where(self.weights[tokens] > 0, self.blank)  # [N, L]
        self.totals = self.weights[self.tokens].sum(dim=1)  # [N]

    def of(self, probabilities: Tensor, words: Tensor | slice = slice(None)) -> Tensor:
        """Returns the scores of words [..., N], given the probabilities of tokens [..., V]."""
        tokens = self.tokens[words]
        # [..., N, L]
        per_weight = probabilities[..., tokens.clamp_max(self.blank - 1)] / self.weights[tokens]
        least = per_weight.masked_fill(tokens == self.blank, torch.inf).amin(dim=-1)
        return (least * self.totals[words]).nan_to_num(nan=0.0)


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
    """Returns the checkpoint of --model, the latest one if it is a run's folder.

    Raises InputError if there is none."""
    if (path / "config.json").is_file() and not (path / HF_CONFIG_NAME).is_file():
        raise InputError(
            f"--model: {path} is for transformers; export the checkpoint with --with-head alone"
        )
    try:
        return read_checkpoint(checkpoint_of(path))
    except InputError as error:
        raise InputError(f"--model: {error}") from error


def open_with_head(
    path: Path, architecture: str | None = None, device: str | None = None
) -> Opened:
    """Opens the model in a file or folder with `open_checkpoint`.

    Raises InputError if it has no class head."""
    device = check_device(device)
    checkpoint = read_model(path)
    if not checkpoint.head():
        raise InputError(f"--model: {path} has no class head, which predicts words: {NO_HEAD}")
    return open_checkpoint(checkpoint, architecture, device)


def open_checkpoint(
    checkpoint: Checkpoint, architecture: str | None = None, device: str = "cpu"
) -> Opened:
    """Returns the model of a checkpoint, with its class head if it has one. Raises InputError if it
    cannot be built.

    `architecture` is the name of the OpenCLIP model, if it is not recorded with the weights.
    """
    path, options, has_head = checkpoint.path, run_options(checkpoint), bool(checkpoint.head())
    found = architecture_of(path, options, architecture, flag="--architecture")
    fitted, weights = fit(found, checkpoint.weights)
    tokenizer, head = found.tokenizer(), {}
    if has_head:
        counts = fixed_idf(checkpoint, tokenizer)
        weights = weights | counts
        head["superclip"] = {
            "ignored_tokens": ()
            if options.get("superclip_special_tokens")
            else special_token_ids(tokenizer),
            "head_input": head_input_of(weights),
            "frequencies": tuple(counts.values()) or None,
        }
    with plugins_model_class():
        model = fitted.build("cpu", **head)
    check_match(weights, model.state_dict(), str(path), found.name)
    check_values(weights, f"--model: {path}")
    model.load_state_dict(weights)
    token_weights = _token_weights(model, options) if has_head else None
    preprocess_cfg = PreprocessCfg(**model.visual.preprocess_cfg)
    return Opened(
        model.eval().requires_grad_(False).to(device), tokenizer, preprocess_cfg, token_weights
    )


def _token_weights(model: nn.Module, options: dict) -> Tensor:
    """Returns the IDF weights of a run's training, [V]."""
    if model.fixed_idf is not None:
        return model.fixed_idf()
    is_unweighted = options.get("superclip_idf") == "off" or not model.statistics.num_captions
    return model.statistics.counted.float() if is_unweighted else model.statistics.idf()


class Seen(NamedTuple):
    """A word in an image."""

    word: str
    score: float  # its predicted fraction of the caption's IDF-weighted words, 0 to 1
    peak: float  # the score at the best patch
    map: Tensor  # [h, w], the score at each patch


class Tagger:
    """Tags images with the `top` words of those chosen, by default all of them.

    If none are chosen, these are all words that are single tokens of the model's vocabulary, and
    the best 10 of them.
    """

    def __init__(self, opened: Opened, chosen: Lexicon | None = None, top: int | None = None):
        self.opened, weights = opened, opened.token_weights.cpu()
        self.lexicon = open_lexicon(opened.tokenizer, len(weights)) if chosen is None else chosen
        self.top = min(
            top or (TOP if chosen is None else len(chosen.words)), len(self.lexicon.words)
        )
        self.words = WordProbabilities(self.lexicon, weights)
        self.preprocess = opened.preprocess()

    @torch.inference_mode()
    def tag(self, image: Image.Image) -> list[Seen]:
        """Returns the words of an image, highest score first."""
        model, head = self.opened.model, self.opened.model.class_head
        inputs = self.preprocess(image)[None].to(head.weight.device)
        # [W, h, w]
        (patches,) = head_input_map(model.visual, model.patch_tokens, inputs, head.reads).float()
        # [K]
        scores, best = self.words.of(self._probabilities(patches.mean(dim=(1, 2)))).topk(self.top)
        maps = self.words.of(self._probabilities(patches.flatten(1).T), best)  # [h · w, K]
        return [
            Seen(self.lexicon.words[word], score, map.max().item(), map)
            for word, score, map in zip(
                best.tolist(), scores.tolist(), maps.T.unflatten(1, patches.shape[1:]), strict=True
            )
        ]

    def _probabilities(self, inputs: Tensor) -> Tensor:
        return self.opened.model.class_head.logits(inputs).float().softmax(dim=-1).cpu()
