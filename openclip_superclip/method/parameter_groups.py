"""Parameter groups for the optimizer, in which the class head has its own learning rate."""

from torch import nn

from ..errors import InputError
from .head import ClassHead

HEAD_GROUP = "class_head"  # OpenCLIP's `group_name` of the head's groups, also in checkpoints


def parameter_groups(
    model: nn.Module, lr: float, head_lr: float | None = None, weight_decay: float = 0.2
) -> list[dict]:
    """Returns parameter groups for an optimizer of torch: gains and biases, which do not decay, and
    all others, first those of the towers and then those of the class head.

    `lr` of a group is its peak learning rate. A scheduler multiplies all of them, as those of torch
    do, or assigns its rate times `lr_scale`, if a group has one, as OpenCLIP's do.

    Args:
        model: a model with a class head, which may be wrapped.
        lr: the towers' learning rate.
        head_lr: the class head's learning rate; None for the towers'.
        weight_decay: AdamW multiplies it by the group's learning rate.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "lr": lr},
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay, "lr": lr},
    ]
    return groups if head_lr is None else with_head_groups(groups, model, head_lr / lr)


def with_head_groups(groups: list[dict], model: nn.Module, lr_scale: float) -> list[dict]:
    """Returns the groups of an optimizer without the class head's parameters, and then the head's,
    with the options of the groups that they were in and a learning rate times `lr_scale`."""
    head = next((module for module in model.modules() if isinstance(module, ClassHead)), None)
    if head is None:
        raise InputError("head_lr is the learning rate of a class head, and the model has none")
    of_head = {id(parameter) for parameter in head.parameters()}
    towers = []
    heads = []
    for group in groups:
        scaled = {
            "lr": group["lr"] * lr_scale,
            "lr_scale": group.get("lr_scale", 1.0) * lr_scale,
            "group_name": HEAD_GROUP,
        }
        params = group["params"]
        towers.append(group | {"params": [p for p in params if id(p) not in of_head]})
        heads.append(group | scaled | {"params": [p for p in params if id(p) in of_head]})
    return [group for group in towers + heads if group["params"]]
