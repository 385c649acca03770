"""Runs that are there twice: a copied folder, or the same seed trained again, is no seed more."""

from .reported_run import ReportedRun


def tell_copies(runs: list[ReportedRun]) -> None:
    """Notes in each run of which earlier one it is a copy: equal losses in the log, or equal weights."""
    first = {}
    for run in runs:
        for mark in _marks(run):
            if mark in first and run.copy_of is None:
                run.copy_of = first[mark].name
                told = f"the same run as {first[mark].path}, and counted once"
                run.note = f"{run.note}; {told}" if run.note else told
        for mark in _marks(run) if run.copy_of is None else ():
            first.setdefault(mark, run)


def _marks(run: ReportedRun) -> list[tuple]:
    """Returns what two trainings do not have in common, with what must be equal for runs to be counted together."""
    asked = run.method, run.model, run.data, run.samples, run.batch_size, str(run.variant), str(run.training)
    losses = tuple(
        (point["samples"], *(value for name, value in sorted(point.items()) if name.endswith("loss")))
        for point in run.points
    )
    weights = run.weights if run.is_whole else None
    return [(kind, mark, *asked) for kind, mark in (("losses", losses), ("weights", weights)) if mark]
