"""Gives the class head a learning rate of its own, as a parameter group with `lr_scale`.

HEAD_LR is the head's peak rate, HEAD_WD its weight decay; without HEAD_LR nothing changes. The
scheduler of OpenCLIP 3 then multiplies each group's rate by its `lr_scale`, as timm's does.
"""

import os
from types import SimpleNamespace

import pluggy
import torch

hookimpl = pluggy.HookimplMarker("open_clip")


def split_groups(groups, head, lr_scale, weight_decay):
    """Returns the groups without the parameters of the head, then those of the head."""
    ids = {id(parameter) for parameter in head}
    towers = []
    of_head = []
    for group in groups:
        inside = [parameter for parameter in group["params"] if id(parameter) in ids]
        outside = [parameter for parameter in group["params"] if id(parameter) not in ids]
        towers.append({**group, "params": outside})
        decay = weight_decay if group["weight_decay"] else 0.0
        of_head.append(
            {**group, "params": inside, "weight_decay": decay, "lr_scale": lr_scale}
        )
    return towers + of_head


def assign_learning_rate(optimizer, new_lr):
    for group in optimizer.param_groups:
        group["lr"] = new_lr * group.get("lr_scale", 1.0)


@hookimpl
def open_clip_model_created(args, model):
    if "HEAD_LR" not in os.environ or not hasattr(model, "class_head"):
        return
    import open_clip_train.main
    import open_clip_train.scheduler

    lr_scale = float(os.environ["HEAD_LR"]) / args.lr
    weight_decay = float(os.environ.get("HEAD_WD", args.wd))
    head = list(model.class_head.parameters())

    def adamw(groups, **options):
        return torch.optim.AdamW(split_groups(groups, head, lr_scale, weight_decay), **options)

    open_clip_train.main.optim = SimpleNamespace(AdamW=adamw)
    open_clip_train.scheduler.assign_learning_rate = assign_learning_rate
