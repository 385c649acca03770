"""Whether the disk of a run's folder holds the checkpoints that are still to come."""

import shutil

from ..errors import InputError
from ..planning.cost import checkpoint_bytes
from ..planning.plan import Plan
from ..planning.plan_summary import bytes_text
from .checkpoint_files import checkpoints
from .run_folder import RunFolder


def check_disk(folder: RunFolder, plan: Plan) -> None:
    """Raises InputError, with what is free and what is needed, where it does not; quotas are not known here."""
    there = checkpoints(folder.checkpoints)
    if max(there, default=0) >= plan.num_slices:
        return
    num_more = max(1, plan.most_checkpoints - len(there))
    size = max((path.stat().st_size for path in there.values()), default=0) or checkpoint_bytes(plan)
    free, needed = shutil.disk_usage(folder.path).free, num_more * size
    if free < needed:
        raise InputError(
            f"--out: the disk of {folder.path} has {bytes_text(free)} free, and {num_more} more checkpoints of "
            f"{bytes_text(size)} are kept at a time: make room for {bytes_text(needed)}, or give --out another folder"
        )
