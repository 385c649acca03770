"""OpenCLIP's models with a class head on their vision tower."""

import logging
from collections import deque
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor

from ..errors import InputError, reason
from . import ranks
from .finite_weights import first_non_finite
from .head import ClassHead, keep_fresh_head
from .head_input import Reading, head_width, make_readable, patch_tokens
from .idf import EpochWords, FixedIDF, TokenStatistics, WordKnowledge

# What OpenCLIP's factory sets if timm or transformers loads the weights of a tower.
LOADS_TOWER = {"vision_cfg": "timm_model_pretrained", "text_cfg": "hf_model_pretrained"}


class _WithClassHead:
    """Adds the class head and token statistics to an OpenCLIP model, and `class_losses` [B] to its
    training outputs.

    The head is not used in evaluation mode, or if only an image or a text is given. State-dict keys
    are OpenCLIP's, `class_head.*` and `statistics.*`; weights without the latter two can be loaded
    and leave the head unchanged.

    Args:
        superclip: options of the head: `idf` ("online", "off" or the name of the file of
            `frequencies`), `frequencies` (of a whole data set: document frequency, int64 [V], and
            number of captions), `ignored_tokens` (ids that are not words), `accum_freq` (OpenCLIP's
            --accum-freq), `head_warmup` (number of captions during which the class loss trains only
            the head), `head_input` (one of HEAD_INPUTS), `placebo` (one of PLACEBOS), `word_course`
            (whether to record how well the head predicts each word, for `take_epoch_words`),
            `text_length` (number of leading tokens for the text tower in training; the rest are for
            the class loss), `stored_head` (head and counts of an export, used when weights without
            a head are loaded for the first time) and `load` (called with the model to load initial
            weights).

    Other arguments are passed to the OpenCLIP model.
    """

    reads_tower_tokens = False  # whether the OpenCLIP model supports towers with output_tokens

    def __init__(self, *args, superclip: dict, **kwargs):
        towers = {
            tower: kwargs[tower] for tower in LOADS_TOWER if isinstance(kwargs.get(tower), dict)
        }
        loads_tower = any(cfg.get(LOADS_TOWER[tower]) for tower, cfg in towers.items())
        try:
            super().__init__(*args, **kwargs)
        except (OSError, RuntimeError, ValueError) as error:  # of timm and transformers
            if not loads_tower:
                raise
            raise InputError(
                f"a tower's own weights cannot be loaded ({reason(error)[:300]})"
            ) from error
        if loads_tower and (name := first_non_finite(self.state_dict().items())):
            raise InputError(f"{name} of a tower's own weights contains NaN or infinity")
        options = dict(superclip)
        load = options.pop("load", None)
        self._add_head(**options)
        if load is not None:
            load(self)

    def _add_head(
        self,
        idf: str = "online",
        frequencies: tuple[Tensor, int] | None = None,
        ignored_tokens: Iterable[int] = (),
        accum_freq: int = 1,
        head_warmup: int = 0,
        placebo: str = "off",
        head_input: str = "patches",
        word_course: bool = False,
        text_length: int | None = None,
        stored_head: dict[str, Tensor] | None = None,
    ) -> None:
        self.output_dict = True  # the class losses need a dict
        if not self.reads_tower_tokens:
            self.visual.output_tokens = False
        vocab_size = getattr(self, "vocab_size", None) or self.text.vocab_size
        self.patch_tokens = patch_tokens(self.visual)
        make_readable(self.visual)
        self.idf = idf
        self.accum_freq = accum_freq
        self.head_warmup = head_warmup
        self.placebo = placebo
        self.text_length = text_length
        self.stored_head = stored_head
        self.class_head = ClassHead(
            head_width(self.visual, self.patch_tokens, head_input), vocab_size, head_input
        )
        self.statistics = TokenStatistics(vocab_size, ignored_tokens)
        self.word_knowledge = WordKnowledge(self.statistics.counted) if word_course else None
        self.fixed_idf = (
            FixedIDF(*frequencies, self.statistics.counted) if frequencies is not None else None
        )
        # All ranks have the same counts: DDP need not broadcast them.
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name, _ in self.named_buffers()
            if name.startswith(("statistics.", "fixed_idf.", "class_head."))
        ]
        # micro-batches that are counted but not yet trained on
        self._waiting = deque(maxlen=accum_freq)
        self._register_load_state_dict_pre_hook(keep_fresh_head, with_module=True)
        patches, pooled = (
            f"the mean of {self.patch_tokens.description}",
            "the pooled vector before the projection",
        )
        read = {"patches": patches, "pooled": pooled, "both": f"the sum of {pooled} and {patches}"}
        head = sum(p.numel() for p in self.class_head.parameters())
        rest = sum(
            p.numel() for name, p in self.named_parameters() if not name.startswith("class_head.")
        )
        logging.info(
            f"SuperCLIP: vocabulary {vocab_size:,} ({self.statistics.num_ignored} special "
            "tokens left out); "
            f"head {head:,} parameters beside {rest:,} ({head / (head + rest):.1%}), in "
            f"training only; it reads {read[head_input]}, width "
            f"{self.class_head.weight.shape[1]}; IDF {idf}"
        )

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> dict[str, Tensor]:
        """Returns OpenCLIP's outputs; in training also `class_losses`, float32 [B]: the mean over
        ranks is the loss.

        With --accum-freq above 1, OpenCLIP runs every micro-batch twice, first without gradients.
        The first run counts the captions, so that all gradients use the IDF of the whole batch, and
        returns zeros; the second run returns the losses. Micro-batches left over at the end of an
        epoch are counted although OpenCLIP does not train on them.
        """
        if not self.training or image is None or text is None:
            return super().forward(image, text)
        words = text
        if self.text_length is not None:  # two captions, one for each loss
            text, words = text[:, : self.text_length], text[:, self.text_length :]
        counts = torch.is_grad_enabled() == (self.accum_freq == 1)
        update = self.statistics.begin(words) if counts else None  # overlaps with the towers
        reading = Reading(self.patch_tokens, self.class_head.reads)
        outputs = self._encode(image, text, reading)
        head_input = reading.vector
        if self.placebo == "shuffled-captions":
            words = words.roll(1, dims=0)
        elif self.placebo == "detached-head":
            head_input = head_input.detach()
        elif self.placebo == "class-loss-only":
            features = outputs["image_features"]
            # DDP needs a gradient for each parameter
            outputs["image_features"] = features.detach() + 0 * features
        outputs["class_losses"] = self._class_losses(head_input, words, update, outputs)
        return outputs

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Locks the vision tower as OpenCLIP does; InputError if the class loss would train only
        the head."""
        super().lock_image_tower(unlocked_groups, freeze_bn_stats)
        beyond_head = (
            "proj",
            "head.",
            *(("attn_pool",) if self.class_head.reads == "patches" else ()),
        )
        below_head = [
            p for name, p in self.visual.named_parameters() if not name.startswith(beyond_head)
        ]
        if not any(parameter.requires_grad for parameter in below_head):
            raise InputError(
                f"--lock-image-unlocked-groups {unlocked_groups} leaves the class loss only "
                "its own head to train: unlock more groups, or leave out --superclip"
            )

    def _encode(self, image: Tensor, text: Tensor, reading: Reading) -> dict[str, Tensor]:
        """Returns OpenCLIP's outputs; `reading` receives the head's input."""
        image_features = self.visual(image, reading)
        outputs = super().forward(None, text)
        outputs["image_features"] = F.normalize(image_features, dim=-1)
        return outputs

    def _class_losses(
        self, head_input: Tensor, text: Tensor, update, outputs: dict[str, Tensor]
    ) -> Tensor:
        """Returns the class losses, float32 [B], scaled so that their mean over ranks is right
        for unequal batches."""
        scale = 1.0
        if update is not None:
            num_captions = self.statistics.finish(update)
            if update.finish is not None:
                scale = len(text) * ranks.world_size() / num_captions.float()
        if self.accum_freq > 1:
            if not torch.is_grad_enabled():
                self._waiting.append((head_input.new_zeros(len(text)), scale))
                return self._waiting[-1][0]
            counted, scale = self._waiting.popleft()
        if self.fixed_idf is not None:
            idf = self.fixed_idf()
        else:
            idf = self.statistics.idf() if self.idf == "online" else self.statistics.counted.float()
        # selected on the device: no synchronization, and the same graph for DDP
        if self.head_warmup:
            warming_up = self.statistics.num_captions <= self.head_warmup
            head_input = torch.where(warming_up, head_input.detach(), head_input)
        if self.placebo == "constant-target":
            target = self.statistics.document_frequency * idf
            target = (target / target.sum().clamp(min=1e-9)).expand(len(text), -1)  # [B, V]
            losses = scale * F.cross_entropy(
                self.class_head.logits(head_input).float(), target, reduction="none"
            )
        elif self.placebo == "second-contrastive":
            losses = scale * self._second_contrastive(head_input, outputs)
        else:
            losses = self.class_head(head_input, text, idf, scale)
            if self.word_knowledge is not None and torch.is_grad_enabled():
                self.word_knowledge.observe(self.class_head, head_input, text)
        if self.accum_freq > 1:
            counted.copy_(losses.detach())
        return losses

    def _second_contrastive(self, head_input: Tensor, outputs: dict[str, Tensor]) -> Tensor:
        """Returns CLIP's loss of the rank's batch, [B]; the head's first rows project head_input
        [B, W]."""
        texts = outputs["text_features"]
        images = F.normalize(
            self.class_head.logits(head_input)[:, : texts.shape[1]].float(), dim=-1
        )
        logits = outputs["logit_scale"] * images @ texts.float().T  # [B, B]
        labels = torch.arange(len(logits), device=logits.device)
        return sum(F.cross_entropy(one, labels, reduction="none") for one in (logits, logits.T)) / 2


class SuperCLIP(_WithClassHead, CLIP):
    """OpenCLIP's CLIP with the class head."""


