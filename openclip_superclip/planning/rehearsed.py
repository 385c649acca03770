"""What `superclip rehearse` has measured of a plan."""

import json
from pathlib import Path

from ..errors import InputError
from .gpu_memory import GPU
from .plan import Plan

SPEEDS = {"low": "high", "median": "median", "high": "low"}  # of samples a second, by the hours that they make
OTHER_SIZE = 0.12  # of a GPU's memory: CUDA tells up to 7 % more than the data sheet, and the next size is a fifth more
NO_MATTER = (  # options of the training that change no step's time
    "--lr", "--warmup", "--lr-scheduler", "--lr-cooldown-end", "--lr-cooldown-power", "--epochs-cooldown", "--beta1",
    "--beta2", "--eps", "--wd", "--seed", "--epochs", "--train-num-samples", "--log-every-n-steps", "--val-data",
    "--val-frequency", "--val-num-samples", "--imagenet-val", "--imagenet-v2", "--zeroshot-frequency", "--pretrained",
    "--superclip-slices", "--superclip-weight", "--superclip-head-warmup",
)  # fmt: skip


def speed_options(plan: Plan) -> dict[str, str]:
    """Returns what the speed of a plan's training follows from, options by their names; "" where one has no value."""
    options = {"--nodes": str(plan.nodes), "--gpus-per-node": str(plan.gpus_per_node)}
    name = ""
    for argument in plan.command:
        if argument.startswith("--"):
            name = argument
            options[name] = ""
        else:
            options[name] = f"{options[name]} {argument}".strip()
    return {name: value for name, value in options.items() if name not in NO_MATTER}


def read_rehearsal(file: str, plan: Plan, gpu: GPU | None = None) -> dict:
    """Returns what rehearsal.json holds, its hours those of `plan`.

    InputError where it is none, or of another model, batch, precision, data, GPU, number of ranks, or whatever else
    changes the speed; where `gpu` is None any GPU is taken.
    """
    try:
        told = json.loads(Path(file).read_text())
        found = dict(told["options"])
        told |= whole_hours(plan, told["samples_per_second"], told["checkpoint"]["seconds"])
        told["memory"]["peak"], told["memory"]["of"], told["limit"]
        card, size = told["memory"]["name"], told["memory"]["total"]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--rehearsal: {file} cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        raise InputError(f"--rehearsal: {file} is no rehearsal.json that superclip rehearse wrote") from None
    ours = speed_options(plan)
    for name in ours | found:
        if ours.get(name) != found.get(name):
            there, here = (
                f"without {name}" if one.get(name) is None else f"with {name} {one[name]}".strip()
                for one in (found, ours)
            )
            raise InputError(
                f"--rehearsal: {file} was measured {there}, and the plan is {here}: give both the same, or rehearse "
                "this one"
            )
    if gpu and not _is(gpu, card, size):
        raise InputError(f"--rehearsal: {file} was measured on {card}, and --gpu is {gpu.name}: rehearse on that")
    return told


def _is(gpu: GPU, card: str | None, size: int | None) -> bool:
    """Returns whether a card, as CUDA names it, is of a type, or of the bytes that stand for one."""
    kind = gpu.name.partition("-")[0].lower() if gpu.tflops else ""
    return card is not None and kind in card.lower() and abs(size / gpu.bytes - 1) < OTHER_SIZE


def whole_hours(plan: Plan, samples_per_second: dict[str, float], checkpoint_seconds: float) -> dict[str, dict]:
    """Returns `hours` and `gpu_hours` of a whole run, checkpoints included, each low, median and high."""
    saving = plan.num_slices * checkpoint_seconds
    hours = {name: (plan.samples / samples_per_second[speed] + saving) / 3600 for name, speed in SPEEDS.items()}
    return {"hours": hours, "gpu_hours": {name: number * plan.world_size for name, number in hours.items()}}
