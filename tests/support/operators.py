"""The package's operator of torch, opened: a dispatch mode sees one call of
it, and not what it computes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openclip_superclip.method import loss as class_loss


class SeesOperators(TorchDispatchMode):
    """A dispatch mode whose `observe` gets every function of torch with its
    results, those of our operator too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.superclip.class_loss.default:
            with self:
                return class_loss.losses_and_gradients(*args, **(kwargs or {}))
        outputs = function(*args, **(kwargs or {}))
        tensors = outputs if isinstance(outputs, tuple | list) else [outputs]
        self.observe(
            function, args, [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        )
        return outputs

    def observe(self, function, args, results):
        raise NotImplementedError