class SuperCustomTextCLIP(_WithClassHead, CustomTextCLIP):
    """OpenCLIP's CustomTextCLIP with the class head."""


class SuperCoCa(_WithClassHead, CoCa):
    """OpenCLIP's CoCa with the class head."""

    reads_tower_tokens = True

    def _add_head(self, **options) -> None:
        # OpenCLIP never calls `init_parameters`: the memory is uninitialized and may contain NaN.
        torch.nn.init.normal_(
            self.text_decoder.text_projection, std=len(self.text_decoder.text_projection) ** -0.5
        )
        super()._add_head(**options)

    def _encode(self, image: Tensor, text: Tensor, reading: Reading) -> dict[str, Tensor]:
        image_features, image_embs = self.visual(image, reading)
        return CoCa.forward(
            self,
            image,
            text,
            image_latent=F.normalize(image_features, dim=-1),
            image_embs=image_embs,
        )


def take_epoch_words(model: torch.nn.Module) -> EpochWords | None:
    """Returns a model's word statistics since the last call, over all ranks (collective); None
    if there are none."""
    with_head = next(
        (module for module in model.modules() if isinstance(module, _WithClassHead)), None
    )
    if with_head is None or with_head.word_knowledge is None:
        return None
    return with_head.word_knowledge.take(with_head.class_head.weight.device)


def with_class_head(model_class: type) -> type:
    """Returns the SuperCLIP class of an OpenCLIP model class; InputError if there is none."""
    for with_head in (SuperCLIP, SuperCustomTextCLIP, SuperCoCa):
        if model_class in with_head.__bases__:
            return with_head
    raise InputError(f"--superclip has no class head for OpenCLIP's {model_class.__name__}")
