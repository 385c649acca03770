"""The training loss: any OpenCLIP loss plus the class loss."""

from torch import Tensor, nn


class SuperCLIPLoss(nn.Module):
    """Adds `class_loss` = weight * mean of the class losses to what an OpenCLIP loss returns (paper, section 3).

    Args:
        contrastive: OpenCLIP's loss: ClipLoss, SigLipLoss, CoCaLoss, DistillClipLoss.
        weight: λ.
        gradient_scale: multiplies the class loss's gradient but not its value. OpenCLIP's ClipLoss gathers features
            without gradients unless told otherwise; each rank's gradient is then 1 / world_size of the loss's, and λ
            keeps its meaning only if the class loss's is, too.
    """

    def __init__(self, contrastive: nn.Module, weight: float = 1.0, gradient_scale: float = 1.0):
        super().__init__()
        self.contrastive = contrastive
        self.weight = weight
        self.gradient_scale = gradient_scale

    def forward(self, *, class_losses: Tensor | None = None, output_dict: bool = False, **outputs: Tensor):
        """Returns the weighted losses, a dict or a tuple as `output_dict` says.

        Args:
            class_losses: [B], from the model in training; in evaluation there are none, and no class_loss.
            outputs: what else the model returned; passed to the OpenCLIP loss.
        """
        losses = self.contrastive(**outputs, output_dict=True)
        if class_losses is not None:
            class_loss = self.weight * class_losses.mean()
            if self.gradient_scale != 1.0:
                scaled = self.gradient_scale * class_loss
                class_loss = scaled + (class_loss - scaled).detach()
            losses["class_loss"] = class_loss
        return losses if output_dict else tuple(losses.values())
