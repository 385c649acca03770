"""An OpenCLIP plugin with the arms of the study `ideas`: one change each of SuperCLIP's class loss.

They are written for one process, a ViT and --accum-freq 1. The class below each name says what it
changes.
"""

import collections
import math
import pathlib
import random
import re
import tarfile

import braceexpand
import open_clip
import pluggy
import torch
import torch.nn.functional as F
from torch import Tensor

from openclip_superclip.method.head import ClassHead

hookimpl = pluggy.HookimplMarker("open_clip")
SHARPNESS = 5.0  # of the log-sum-exp over patches: 0 is their mean, infinity their maximum
RARE = 1e-3  # relative frequency of the words that are never dropped
MEMORY = 0.99  # of the running mean of gradient norms
FUNCTION_WORDS = {
    "a",
    "an",
    "the",
    "one",
    "this",
    "there",
    "is",
    "of",
    "on",
    "and",
    "with",
    "next",
    "to",
    "at",
    "in",
    "something",
    ",",
}
LINKS = r"\s*(?:,| and | with | next to )\s*"


class Idea:
    """A model with a class head that takes the name of the idea and what it needs from the
    command line."""

    def __init__(self, *args, idea: dict, **kwargs):
        self.__dict__["idea"] = idea
        super().__init__(*args, **kwargs)

    def read_vit(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the pooled vector [B, W], before the projection, and the patch tokens [B, N,
        W]."""
        output = self.visual.forward_intermediates(
            image, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        patches = output["image_intermediates"][-1]
        pooled, _ = self.visual._pool(
            torch.cat([output["image_intermediates_prefix"][-1], patches], dim=1)
        )
        return pooled, self.visual.ln_post(patches)

    def outputs(self, pooled: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Returns OpenCLIP's outputs."""
        found = open_clip.model.CLIP.forward(self, None, text)
        return {**found, "image_features": F.normalize(pooled @ self.visual.proj, dim=-1)}


class LogSumExp(Idea):
    """The head reads log(mean over patches of exp(r x)) / r of each channel x, r = SHARPNESS."""

    def _encode(self, image, text, reading):
        pooled, patches = self.read_vit(image)
        lse = (SHARPNESS * patches.float()).logsumexp(dim=1) - math.log(patches.shape[1])
        reading.vector = lse / SHARPNESS
        return self.outputs(pooled, text)


class TwoHeads(Idea):
    """One head reads the class token, a second one the mean patch token; the class loss is their
    mean."""

    def _add_head(self, **options):
        super()._add_head(**options)
        self.training_only_second_head = ClassHead(
            self.patch_tokens.width, self.statistics.vocab_size
        )

    def _encode(self, image, text, reading):
        reading.vector, patches = self.read_vit(image)
        self.__dict__["second_input"] = patches.mean(dim=1)
        return self.outputs(reading.vector, text)

    def _class_losses(self, head_input, text, update, outputs):
        first = super()._class_losses(head_input, text, update, outputs)
        second = self.training_only_second_head(
            self.__dict__.pop("second_input"), text, self.statistics.idf()
        )
        return (first + second) / 2


class ContentWords(Idea):
    """Function words and punctuation are not labels."""

    def _add_head(self, ignored_tokens=(), **options):
        super()._add_head(ignored_tokens={*ignored_tokens, *self.idea["function_words"]}, **options)


class Sigmoid(Idea):
    """A sigmoid for each word instead of the softmax over all, as in SigLIP.

    With K words in a caption, the loss is the sum of binary cross-entropies over the vocabulary,
    divided by K. The weights of the K words are the class loss's, scaled to a mean of 1. The
    initial bias is that of six words a caption.
    """

    def _add_head(self, **options):
        super()._add_head(**options)
        torch.nn.init.constant_(self.class_head.bias, -math.log(self.statistics.vocab_size / 6))

    def _class_losses(self, head_input, text, update, outputs):
        self.statistics.finish(update)
        logits = self.class_head.logits(head_input).float()  # [B, V]
        labels = torch.zeros_like(logits).scatter_(1, text, 1.0) * self.statistics.counted
        number = labels.sum(dim=1, keepdim=True).clamp_min(1)
        # 0 for words not in the caption
        weights = F.normalize(labels * self.statistics.idf(), p=1, dim=1) * number
        others = (1 - labels) * self.statistics.counted
        losses = weights * F.softplus(-logits) + others * F.softplus(logits)
        return (losses / number).sum(dim=1)


class TwoTexts(Idea):
    """The text tower reads a changed caption (`ChangedCaptions`), the head predicts the words of
    the whole one."""

    def _add_head(self, text_length=None, **options):
        super()._add_head(text_length=self.context_length, **options)


class Decreasing(Idea):
    """The weight falls linearly from 2 to 0 over the training."""

    def _class_losses(self, *args):
        losses = super()._class_losses(*args)
        return losses * (2 * (1 - self.statistics.num_captions / self.idea["samples"])).clamp_min(0)


class EqualGradients(Idea):
    """The weight makes both losses' gradients of the class token equally long, by running means
    of their norms."""

    def _add_head(self, **options):
        super()._add_head(**options)
        # of the contrastive and of the class loss
        self.register_buffer("training_only_norms", torch.zeros(2))

    def _encode(self, image, text, reading):
        pooled, _ = self.read_vit(image)
        reading.vector, of_contrast = pooled.clone(), pooled.clone()
        if torch.is_grad_enabled():
            of_contrast.register_hook(lambda gradient: self._note(0, gradient))
            reading.vector.register_hook(lambda gradient: self._note(1, gradient / self.weight))
        return self.outputs(of_contrast, text)

    def _class_losses(self, *args):
        norms = self.training_only_norms
        self.__dict__["weight"] = (
            (norms[0] / norms[1]).clamp(0.05, 20).clone() if norms.all() else torch.tensor(1.0)
        )
        return super()._class_losses(*args) * self.weight

    def _note(self, index: int, gradient: Tensor) -> None:
        old, new = self.training_only_norms[index].clone(), gradient.norm()
        self.training_only_norms[index] = MEMORY * old + (1 - MEMORY) * new if old else new


IDEAS = {
    "log-sum-exp": LogSumExp,
    "two-heads": TwoHeads,
    "content-words": ContentWords,
    "sigmoid": Sigmoid,
    "sub-captions": TwoTexts,
    "dropped-words": TwoTexts,
    "decreasing": Decreasing,
    "equal-gradients": EqualGradients,
}


class ChangedCaptions:
    """The tokens of the text tower's caption, a function of seed, epoch and sample, and those of
    the whole caption.

    sub-captions: one of the parts between commas, "and", "with" and "next to". dropped-words: each
    word of relative frequency f is left out with probability 1 - sqrt(RARE / f), as in CLIPF; the
    rarest word stays.
    """

    def __init__(self, args, tokenizer, shared_epoch):
        self.args, self.tokenizer, self.shared_epoch = args, tokenizer, shared_epoch
        counts = _word_counts(args.train_data) if args.class_loss_idea == "dropped-words" else {}
        self.frequencies = {word: number / sum(counts.values()) for word, number in counts.items()}

    def __call__(self, sample: dict) -> Tensor:
        caption = sample["txt"]
        rng = random.Random(
            f"{self.args.seed} {self.shared_epoch.get_value()} {sample['__key__']} {caption}"
        )
        if self.args.class_loss_idea == "sub-captions":
            text = rng.choice(
                [part for part in re.split(LINKS, caption) if part.strip()] or [caption]
            )
        else:
            words = _words(caption)
            frequencies = [self.frequencies.get(word, RARE) for word in words]
            stays = [rng.random() < math.sqrt(RARE / frequency) for frequency in frequencies]
            stays[frequencies.index(min(frequencies))] = True
            text = " ".join(word for word, kept in zip(words, stays, strict=True) if kept)
        return self.tokenizer([text, caption]).flatten()


def _words(caption: str) -> list[str]:
    return re.findall(r"[\w'’-]+|[^\w\s]", caption.lower())


def _word_counts(shards: str) -> collections.Counter:
    """Returns how often each word occurs in the captions of the first shard."""
    with tarfile.open(next(braceexpand.braceexpand(shards))) as shard:
        captions = [
            shard.extractfile(member).read().decode()
            for member in shard
            if member.name.endswith(".txt")
        ]
    return collections.Counter(word for caption in captions for word in _words(caption))


@hookimpl
def open_clip_add_options(parser):
    parser.add_argument(
        "--class-loss-idea", choices=[*IDEAS], help="Changes SuperCLIP's class loss."
    )


@hookimpl
def open_clip_check_options(args):
    if args.class_loss_idea and (not args.superclip or args.accum_freq > 1):
        raise SystemExit(
            "error: --class-loss-idea: expected --superclip, --accum-freq 1 and one process"
        )


@hookimpl
def open_clip_model_kwargs(args):
    if args.class_loss_idea is None:
        return None
    tokenizer = open_clip.get_tokenizer(args.model)
    ids = {token for word in FUNCTION_WORDS for token in tokenizer.encode(word)}
    samples = args.train_num_samples * args.epochs
    return {"idea": {"name": args.class_loss_idea, "function_words": ids, "samples": samples}}


@hookimpl(wrapper=True)
def open_clip_select_model_class(model_class, model_cfg):
    chosen = yield
    if "idea" not in model_cfg:
        return chosen
    return type("CLIPWithIdea", (IDEAS[model_cfg["idea"]["name"]], chosen), {})


@hookimpl(wrapper=True)
def open_clip_caption_tokens(args, tokenizer, shared_epoch):
    tokens = yield
    changed = args.class_loss_idea in ("sub-captions", "dropped-words")
    return ChangedCaptions(args, tokenizer, shared_epoch) if changed else tokens


if __name__ == "__main__":
    from openclip_superclip.lab.demo import data, natural

    pool = {"attentional_pool": True, "attn_pooler_queries": 1, "attn_pooler_heads": 4}
    data.write_model(
        pathlib.Path("demo/natural-vit-attention"),
        natural.vocabulary(),
        {**data.SMALL_VIT, **pool},
        natural.CONTEXT,
    )
