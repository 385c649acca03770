"""What `superclip rehearse` has measured of a plan."""

import json
from pathlib import Path

from ..errors import InputError
from .plan import Plan

SPEEDS = {"low": "high", "median": "median", "high": "low"}  # of samples a second, by the hours that they make
SAME = ("device", "world_size", "global_batch_size", "batch_size", "accum_freq", "workers")


def read_rehearsal(file: str, plan: Plan) -> dict:
    """Returns what rehearsal.json holds, its hours those of `plan`.

    InputError where it is none, or of another model, batch, device or number of ranks.
    """
    try:
        told = json.loads(Path(file).read_text())
        found = {name: told[name] for name in ("model", *SAME)}
        told |= whole_hours(plan, told["samples_per_second"], told["checkpoint"]["seconds"])
        told["memory"]["peak"], told["memory"]["of"], told["limit"]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--rehearsal: {file} cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        raise InputError(f"--rehearsal: {file} is no rehearsal.json that superclip rehearse wrote") from None
    for name, value in found.items():
        ours = plan.recipe.model if name == "model" else getattr(plan, name)
        if value != ours:
            raise InputError(f"--rehearsal: {file} is of {name} {value}, and the plan's is {ours}: rehearse it anew")
    return told


def whole_hours(plan: Plan, samples_per_second: dict[str, float], checkpoint_seconds: float) -> dict[str, dict]:
    """Returns `hours` and `gpu_hours` of a whole run, checkpoints included, each low, median and high."""
    saving = plan.num_slices * checkpoint_seconds
    hours = {name: (plan.samples / samples_per_second[speed] + saving) / 3600 for name, speed in SPEEDS.items()}
    return {"hours": hours, "gpu_hours": {name: number * plan.world_size for name, number in hours.items()}}
