"""Controls for studies: models whose class head learns something else than the image's words."""

import torch
import torch.nn.functional as F
from torch import Tensor


class WithPlacebo:
    """A model with a class head and one of PLACEBOS, for `superclip["placebo"]`."""

    def __init__(self, *args, superclip: dict, **kwargs):
        super().__init__(*args, superclip=superclip, **kwargs)
        self.placebo = superclip["placebo"]

    def _class_losses(self, head_input, words, update, outputs):
        if self.placebo == "shuffled-captions":
            words = words.roll(1, dims=0)
        elif self.placebo == "detached-head":
            head_input = head_input.detach()
        elif self.placebo == "class-loss-only":
            features = outputs["image_features"]
            # DDP needs a gradient for each parameter
            outputs["image_features"] = features.detach() + 0 * features
        return super()._class_losses(head_input, words, update, outputs)

    def _scaled_losses(self, head_input, words, scale, outputs):
        if self.placebo == "constant-target":
            return scale * self._losses_of_constant_target(head_input)
        if self.placebo == "second-contrastive":
            return scale * self._second_contrastive(head_input, outputs)
        return super()._scaled_losses(head_input, words, scale, outputs)

    def _losses_of_constant_target(self, head_input: Tensor) -> Tensor:
        """Returns the cross-entropy with the frequencies of the words so far, weighted by IDF, for
        all captions, [B]."""
        weights = self.statistics.document_frequency * self._idf_weights()
        target = weights / weights.sum().clamp(min=1e-9)
        logits = self.class_head.logits(head_input).float()  # [B, V]
        return F.cross_entropy(logits, target.expand_as(logits), reduction="none")

    def _second_contrastive(self, head_input: Tensor, outputs: dict[str, Tensor]) -> Tensor:
        """Returns CLIP's loss of the rank's batch, [B]; the head's first rows project head_input
        [B, W]."""
        texts = outputs["text_features"]
        images = self.class_head.logits(head_input)[:, : texts.shape[1]]
        images = F.normalize(images.float(), dim=-1)
        logits = outputs["logit_scale"] * images @ texts.float().T  # [B, B]
        labels = torch.arange(len(logits), device=logits.device)
        losses = [F.cross_entropy(each, labels, reduction="none") for each in (logits, logits.T)]
        return sum(losses) / 2
