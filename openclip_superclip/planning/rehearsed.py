"""What `superclip rehearse` has measured of a plan."""

import json
from pathlib import Path

from ..errors import InputError
from .plan import Plan

SAME = ("device", "world_size", "global_batch_size", "batch_size", "accum_freq", "workers")


def read_rehearsal(file: str, plan: Plan) -> dict:
    """Returns what rehearsal.json holds; InputError where it is none, or of another recipe or other machines."""
    try:
        told = json.loads(Path(file).read_text())
        found = {name: told[name] for name in ("model", *SAME)}
        told["samples_per_second"]["median"], told["hours"]["high"], told["memory"]["peak"]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--rehearsal: {file} cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"--rehearsal: {file} is no rehearsal.json that superclip rehearse wrote") from None
    for name, value in found.items():
        ours = plan.recipe.model if name == "model" else getattr(plan, name)
        if value != ours:
            raise InputError(f"--rehearsal: {file} is of {name} {value}, and the plan's is {ours}: rehearse it anew")
    return told
