"""OpenCLIP's models with a class head on their vision tower."""

import functools
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from ..errors import InputError, as_input_error, reason
from . import distributed
from .finite_weights import first_non_finite
from .head import HEAD_PREFIXES, ClassHead, keep_fresh_head, vocabulary_size
from .head_input import Reading, head_width, make_readable, patch_tokens
from .idf import FixedIDF, TokenStatistics

# What OpenCLIP's factory sets if timm or transformers loads the weights of a tower.
LOADS_TOWER = {"vision_cfg": "timm_model_pretrained", "text_cfg": "hf_model_pretrained"}


@dataclass(frozen=True)
class HeadOptions:
    """Options of a class head, the argument `superclip` of a model that has one."""

    idf: str = "online"  # "off", or the name of the file of `frequencies`
    # of a whole data set: document frequency, int64 [V], and number of captions
    frequencies: tuple[Tensor, int] | None = None
    ignored_tokens: Iterable[int] = ()  # ids that are not words
    accum_freq: int = 1  # OpenCLIP's --accum-freq
    head_warmup: int = 0  # number of captions during which the class loss trains only the head
    head_input: str = "patches"  # one of HEAD_INPUTS
    # number of leading tokens for the text tower in training; the rest are for the class loss
    text_length: int | None = None
    # head and counts of an export, used when weights without a head are loaded for the first time
    stored_head: dict[str, Tensor] | None = None
    load: Callable | None = None  # called with the model to load initial weights


class AccumulatedLosses:
    """The class losses of the micro-batches of one batch, with OpenCLIP's --accum-freq.

    OpenCLIP runs all micro-batches without gradients and keeps their outputs. Then it runs each one
    again, with gradients, and computes the loss of the batch from these outputs and the kept ones
    of the others. The first run counts the captions, so that all gradients use the IDF of the whole
    batch; it has no losses yet and keeps zeros. The second run replaces them, so that the last loss
    of the batch, which OpenCLIP logs, includes all micro-batches.
    """

    def __init__(self, accum_freq: int):
        self._accum_freq = accum_freq
        # Those of the last batch or, if an epoch ended with an incomplete one, some of an earlier
        # one. Once filled, it always has `accum_freq` entries, because torch.compile makes a graph
        # for each length.
        self._kept = []

    def keep(self, losses: Tensor, scale: float | Tensor) -> Tensor:
        """Returns `losses`, zeros [B], which the second run will replace, and keeps its scale."""
        kept = self._kept or [(losses.clone(), scale) for _ in range(self._accum_freq)]
        self._kept = [*kept[1:], (losses, scale)]
        return losses

    def next(self) -> tuple[Tensor, float | Tensor]:
        """Returns the kept losses to replace, in the order of the first run, and their scale."""
        self._kept = [*self._kept[1:], self._kept[0]]
        return self._kept[-1]


