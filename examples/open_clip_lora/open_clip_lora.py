"""An OpenCLIP plugin: fine-tuning with low-rank adapters in the towers (LoRA, arXiv 2106.09685)."""

import zipfile
from contextlib import suppress

import pluggy
import torch

hookimpl = pluggy.HookimplMarker("open_clip")
SAVED = "training_only_lora."  # prefix of the names that only a resumed run reads
# they move, replace or freeze weights that have adapters
REFUSED = (
    "lock_image",
    "lock_text",
    "use_bn_sync",
    "use_bnb_linear",
    "horovod",
    "fsdp",
    "torchscript",
    "trace",
)


@hookimpl
def open_clip_add_options(parser):
    add = parser.add_argument_group("LoRA").add_argument
    add(
        "--lora",
        type=int,
        metavar="RANK",
        help="Train adapters of this rank, the projections and everything outside the towers.",
    )
    add(
        "--lora-towers",
        choices=("both", "image", "text"),
        default="both",
        help="Towers that get adapters; the other one is frozen, except for its projection.",
    )


@hookimpl
def open_clip_check_options(args):
    if args.resume and zipfile.is_zipfile(args.resume):
        check_resume(args)
    if args.lora is None:
        return
    if args.lora < 1:
        raise SystemExit(f"error: --lora is {args.lora}; expected a rank of 1 or more, such as 16")
    for name in REFUSED:
        if getattr(args, name, None):
            flag = name.replace("_", "-")
            raise SystemExit(f"error: --lora does not work with --{flag}: leave one of them out")
    from open_clip_lora_layers import layers_to_adapt

    with suppress(Exception):  # of a model that OpenCLIP cannot create, which it reports
        layers_to_adapt(args)


@hookimpl
def open_clip_model_created(args, model):
    if args.lora is None:
        return
    from open_clip_lora_layers import add_adapters, layers_to_adapt, save_merged_weights

    add_adapters(model, layers_to_adapt(args), args.lora)
    save_merged_weights(model, lambda state: check_adapters(state, args))


def check_resume(args) -> None:
    """Raises SystemExit if the run of the checkpoint --resume had other adapters."""
    content = torch.load(args.resume, map_location="cpu", mmap=True, weights_only=True)
    check_adapters(content.get("state_dict", content), args)


def check_adapters(state: dict, args) -> None:
    """Raises SystemExit if the run that saved the weights `state` had other adapters."""
    adapters = [name for name in state if SAVED in name and "lora_A" in name]
    found = given = "no --lora"
    if adapters:
        of_image = ["visual." in name for name in adapters]
        towers = "both" if len(set(of_image)) > 1 else "image" if of_image[0] else "text"
        found = f"--lora {len(state[adapters[0]])} --lora-towers {towers}"
    if args.lora is not None:
        given = f"--lora {args.lora} --lora-towers {args.lora_towers}"
    if found != given:
        raise SystemExit(
            f"error: --resume: the checkpoint is of a run with {found}, and this run has {given}: "
            "give the same flags, or start a new run from its exported weights with --pretrained"
        )
