"""What the first node checks before a start trains into the run's folder."""

import shutil
from dataclasses import asdict

from ..checkpoints.resume import resumed_checkpoint
from ..checkpoints.resume_record import FIELD, changes, continued, read_record, record_of
from ..checkpoints.trainer_files import checkpoints
from ..errors import InputError, to_stderr
from ..plans.cost import counts_of
from ..plans.run import Run
from ..rendering import bytes_text
from ..trainer.train import check_command
from .folder import RunFolder
from .recovery import MAX_STARTS, PREEMPTIONS, starts_without_slice


def checked_start(run: Run, folder: RunFolder, *, accepts: bool) -> dict:
    """Returns what a start adds to run.json; InputError if it may not train into the folder."""
    from ..checkpoints.starting_weights import check_start_of_run

    resumed_checkpoint("latest", str(folder.path), save_most_recent=False)
    options = check_command(run.openclip_arguments())
    now = record_of(vars(options), run.world_size)
    if not folder.epoch:  # nothing was trained yet
        check_start_of_run(options)  # its ranks do not read the weights once more
        return {FIELD: asdict(now)}
    before = read_record(folder.path)
    found = changes(before, now)
    if not accepts:
        found.check(folder.path, "--accept-changes")
    for line in found.lines:
        to_stderr(f"superclip run: the run has changed since its start: {line}")
    earlier = folder.record().get("changes") or []
    record, noted = continued(before, now, found, earlier, start=len(folder.attempts))
    return {FIELD: asdict(record), "changes": noted}


def check_can_save(run: Run, folder: RunFolder) -> None:
    """Raises InputError if a start would not save a slice: this job was started too often without
    a new one, or the disk has no room for the checkpoints that the run will write."""
    if starts_without_slice(folder.attempts, folder.epoch) > MAX_STARTS:
        raise InputError(
            f"the run was started {MAX_STARTS} times and stopped before a slice was trained "
            f"({PREEMPTIONS} preemptions count as one start): give the job more --time, or "
            "the recipe more slices"
        )
    saved = checkpoints(folder.checkpoints)
    if max(saved, default=0) >= run.num_slices:
        return
    num_more = max(1, run.max_checkpoints - len(saved))
    largest = max((path.stat().st_size for path in saved.values()), default=0)
    size = largest or counts_of(run)["checkpoint_bytes"]
    free = shutil.disk_usage(folder.path).free  # quotas are not read
    if free < num_more * size:
        raise InputError(
            f"--out: the disk of {folder.path} has {bytes_text(free)} free, and {num_more} more "
            f"checkpoints of {bytes_text(size)} need {bytes_text(num_more * size)}: free some "
            "space, or give --out another folder"
        )