class _WithClassHead:
    """Adds the class head and token statistics to an OpenCLIP model, and `class_losses` [B] to its
    training outputs.

    The head is not used in evaluation mode, or if only an image or a text is given. State-dict keys
    are OpenCLIP's, `class_head.*` and `statistics.*`; weights without the latter two can be loaded
    and leave the head unchanged. `superclip` has the HeadOptions by name; OpenCLIP's model receives
    all other arguments.
    """

    reads_tower_tokens = False  # whether the OpenCLIP model supports towers with output_tokens

    def __init__(self, *args, superclip: dict, **kwargs):
        options = HeadOptions(**superclip)
        loads_tower = any(
            isinstance(kwargs.get(tower), dict) and kwargs[tower].get(option)
            for tower, option in LOADS_TOWER.items()
        )
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
        self._initialize()
        self._add_head(options)
        if options.load is not None:
            options.load(self)

    def _initialize(self) -> None:
        """Initializes what OpenCLIP leaves uninitialized."""

    def _add_head(self, options: HeadOptions) -> None:
        self.patch_tokens = patch_tokens(self.visual)
        width = head_width(self.visual, self.patch_tokens, options.head_input)
        make_readable(self.visual)
        self.output_dict = True  # the class losses need a dict
        if not self.reads_tower_tokens:
            self.visual.output_tokens = False
        self.idf = options.idf
        self.head_warmup = options.head_warmup
        self.text_length = options.text_length
        self.stored_head = options.stored_head
        self.accumulated = None
        if options.accum_freq > 1:
            self.accumulated = AccumulatedLosses(options.accum_freq)
        vocab_size = vocabulary_size(self)
        self.class_head = ClassHead(width, vocab_size, options.head_input)
        self.statistics = TokenStatistics(vocab_size, options.ignored_tokens)
        counted = self.statistics.counted
        self.fixed_idf = None
        if options.frequencies is not None:
            self.fixed_idf = FixedIDF(*options.frequencies, counted)
        # All ranks have the same counts: DDP need not broadcast them.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_buffers() if name.startswith(HEAD_PREFIXES)
        ]
        self._register_load_state_dict_pre_hook(keep_fresh_head, with_module=True)
        self._log_head(options.head_input)

    def _log_head(self, head_input: str) -> None:
        patches = f"the mean of {self.patch_tokens.description}"
        pooled = "the pooled vector before the projection"
        read = {"patches": patches, "pooled": pooled}
        head = sum(parameter.numel() for parameter in self.class_head.parameters())
        all_parameters = sum(parameter.numel() for parameter in self.parameters())
        vocab_size, width = self.class_head.weight.shape
        logging.info(
            f"SuperCLIP: vocabulary {vocab_size:,} ({self.statistics.num_ignored} special tokens "
            f"left out); head {head:,} parameters beside {all_parameters - head:,} "
            f"({head / all_parameters:.1%}), in training only; it reads {read[head_input]}, width "
            f"{width}; IDF {self.idf}"
        )

    def forward(
        self, image: Tensor | None = None, text: Tensor | None = None, **others
    ) -> dict[str, Tensor]:
        """Returns OpenCLIP's outputs; in training also `class_losses`, float32 [B]: the mean over
        ranks is the loss.

        With --accum-freq above 1, a run without gradients counts the captions, and the run with
        gradients that follows returns the losses (`AccumulatedLosses`). `others` are arguments of
        CoCa's forward, which its `generate` passes.
        """
        if others or not self.training or image is None or text is None:
            return super().forward(image, text, **others)
        words = text
        if self.text_length is not None:  # two captions, one for each loss
            text, words = text[:, : self.text_length], text[:, self.text_length :]
        counts_now = torch.is_grad_enabled()
        if self.accumulated is not None:  # whose run without gradients comes first
            counts_now = not counts_now
        update = self.statistics.begin(words) if counts_now else None  # overlaps with the towers
        reading = Reading(self.patch_tokens, self.class_head.reads)
        outputs = self._encode(image, text, reading)
        outputs["class_losses"] = self._class_losses(reading.vector, words, update)
        return outputs

    def lock_image_tower(self, unlocked_groups: int = 0, *args, **kwargs) -> None:
        """Locks the vision tower as OpenCLIP does; InputError if it cannot, or if it has removed
        activations of the tower."""
        before = dict(self.visual.named_modules())
        with as_input_error(
            "--lock-image: OpenCLIP cannot lock this image tower with "
            f"--lock-image-unlocked-groups {unlocked_groups}"
        ):
            super().lock_image_tower(unlocked_groups, *args, **kwargs)
        # freeze_batch_norm_2d replaces layers of timm that contain an activation
        for name in before.keys() - dict(self.visual.named_modules()).keys():
            if not isinstance(before[name], nn.Identity):
                raise InputError(
                    f"--lock-image-freeze-bn-stats removes visual.{name} and other activations "
                    "inside layers of batch norm: leave it out"
                )

    def _encode(self, image: Tensor, text: Tensor, reading: Reading) -> dict[str, Tensor]:
        """Returns OpenCLIP's outputs; `reading` receives the head's input."""
        image_features = self.visual(image, reading)
        outputs = super().forward(None, text)
        outputs["image_features"] = F.normalize(image_features, dim=-1)
        return outputs

    def _class_losses(
        self, head_input: Tensor, words: Tensor, update: Callable[[], Tensor] | None
    ) -> Tensor:
        """Returns the class losses, float32 [B], scaled so that their mean over ranks is right
        for unequal batches."""
        scale = 1.0
        if update is not None:
            num_captions = self.statistics.finish(update)
            world_size = distributed.world_size()
            if world_size > 1:
                scale = len(words) * world_size / num_captions.float()
        # selected on the device: no synchronization, and the same graph for DDP
        if self.head_warmup:
            warming_up = self.statistics.num_captions <= self.head_warmup
            head_input = torch.where(warming_up, head_input.detach(), head_input)
        if self.accumulated is None:
            return self._scaled_losses(head_input, words, scale)
        if not torch.is_grad_enabled():
            return self.accumulated.keep(head_input.new_zeros(len(words)), scale)
        kept, scale = self.accumulated.next()
        losses = self._scaled_losses(head_input, words, scale)
        kept.copy_(losses.detach())
        return losses

    def _scaled_losses(self, head_input: Tensor, words: Tensor, scale: float | Tensor) -> Tensor:
        """Returns `scale` times the class losses, float32 [B], of head_input [B, W] and words
        [B, L]."""
        return scale * self.class_head(head_input, words, self._idf_weights())

    def _idf_weights(self) -> Tensor:
        """Returns the weight of each word, float32 [V]."""
        if self.fixed_idf is not None:
            return self.fixed_idf()
        return self.statistics.idf() if self.idf == "online" else self.statistics.counted.float()


