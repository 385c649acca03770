"""Supervises a run on one of its nodes: checks, training, how it continues after a failure, the
recorded state."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from ..checkpoints import run_outputs
from ..checkpoints.resume import (
    BEGAN_WITH,
    beginning,
    check_beginning,
    differences,
    read_beginning,
    resumed_checkpoint,
)
from ..checkpoints.validation import best_epoch
from ..errors import InputError
from ..files import make_folder
from ..openclip.train import check_command
from ..rendering import bytes_text
from . import process, recovery
from .cost import build_model
from .folder import FAILED, FINISHED, PERIOD, PREEMPTED, RunFolder
from .lock import lock
from .process import EXIT_AGAIN, Stopped, describe, failures
from .progress import AddedLines, Progress, UnreadableData, accepted_data
from .recovery import CONNECTION, DATA, LOSS, LOST, MAX_STARTS, STALL, Failure, Requeue, Stop
from .run import Run, Start
from .slurm import Placement, hosts, time_left
from .stage import Staging

FULL = 4 << 20  # bytes: a disk with less free space counts as full
PATIENCE = 20  # seconds in which the node that caused a closed connection reports its failure
PATIENCE_AT_STOP = 5  # the same after a signal: SLURM kills this process 30 seconds after it


class Stalled(Exception):
    """The ranks are alive but make no progress."""


class NodeTraining:
    """Trains a run on this node, into a folder.

    Every node runs its ranks, and ends with an error when one of them fails: srun then ends the
    other nodes. Only the first node writes to the folder; the others write the failures of their
    ranks beside the ranks' logs.
    """

    def __init__(self, run: Run, placement: Placement, folder: RunFolder, measures: bool = False):
        settings = run.settings
        self.accept_changes = settings.accept_changes and not _accepted_before(placement, folder)
        # later starts accept no changes
        run = replace(run, settings=replace(settings, accept_changes=False))
        self.run, self.placement, self.folder = run, placement, folder
        num_local = len(list(folder.path.glob("ranks/local-*")))
        self.logs = folder.path / "ranks" / placement.name_of_start(num_local)
        arguments = [
            *run.openclip_arguments(),
            "--logs",
            str(folder.path.parent),
            "--name",
            folder.path.name,
        ]
        arguments += ["--resume", "latest", "--save-frequency", "1"]
        arguments += (
            ["--superclip-accept-changes"] if self.accept_changes and not run.is_table else []
        )
        self.staging = Staging(run, placement, folder, settings.stage) if settings.stage else None
        self.start = Start(
            run,
            self.logs,
            arguments,
            placement.node,
            placement.master_addr,
            placement.master_port if placement.num_nodes > 1 else process.free_port(),
            str(self.staging.folder) if self.staging else None,
            measures,
        )
        self.progress = Progress(run, self.logs)
        self.unreadable = UnreadableData(run, folder.path / "ranks", self.logs.name)
        self.last_beat = 0.0
        self.last_epoch = None
        self.disk_was_full = False
        self.failures: list[Failure] = []  # of this node's ranks

    def train(self) -> int:
        """Trains this node's part and returns the exit code; raises Stopped if a signal ends it."""
        if self.placement.node == 0:
            return self._first_node()
        if self._is_finished():
            return 0
        try:
            found = self._run_ranks(lambda: None)
        except (InputError, OSError) as error:  # about this node's disk
            found = [Failure.here("superclip run", str(error))]
            with contextlib.suppress(OSError):
                found[0].write(self.logs / f"node_{self.placement.node}.error.json")
        if found:  # the first node prints the traceback of the failure that caused the others
            print(
                f"superclip run: {recovery.first_failure(found).text}", file=sys.stderr, flush=True
            )
        return 1 if found else 0

    def _is_finished(self) -> bool:
        return self.folder.state().get("state") == FINISHED

    def _first_node(self) -> int:
        folder = self.folder
        make_folder(folder.path, "--out")
        with lock(folder.path / "lock", self.placement):
            if self._is_finished():
                self._check_finished()
                print(f"superclip run: {folder.path} is finished: nothing is left to train")
                return 0
            values = self._checked()
            for path in run_outputs.quarantine(folder.checkpoints, run_outputs.is_whole, "damaged"):
                self._log(f"{path.stem} is damaged and was renamed to {path.name}")
            folder.start(
                self.run,
                self.placement,
                self.start.arguments,
                self.logs.name,
                self.accept_changes,
                **values,
            )
            try:
                self._check_starts()
                self._check_disk()
                folder.note(data_check=accepted_data(self.run, "run"))
                return self._end(self._train())
            except Stopped as stop:
                folder.end(
                    PREEMPTED, f"stopped by {stop}", Requeue() if stop.before_time_is_up else None
                )
                if failure := self._failure_before(stop):
                    return self._end(failure)
                raise
            except Exception as error:
                text = (
                    str(error)
                    if isinstance(error, InputError)
                    else f"{type(error).__name__}: {error}"
                )
                folder.end(FAILED, f"{text}{self._full_disk()}")
                raise

    def _check_finished(self) -> None:
        """Raises InputError if the folder's run is another one; notes it as a refusal."""
        with self._noted():
            self.folder.check_recipe(self.run.recipe, "give --out another folder")
            self.folder.check_plan("give --out another folder", data=self.run.data)

    def _checked(self) -> dict:
        """Returns what this start adds to run.json; InputError if it may not train into the
        folder."""
        folder = self.folder
        with self._noted():
            if not self.accept_changes:
                folder.check_recipe(self.run.recipe)
            resumed_checkpoint("latest", str(folder.path), save_most_recent=False)
            now = beginning(vars(check_command(self.run.openclip_arguments())), self.run.world_size)
            before = read_beginning(folder.path) if run_outputs.newest(folder.checkpoints) else None
            if before is None:  # nothing was trained yet
                return {BEGAN_WITH: now}
            changed = differences(before, now)
            if not self.accept_changes:
                check_beginning(folder.path, now, "--accept-changes")
        changes = folder.record().get("changes", [])
        if changed:
            changes = [
                *changes,
                {"when": _now(), "start": len(folder.attempts), "changed": changed},
            ]
        return {
            BEGAN_WITH: now if changed or not before["versions"] else before,
            "changes": changes,
        }

    @contextlib.contextmanager
    def _noted(self):
        """Records an InputError as the reason why this start was refused."""
        try:
            yield
        except InputError as error:
            self.folder.note_refusal(str(error))
            raise

    def _train(self) -> Failure | None:
        """Trains to the end, and returns the failure that caused the others."""
        run, log, added = self.run, self.logs / "rank_0.log", AddedLines()

        def each_second():
            self._beat()
            self.unreadable.check()
            if self.progress.has_stalled(run.settings.stall_minutes):
                raise Stalled(f"no step for {run.settings.stall_minutes:g} minutes")
            new = added.read(log)
            if not any(self.logs.glob("rank_*.error.json")):  # the first error is reported first
                sys.stdout.buffer.write(new)
                sys.stdout.buffer.flush()
                epoch = run_outputs.newest(self.folder.checkpoints)
                if epoch != self.last_epoch:
                    self.last_epoch = epoch
                    self.folder.prune(run)
                    self._beat(at_once=True)

        try:
            self.failures = self._run_ranks(each_second)
        except Stalled as stalled:
            return Failure("", str(stalled), kind=STALL)
        except OSError as error:
            self._make_room()
            return Failure("superclip run", f"{type(error).__name__}: {error}")
        if self.failures:
            self._make_room()  # this node's ranks, which may have been saving, have ended
            failure = self._cause(PATIENCE)
            if failure.kind == DATA:
                self.unreadable.look()
                self.unreadable.check()  # raises an error that names the shards
            return failure
        self._beat(at_once=True)
        each_second()
        if run_outputs.newest(self.folder.checkpoints) < run.num_slices:
            return Failure(
                "the training", f"it ended without checkpoints/epoch_{run.num_slices}.pt"
            )
        return None

    def _run_ranks(self, each_second: Callable[[], None]) -> list[Failure]:
        """Runs this node's ranks to their end, after staging the first slice; returns their
        failures."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.start.save()
        with self.staging or contextlib.nullcontext():
            while self.staging and not self.staging.first.is_set():
                self.progress.last_step = time.monotonic()  # copying is not a stall
                each_second()
                time.sleep(0.5)
            return process.run_ranks(self.start, each_second)

    def _cause(self, patience: float) -> Failure | None:
        """Returns the failure that caused the others, for which another node may need some seconds;
        None without one.

        If only connections were closed, the nodes that have not reported a failure are lost.
        """
        deadline = time.monotonic() + (patience if self.placement.num_nodes > 1 else 0)
        while True:
            known = failures(self.logs) or self.failures
            failure = recovery.first_failure(known)
            if (failure and failure.kind != CONNECTION) or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        lost = set(hosts()) - {one.host for one in known}
        if failure and failure.kind == CONNECTION and lost and self.placement.num_nodes > 1:
            names = ", ".join(sorted(lost))
            return Failure("", f"lost contact with {names}", kind=LOST, host=min(lost))
        return failure

    def _failure_before(self, stop: Stopped) -> Failure | None:
        """Returns the failure that preceded a signal: srun ends this node if another one fails."""
        self._make_room()
        if stop.before_time_is_up:
            return None
        failure = self._cause(PATIENCE_AT_STOP) if self.placement.num_nodes > 1 else None
        # other nodes have stopped a moment before
        if failure and failure.kind == CONNECTION and not self.failures:
            return None
        return failure

    def _end(self, failure: Failure | None) -> int:
        folder = self.folder
        self._beat(at_once=True)
        if failure is None:
            folder.end(FINISHED)
            print(
                f"superclip run: finished; {folder.checkpoints}/epoch_{self.run.num_slices}.pt",
                flush=True,
            )
            if best := best_epoch(folder.path):
                print(
                    f"superclip run: {best}; superclip export {folder.path} --best exports it",
                    flush=True,
                )
            return 0
        print(describe(failure, self.logs), file=sys.stderr, flush=True)
        if failure.kind == LOSS:
            from ..checkpoints.weights import holds_numbers  # imports torch

            for path in run_outputs.quarantine(folder.checkpoints, holds_numbers, "ruined"):
                self._log(f"{path.stem} contains non-finite weights and was renamed to {path.name}")
        disk = self._full_disk()
        decision = Stop()
        if disk:  # a rank may not have been able to write its error
            print(f"superclip run: {disk.strip(' ()')}", file=sys.stderr, flush=True)
        elif not self.start.measures:
            progress = run_outputs.newest(folder.checkpoints)
            decision = recovery.decide(failure, folder.attempts, progress, time_left(os.environ))
        if isinstance(decision, Stop):
            folder.end(FAILED, f"{failure.text}{disk or decision.why}")
            return 1
        print("superclip run: starts again from the last checkpoint", file=sys.stderr, flush=True)
        folder.end(PREEMPTED, failure.text, decision)
        return EXIT_AGAIN

    def _beat(self, at_once: bool = False) -> None:
        """Writes the progress into state.json every few seconds."""
        self.progress.look()
        now = time.monotonic()
        if now - self.last_beat < PERIOD and not at_once:
            return
        self.last_beat = now
        with contextlib.suppress(OSError):  # on a full disk, which the rank that fills it reports
            epoch = run_outputs.newest(self.folder.checkpoints)
            self.folder.beat(
                epoch=epoch, unreadable=self.unreadable.look(), **self.progress.values(epoch)
            )

    def _make_room(self) -> None:
        """Removes an incomplete checkpoint, which may fill the disk, so that the failure can be
        recorded."""
        self._full_disk()
        run_outputs.quarantine(self.folder.checkpoints, run_outputs.is_complete, None)

    def _full_disk(self) -> str:
        """Returns " (the disk of RUN is full)" if it is, or was when a rank failed, else ""."""
        self.disk_was_full |= shutil.disk_usage(self.folder.path).free < FULL
        return f" (the disk of {self.folder.path} is full)" if self.disk_was_full else ""

    def _check_starts(self) -> None:
        """Raises InputError if this job was started too often without a new slice."""
        if (
            recovery.starts_without_slice(
                self.folder.attempts, run_outputs.newest(self.folder.checkpoints)
            )
            > MAX_STARTS
        ):
            raise InputError(
                f"the run was started {MAX_STARTS} times and stopped before a slice was "
                "trained: give the job more --time, or the recipe more slices"
            )

    def _check_disk(self) -> None:
        """Raises InputError, with the free and the needed bytes, if the disk is too small;
        quotas are not read."""
        folder, there = self.folder, run_outputs.checkpoints(self.folder.checkpoints)
        if max(there, default=0) >= self.run.num_slices:
            return
        num_more = max(1, self.run.max_checkpoints - len(there))
        size = max((path.stat().st_size for path in there.values()), default=0)
        size = size or build_model(self.run)[0]["checkpoint_bytes"]
        free, needed = shutil.disk_usage(folder.path).free, num_more * size
        if free < needed:
            raise InputError(
                f"--out: the disk of {folder.path} has {bytes_text(free)} free, and {num_more} "
                "more checkpoints of "
                f"{bytes_text(size)} need {bytes_text(needed)}: free some space, or give --out "
                "another folder"
            )

    def _log(self, text: str) -> None:
        """Prints a line, and adds it to OpenCLIP's log."""
        line = f"superclip run: {text}"
        print(line, flush=True)
        with open(self.folder.path / "out.log", "a") as log:
            log.write(f"{datetime.now():%Y-%m-%d,%H:%M:%S} | INFO | {line}\n")


def _accepted_before(placement: Placement, folder: RunFolder) -> bool:
    """Returns whether an earlier start of the same job has accepted changes."""
    start = placement.restarts, placement.step
    of_job = [one for one in folder.attempts if placement.job and one["job"] == placement.job]
    return any(one.get("accepts") and (one["restarts"], one["step"]) != start for one in of_job)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
