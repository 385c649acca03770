"""OpenCLIP's models with a class head on the mean patch token."""

import logging
from collections import deque
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor

from ..errors import InputError
from . import ranks
from .head import ClassHead, keep_fresh_head
from .patch_tokens import encode_image, encode_image_with_pooled, encode_image_with_pooled_tokens, patch_tokens
from .token_statistics import DocumentFrequency, FixedIDF, TokenStatistics
from .word_knowledge import EpochWords, WordSums


class _WithClassHead:
    """Adds the class head and token statistics to an OpenCLIP model, and `class_losses` [B] to what training returns.

    In evaluation mode, or given an image or a text alone, the model is OpenCLIP's: the head is not touched. State-dict
    keys are OpenCLIP's, `class_head.*` and `statistics.*`; weights without the latter two load and keep the fresh head.

    Args:
        superclip: options of the head: `idf` ("online", "off" or the name of what counted `frequencies`),
            `frequencies` (of a whole data set), `ignored_tokens` (ids that are no words), `accum_freq` (OpenCLIP's
            --accum-freq), `head_warmup` (captions during which the head learns alone), `placebo` (a control:
            one of config.PLACEBOS), `word_course` (whether training sums up how well each
            word is known, for `take_epoch_words`), `text_length` (in training the text tower reads so many tokens, the
            class loss the rest), `kept_head` (head and counts that an export keeps beside the weights: the first
            weights that load without a head take them) and `load` (is called with the model, to load what it starts
            from).
        Everything else is the OpenCLIP model's.
    """

    reads_tower_tokens = False  # whether the OpenCLIP model can take the tokens of a tower with output_tokens

    def __init__(self, *args, superclip: dict, **kwargs):
        super().__init__(*args, **kwargs)
        options = dict(superclip)
        load = options.pop("load", None)
        self._add_head(**options)
        if load is not None:
            load(self)

    def _add_head(
        self,
        idf: str = "online",
        frequencies: DocumentFrequency | None = None,
        ignored_tokens: Iterable[int] = (),
        accum_freq: int = 1,
        head_warmup: int = 0,
        placebo: str = "off",
        head_input: str = "patches",
        word_course: bool = False,
        text_length: int | None = None,
        kept_head: dict[str, Tensor] | None = None,
    ) -> None:
        self.output_dict = True  # a tuple has no place for the class losses
        if not self.reads_tower_tokens:
            self.visual.output_tokens = False
        vocab_size = getattr(self, "vocab_size", None) or self.text.vocab_size
        self.patch_tokens = patch_tokens(self.visual)
        self.idf = idf
        self.accum_freq = accum_freq
        self.head_warmup = head_warmup
        self.placebo = placebo
        self.head_input = head_input
        self.text_length = text_length
        self.kept_head = kept_head
        self.class_head = ClassHead(self.patch_tokens.width, vocab_size)
        self.statistics = TokenStatistics(vocab_size, ignored_tokens)
        self.word_sums = WordSums(self.statistics.counted) if word_course else None
        self.fixed_idf = FixedIDF(frequencies, self.statistics.counted) if frequencies is not None else None
        # Every rank adds the same counts itself; a broadcast from rank 0 would only cost time.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_buffers() if name.startswith(("statistics.", "fixed_idf."))
        ]
        self._waiting = deque(maxlen=accum_freq)  # micro-batches counted but not yet trained on
        self._register_load_state_dict_pre_hook(keep_fresh_head, with_module=True)
        logging.info(self._summary())

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> dict[str, Tensor]:
        """Returns OpenCLIP's outputs; in training also `class_losses`, float32 [B]: the mean over ranks is the loss.

        With --accum-freq above 1, OpenCLIP passes every micro-batch through twice, first without gradients. The first
        pass counts the captions, so that each gradient sees the IDF of the whole batch, and leaves zeros for losses;
        the second puts the losses in their place, so that the last of them sees all. What is left over at an epoch's
        end is counted, though OpenCLIP does not train on it.
        """
        if not self.training or image is None or text is None:
            return super().forward(image, text)
        words = text
        if self.text_length is not None:  # two captions, one for each loss
            text, words = text[:, : self.text_length], text[:, self.text_length :]
        counts = torch.is_grad_enabled() == (self.accum_freq == 1)
        update = self.statistics.begin(words) if counts else None  # on its way while the towers run
        outputs, patch_mean = self._encode(image, text)
        if self.placebo == "shuffled-captions":
            words = words.roll(1, dims=0)
        elif self.placebo == "detached-head":
            patch_mean = patch_mean.detach()
        elif self.placebo == "class-loss-only":
            features = outputs["image_features"]
            outputs["image_features"] = features.detach() + 0 * features  # DDP wants a gradient for each parameter
        outputs["class_losses"] = self._class_losses(patch_mean, words, update, outputs)
        return outputs

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Locks the vision tower as OpenCLIP does; InputError where nothing below the head would learn from it."""
        super().lock_image_tower(unlocked_groups, freeze_bn_stats)
        beyond_patches = ("proj", "head.", "attn_pool")  # what comes after the patch tokens
        below_head = [p for name, p in self.visual.named_parameters() if not name.startswith(beyond_patches)]
        if not any(parameter.requires_grad for parameter in below_head):
            raise InputError(
                f"--lock-image-unlocked-groups {unlocked_groups} unlocks nothing that the class loss reaches but its "
                "own head: unlock more groups, or leave out --superclip"
            )

    def _encode(self, image: Tensor, text: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns OpenCLIP's outputs and the mean patch token, float32 [B, W]."""
        if self.head_input == "patches":
            image_features, patch_mean = encode_image(self.visual, self.patch_tokens, image)
        else:
            image_features, pooled, patch_mean = encode_image_with_pooled(self.visual, image)
            patch_mean = pooled if self.head_input == "pooled" else pooled + patch_mean
        outputs = super().forward(None, text)
        outputs["image_features"] = F.normalize(image_features, dim=-1)
        return outputs, patch_mean

    @torch.compiler.disable
    def _class_losses(self, patch_mean: Tensor, text: Tensor, update, outputs: dict[str, Tensor]) -> Tensor:
        """Returns the class losses, float32 [B], scaled so that their mean over ranks is right for unequal batches."""
        scale = 1.0
        if update is not None:
            num_captions = self.statistics.finish(update)
            if update.work is not None:
                scale = len(text) * ranks.world_size() / num_captions.float()
        if self.accum_freq > 1:
            if not torch.is_grad_enabled():
                self._waiting.append((patch_mean.new_zeros(len(text)), scale))
                return self._waiting[-1][0]
            counted, scale = self._waiting.popleft()
        if self.fixed_idf is not None:
            idf = self.fixed_idf()
        else:
            idf = self.statistics.idf() if self.idf == "online" else self.statistics.counted.float()
        if self.head_warmup:  # chosen on the device: reading the count back would stall it, and DDP wants one graph
            warming_up = self.statistics.num_captions <= self.head_warmup
            patch_mean = torch.where(warming_up, patch_mean.detach(), patch_mean)
        if self.placebo == "constant-target":
            target = self.statistics.document_frequency * idf
            target = (target / target.sum().clamp(min=1e-9)).expand(len(text), -1)  # [B, V]
            losses = scale * F.cross_entropy(self.class_head.logits(patch_mean).float(), target, reduction="none")
        elif self.placebo == "second-contrastive":
            losses = scale * self._second_contrastive(patch_mean, outputs)
        else:
            losses = self.class_head(patch_mean, text, idf, scale, self.word_sums)
        if self.accum_freq > 1:
            counted.copy_(losses.detach())
        return losses

    def _second_contrastive(self, patch_mean: Tensor, outputs: dict[str, Tensor]) -> Tensor:
        """Returns CLIP's loss of the rank's batch, [B]; the head's first rows project patch_mean [B, W]."""
        texts = outputs["text_features"]
        images = F.normalize(self.class_head.logits(patch_mean)[:, : texts.shape[1]].float(), dim=-1)
        logits = outputs["logit_scale"] * images @ texts.float().T  # [B, B]
        labels = torch.arange(len(logits), device=logits.device)
        return sum(F.cross_entropy(one, labels, reduction="none") for one in (logits, logits.T)) / 2

    def _summary(self) -> str:
        head = sum(p.numel() for p in self.class_head.parameters())
        rest = sum(p.numel() for name, p in self.named_parameters() if not name.startswith("class_head."))
        return (
            f"SuperCLIP: vocabulary {self.statistics.vocab_size:,} "
            f"({self.statistics.num_ignored} special tokens left out); "
            f"head {head:,} parameters beside {rest:,} ({head / (head + rest):.1%}), in training only; "
            f"it reads the mean of {self.patch_tokens.description}, width {self.patch_tokens.width}; IDF {self.idf}"
        )