class SuperCLIP(_WithClassHead, CLIP):
    """OpenCLIP's CLIP with the class head."""


class SuperCustomTextCLIP(_WithClassHead, CustomTextCLIP):
    """OpenCLIP's CustomTextCLIP with the class head."""


class SuperCoCa(_WithClassHead, CoCa):
    """OpenCLIP's CoCa with the class head."""

    reads_tower_tokens = True

    def _initialize(self) -> None:
        # OpenCLIP never calls `init_parameters`: the memory is uninitialized and may contain NaN.
        torch.nn.init.normal_(
            self.text_decoder.text_projection, std=len(self.text_decoder.text_projection) ** -0.5
        )

    def _encode(self, image: Tensor, text: Tensor, reading: Reading) -> dict[str, Tensor]:
        image_features, image_embs = self.visual(image, reading)
        return CoCa.forward(
            self,
            image,
            text,
            image_latent=F.normalize(image_features, dim=-1),
            image_embs=image_embs,
        )


# parameters of a vision tower that the class head's input does not depend on: the projections
BEYOND_HEAD = r"proj$|head\.|attnpool\.c_proj\.|trunk\.(head|fc|classifier)\."
# layers after the patch tokens, which do not affect a head that reads these
POOLING = r"(trunk\.)?attn_?pool|trunk\.(fc_norm|conv_head|bn2)\."


def trains_only_head(model: nn.Module) -> bool:
    """Returns whether the class loss of a model, which may be wrapped, trains no weight of its
    vision tower."""
    with_head = _unwrapped(model)
    reads = with_head.class_head.reads
    return not any(
        parameter.requires_grad and reaches_head(name, reads)
        for name, parameter in with_head.visual.named_parameters()
    )


def report_words(model: nn.Module) -> str:
    """Returns `TokenStatistics.report` of a model, which may be wrapped."""
    with_head = _unwrapped(model)
    return with_head.statistics.report(with_head._idf_weights())


def _unwrapped(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if isinstance(module, _WithClassHead))


def reaches_head(name: str, head_input: str) -> bool:
    """Returns whether a class head's input, one of HEAD_INPUTS, depends on a parameter of a vision
    tower."""
    beyond_head = f"{BEYOND_HEAD}|{POOLING}" if head_input == "patches" else BEYOND_HEAD
    return re.match(beyond_head, name) is None


def give_class_head(model: nn.Module, options: HeadOptions) -> nn.Module:
    """Makes an OpenCLIP model one with a class head, in place, and returns it."""
    model_class = type(model)
    model.__class__ = with_class_head(model_class)
    try:
        model._add_head(options)
    except InputError:
        model.__class__ = model_class
        raise
    parameters = list(model.visual.parameters())
    # OpenCLIP's "bf16" keeps norms in float32, and with them the head
    dtypes = {parameter.dtype for parameter in parameters}
    dtype = functools.reduce(torch.promote_types, dtypes)
    for module in (model.class_head, model.statistics, model.fixed_idf):
        if module is not None:
            module.to(parameters[0].device, dtype).train(model.training)
    return model


def with_class_head(model_class: type) -> type:
    """Returns the SuperCLIP class of an OpenCLIP model class; InputError if there is none."""
    for with_head in (SuperCLIP, SuperCustomTextCLIP, SuperCoCa):
        if model_class in with_head.__bases__:
            return with_head
    raise InputError(
        "a class head can be added to OpenCLIP's CLIP, CustomTextCLIP and CoCa without a wrapper, "
        f"not to {model_class.__name__}"
    )
