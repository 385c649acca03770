"""`superclip run` on one node: starts the node's ranks; on the first node, also checks, watches and
records the run."""

import contextlib
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..checkpoints.best_epoch import best_epoch
from ..checkpoints.trainer_files import is_complete, is_whole, quarantine
from ..errors import InputError, to_stderr, to_stdout
from ..files import make_folder
from ..plans.run import Run
from .child_processes import Start, free_port, run_ranks
from .folder import FAILED, FINISHED, HEARTBEAT, PREEMPTED, RunFolder
from .lock import lock
from .progress import AddedLines, Progress
from .recovery import (
    CONNECTION,
    DATA,
    ENDS,
    HARDWARE,
    PATIENCE,
    REQUEUE,
    Decision,
    Failure,
    cause,
    decide,
    first_failure,
    new_files,
)
from .signals import EXIT_AGAIN, Stopped, signals_ignored
from .slurm import Placement, hosts, time_left
from .start_checks import accepts_changes, check_can_save, checked_start
from .unreadable import UnreadableData, accepted_data

RESUME = ("--resume", "latest", "--save-frequency", "1")
FULL = 4 << 20  # bytes: a disk with less free space counts as full
# seconds in which another node reports its failure after a signal: SLURM kills this process 30
# seconds after it
PATIENCE_AT_STOP = 5


class Stalled(Exception):
    """The ranks are alive but make no progress."""


class StopAsked(Exception):
    """superclip stop has asked to end the run, and a slice is saved."""


def train(run: Run, placement: Placement, folder: RunFolder) -> int:
    """Trains and returns the exit code. Restarts the training, except in a SLURM step, where the
    job's script does."""
    while True:
        training = NodeTraining(run, placement, folder)
        code = training.train()
        if code != EXIT_AGAIN or placement.step is not None:
            return code
        run = training.run  # which accepts no further changes


