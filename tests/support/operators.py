"""The package's operators of torch, opened: a dispatch mode sees one call
of each, and not what it computes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openclip_superclip.method import loss as class_loss

OPERATORS = {
    torch.ops.superclip.class_loss.default: class_loss.losses_and_gradients,
    torch.ops.superclip.scale_gradients.default: class_loss.scale_gradients,
}


class SeesOperators(TorchDispatchMode):
    """A dispatch mode whose `observe` gets every function of torch with its
    results, those of our operators too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in OPERATORS:
            with self:
                return OPERATORS[function](*args, **(kwargs or {}))
        outputs = function(*args, **(kwargs or {}))
        tensors = outputs if isinstance(outputs, tuple | list) else [outputs]
        self.observe(
            function, args, [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        )
        return outputs

    def observe(self, function, args, results):
        raise NotImplementedError