class SuperCLIP(_WithClassHead, CLIP):
    """OpenCLIP's CLIP with the class head."""


class SuperCustomTextCLIP(_WithClassHead, CustomTextCLIP):
    """OpenCLIP's CustomTextCLIP with the class head."""


class SuperCoCa(_WithClassHead, CoCa):
    """OpenCLIP's CoCa with the class head."""

    reads_tower_tokens = True

    def _add_head(self, **options) -> None:
        # OpenCLIP leaves it as the memory was, which may be NaN: nothing calls its `init_parameters`.
        torch.nn.init.normal_(self.text_decoder.text_projection, std=len(self.text_decoder.text_projection) ** -0.5)
        super()._add_head(**options)

    def _encode(self, image: Tensor, text: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        image_features, image_embs, patch_mean = encode_image_with_pooled_tokens(self.visual, image)
        image_features = F.normalize(image_features, dim=-1)
        return CoCa.forward(self, image, text, image_latent=image_features, image_embs=image_embs), patch_mean


def take_epoch_words(model: torch.nn.Module) -> EpochWords | None:
    """Returns what the model, wrapped or not, has summed up of its words since the last call; None without sums.

    Collective, as `WordSums.take`.
    """
    with_head = next((module for module in model.modules() if isinstance(module, _WithClassHead)), None)
    if with_head is None or with_head.word_sums is None:
        return None
    return with_head.word_sums.take(with_head.class_head.weight.device)


def with_class_head(model_class: type) -> type:
    """Returns the SuperCLIP class of an OpenCLIP model class; InputError where there is none."""
    for with_head in (SuperCLIP, SuperCustomTextCLIP, SuperCoCa):
        if model_class in with_head.__bases__:
            return with_head
    raise InputError(f"--superclip has no class head for OpenCLIP's {model_class.__name__}")