class NodeTraining:
    """Trains a run on this node, into a folder.

    Every node runs its ranks, and ends with an error when one of them fails: srun then ends the
    other nodes. Only the first node writes to the folder; the others write the failures of their
    ranks beside the ranks' logs.
    """

    def __init__(
        self, run: Run, placement: Placement, folder: RunFolder, *, measures: bool = False
    ):
        self.accepts_changes = accepts_changes(run, placement, folder)
        # later starts accept no changes
        run = replace(run, settings=replace(run.settings, accept_changes=False))
        self.run = run
        self.placement = placement
        self.folder = folder
        path = folder.path
        num_local = len(list(path.glob("ranks/local-*")))
        self.logs = path / "ranks" / placement.name_of_start(num_local)
        self.start = Start(
            run,
            self.logs,
            [*run.openclip_arguments(), "--logs", str(path.parent), "--name", path.name, *RESUME],
            node=placement.node,
            master_addr=placement.master_addr,
            master_port=placement.master_port if placement.num_nodes > 1 else free_port(),
            measures=measures,
        )
        self.progress = Progress(run, self.logs)
        self.unreadable = UnreadableData(run, self.logs)
        self.output = AddedLines()
        self.last_beat = 0.0
        self.first_epoch = folder.epoch  # of the newest checkpoint before this start
        self.last_epoch = None  # of the newest one
        self.full_disk = ""  # " (the disk of RUN is full)" if it was when this start failed
        self.failures = []  # of this node's ranks

    def train(self) -> int:
        """Trains this node's part and returns the exit code; raises Stopped if a signal ends it."""
        if self.placement.node == 0:
            return self._first_node()
        if self.folder.is_finished:
            return 0
        try:
            failures = self._run_ranks()
        except (InputError, OSError) as error:  # about this node's disk
            failures = [Failure.of(error)]
            with contextlib.suppress(OSError):
                failures[0].write(self.logs / f"node_{self.placement.node}.error.json")
        if not failures:
            return 0
        failure = first_failure(failures)
        if failure.kind == CONNECTION and self.folder.stop_file.exists():
            return 0  # the first node ends the run as asked, or fails itself
        # the first node prints the traceback of the failure that caused the others
        to_stderr(f"superclip run: {failure.text}")
        return 1

    def _run_ranks(self) -> list[Failure]:
        """Runs this node's ranks to their end, after waiting for the other nodes; returns their
        failures."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.start.save()
        # NCCL waits ten minutes at most until the first node has checked the data
        while len(self._begun()) < self.placement.num_nodes:
            self._each_second()
            time.sleep(1)
        self.progress.last_step = time.monotonic()  # what came before was not a stall
        return run_ranks(self.start, self._each_second)

    def _begun(self) -> list[Path]:
        """Returns the files of the nodes that have begun this start."""
        return new_files(self.logs, "node_*[0-9].json")

    def _first_node(self) -> int:
        folder = self.folder
        accepts = self.accepts_changes
        with lock(folder.path / "lock", self.placement):
            try:
                if folder.is_finished:
                    folder.check_recipe(self.run.recipe, "give --out another folder")
                    folder.check_data("give --out another folder", self.run.data)
                    to_stdout(f"superclip run: {folder.path} is finished: nothing is left to train")
                    return 0
                values = checked_start(self.run, folder, accepts=accepts)
            except InputError as error:
                folder.note_refusal(str(error))
                raise
            for path in quarantine(folder.checkpoints, is_whole, "damaged"):
                to_stdout(f"superclip run: {path.stem} is damaged and was renamed to {path.name}")
            folder.start(self.run, self.placement, self.logs.name, accepts=accepts, **values)
            try:
                return self._train_and_record()
            except Exception as error:
                message = Failure.of(error).message
                folder.end(FAILED, f"{message}{self.full_disk}")
                raise

    def _train_and_record(self) -> int:
        """Trains, records the end, and returns the exit code; raises Stopped if a signal ends it
        that no failure preceded."""
        try:
            make_folder(self.folder.checkpoints)
            check_can_save(self.run, self.folder)
            with self._beating():  # a check may take longer than STALE
                check = accepted_data(self.run, "run")
            self.folder.note(data_check=check.as_json())
            return self._end(self._train())
        except StopAsked:
            self.folder.end(PREEMPTED, f"stopped after slice {self.folder.epoch}, as asked")
            to_stdout(
                "superclip run: stopped as asked; superclip run "
                f"{shlex.quote(str(self.folder.path))} resumes"
            )
            return 0
        except Stopped as stop:
            then = Decision(REQUEUE if stop.before_time_is_up else None)
            self.folder.end(PREEMPTED, f"stopped by {stop}", then)
            failure = self._failure_before(stop)
            if failure is None:
                raise
            return self._end(failure)

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Writes heartbeats while this process does other work."""
        signal.signal(signal.SIGALRM, lambda *_: self._beat())
        signal.setitimer(signal.ITIMER_REAL, HEARTBEAT, HEARTBEAT)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _train(self) -> Failure | None:
        """Trains to the end, and returns the failure that caused the others."""
        try:
            self.failures = self._run_ranks()
        except Stalled as stalled:
            return Failure("", str(stalled), kind=HARDWARE, host="")
        except BrokenPipeError:  # of the output
            raise
        except OSError as error:
            self._make_room()
            return Failure.of(error)
        if self.failures:
            self._make_room()  # this node's ranks, which may have been saving, have ended
            return self._cause(PATIENCE)
        self._watch()
        epoch = self.folder.epoch
        last = self.run.num_slices
        if epoch < last:
            return Failure("the training", f"it ended without checkpoints/epoch_{last}.pt")
        return None

    def _each_second(self) -> None:
        """Called while this node's ranks run; raises an exception if they must end."""
        if self.placement.node == 0:
            self._watch()

    def _watch(self) -> None:
        """Records the progress, prints the output of rank 0, removes old checkpoints, and raises an
        exception if the run must end."""
        self.progress.look()
        if time.monotonic() - self.last_beat >= HEARTBEAT:
            self._beat()
        minutes = self.run.settings.stall_minutes
        if self.progress.has_stalled(minutes):
            raise Stalled(f"no step for {minutes:g} minutes")
        lines = self.output.read(self.logs / "rank_0.log")
        if any(self.logs.glob("rank_*.error.json")):  # the first error is reported first
            return
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()
        epoch = self.folder.epoch
        if epoch != self.last_epoch:
            self.last_epoch = epoch
            self.folder.prune(self.run)
            self._beat()
            if epoch > self.first_epoch and self.folder.stop_file.exists():
                raise StopAsked

    def _failure_before(self, stop: Stopped) -> Failure | None:
        """Returns the failure that preceded a signal: srun ends this node if another one fails."""
        self._make_room()
        if stop.before_time_is_up or self.placement.num_nodes == 1:
            return None
        failure = self._cause(PATIENCE_AT_STOP, is_stopped=True)
        # other nodes have stopped a moment before
        if failure and failure.kind == CONNECTION and not self.failures:
            return None
        return failure

    def _cause(self, patience: float, *, is_stopped: bool = False) -> Failure | None:
        """Returns the failure that caused the others, as `cause` does; InputError, naming the
        shards, for unreadable data."""
        # a node that has not begun to train could not report its stop
        is_stopped &= len(self._begun()) == self.placement.num_nodes
        failure = cause(self.logs, self.failures, hosts(), patience, is_stopped=is_stopped)
        if failure and failure.kind == DATA:
            self.unreadable.look()
        return failure

    def _end(self, failure: Failure | None) -> int:
        """Records how this start ended, and returns the exit code."""
        if failure is not None:
            with signals_ignored():  # srun ends this node, too, which must not hide the failure
                return self._end_after(failure)
        folder = self.folder
        self._beat()
        folder.end(FINISHED)
        to_stdout(f"superclip run: finished; {folder.checkpoints}/epoch_{folder.epoch}.pt")
        if best := best_epoch(folder.path):
            export = f"superclip export {shlex.quote(str(folder.path))} --best --out FOLDER"
            to_stdout(f"superclip run: {best}; {export} exports it")
        return 0

    def _end_after(self, failure: Failure) -> int:
        """Records a failure and how the run continues, and returns the exit code."""
        folder = self.folder
        self._beat()
        to_stderr(failure.describe(self.logs))
        decision = ENDS
        if self.full_disk:  # a rank may not have been able to write its error
            to_stderr(f"superclip run:{self.full_disk}")
        elif not self.start.measures:
            decision = decide(failure, folder.attempts, folder.epoch, time_left())
        if decision.next is None:
            folder.end(FAILED, f"{failure.text}{self.full_disk or decision.why}")
            return 1
        to_stderr("superclip run: the next start resumes from the last checkpoint")
        folder.end(PREEMPTED, failure.text, decision)
        return EXIT_AGAIN

    def _beat(self) -> None:
        """Writes the progress into state.json."""
        self.last_beat = time.monotonic()
        with contextlib.suppress(OSError):  # on a full disk, which the rank that fills it reports
            epoch = self.folder.epoch
            self.folder.beat(
                epoch=epoch, unreadable=self.unreadable.look(), **self.progress.values(epoch)
            )

    def _make_room(self) -> None:
        """Removes an incomplete checkpoint, which may fill the disk, so that the failure can be
        recorded."""
        if shutil.disk_usage(self.folder.path).free < FULL:
            self.full_disk = f" (the disk of {self.folder.path} is full)"
        quarantine(self.folder.checkpoints, is_complete, None)
