"""One start of a run on one of its nodes: from the checks to the state that it leaves."""

import contextlib
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import datetime

from ..checkpoints.began_with import beginning, changes_since_beginning, check_beginning
from ..errors import InputError
from ..integration.command_check import check_command
from ..planning.plan import Plan
from . import checkpoint_files
from .disk_space import check_disk
from .failure import HARDWARE, LOSS, STALL, Failure, describe, first_failure, node_failed, rank_failed, this_host
from .log_follower import LogFollower
from .node_ranks import NodeLost, NodeRanks
from .placement import Placement, ask_to_exclude
from .progress import Progress
from .provenance import what_runs, which_start
from .run_folder import RunFolder
from .run_limits import STARTS_WITHOUT_A_SLICE
from .run_lock import LockLost
from .run_settings import USUAL, RunSettings
from .run_state import FAILED, FINISHED, PERIOD, PREEMPTED
from .staging import Staging
from .stop_signals import QUEUE_AGAIN, Stopped
from .training_engine import engine_flags
from .unreadable_data import UnreadableData

FULL = 4 << 20  # bytes that are left on a disk that is as good as full
OTHERS = 5  # seconds in which another node that has failed can say so
SLURM_NOTICES = 900  # seconds: its SlurmdTimeout is 300 where nothing else is set


class Stalled(Exception):
    """The ranks live, and make no step."""


class NodeRun:
    """A plan, on this node of the run's, into a folder.

    Node 0 alone owns the folder; the others start their ranks, and say there if these fail.
    """

    def __init__(
        self,
        plan: Plan,
        placement: Placement,
        folder: RunFolder,
        set_: Mapping[str, str],
        engine: str = "torchrun",
        settings: RunSettings = USUAL,
    ):
        self.plan, self.placement, self.folder, self.set = plan, placement, folder, dict(set_)
        self.logs = folder.path / "ranks" / placement.name_of_start(folder.num_starts())
        self.arguments = [*plan.command, *engine_flags(engine, plan.command), *folder.openclip_flags()]
        was_requeued = placement.restarts > 0  # such a job was asked once
        self.accept_changes = settings.accept_changes and not was_requeued
        if self.accept_changes:
            self.arguments.append("--superclip-accept-changes")
        staging = Staging(plan, placement, folder, settings.stage) if settings.stage else None
        self.ranks = NodeRanks(placement, plan.gpus_per_node, self.logs, self.arguments, staging)
        self.progress = Progress(plan, self.logs)
        self.unreadable = UnreadableData(plan, folder.path / "ranks", self.logs.name, settings.unreadable_max)
        self.stall_minutes = settings.stall_minutes
        self.last_beat, self.note = 0.0, None
        self.disk_was_full = False

    def run(self) -> int:
        """Trains this node's part and returns the exit code; raises Stopped where a signal ends it."""
        return self._first_node() if self.placement.node == 0 else self._other_node()

    def _other_node(self) -> int:
        """Trains with the ranks of this node, and returns the exit code."""
        if self.folder.state().get("state") == FINISHED:
            return 0
        try:
            code = self.ranks.run(lambda: None)
        except NodeLost as lost:
            return self._wait_for_slurm(lost)
        except InputError as error:  # of this node's disk
            who = f"superclip run on {this_host()}"
            Failure(who, str(error), timestamp=time.time()).write(self.logs / f"node_{self.placement.node}.error.json")
            raise
        if code:
            print(describe(first_failure(self.logs), self.logs), file=sys.stderr, flush=True)
        return int(code != 0)  # a launcher's that was killed is negative

    def _first_node(self) -> int:
        """Checks, trains, keeps the folder in order, and returns the exit code."""
        folder = self.folder
        with folder.lock(self.placement) as check_lock:
            if not self.accept_changes:
                folder.check_recipe(self.plan.recipe)
            if folder.state().get("state") == FINISHED:
                print(f"superclip run: {folder.path} is finished: nothing is left to train")
                return 0
            changed = self._changes()
            folder.write_recipe(self.plan.recipe)
            self._set_damaged_aside()
            record = what_runs(self.plan, self.arguments, self.set)
            folder.start(record, which_start(self.placement, self.plan, self.logs.name, self.ranks.command()))
            if changed:
                folder.note_changes(changed)
            try:
                folder.check_progress(self.placement.job, STARTS_WITHOUT_A_SLICE)
                check_disk(folder, self.plan)
                folder.note(data_check=self._check_data())
                check_lock()
                return self._end(self._train())
            except LockLost:
                raise
            except NodeLost as lost:
                folder.end(PREEMPTED, str(lost))
                return self._wait_for_slurm(lost)
            except Stalled as stalled:
                return self._end(Failure("", str(stalled), kind=STALL))
            except Stopped as stop:
                self._make_room()
                self._beat(at_once=True)
                if node_failed(self.logs) and not stop.before_time_is_up:  # another node's, after which srun ends this
                    return self._end(first_failure(self.logs))
                folder.end(PREEMPTED, f"stopped by {stop}")
                if not stop.before_time_is_up and (lost := self.ranks.lost_nodes()):  # their `superclip run` was killed
                    folder.end(PREEMPTED, f"lost contact with {lost}")
                    return QUEUE_AGAIN
                raise
            except Exception as error:
                folder.end(FAILED, str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
                raise

    def _train(self) -> Failure | None:
        """Trains to the end, and returns what went wrong."""
        follower = LogFollower(self.logs / "rank_0.log")

        def each_second():
            self._beat()
            self.unreadable.check()
            if self.progress.stands_still(self.stall_minutes):
                raise Stalled("; ".join(filter(None, [f"no step for {self.stall_minutes:g} minutes", self.note])))
            added = follower.read()
            if not rank_failed(self.logs):  # the first error is reported first
                follower.show(added)
                if self.folder.note_epoch(checkpoint_files.newest(self.folder.checkpoints)):
                    checkpoint_files.prune(self.folder.checkpoints, self.plan)
                    self._beat(at_once=True)

        if self.placement.port_is_taken():
            said = f"port {self.placement.master_port} of {this_host()} is taken: MASTER_PORT is to be another"
            return Failure("", said, kind=HARDWARE)
        try:
            code = self.ranks.run(each_second, self._make_room)
        except OSError as error:
            self._make_room()
            return Failure("superclip run", f"{type(error).__name__}: {error}")
        if code:
            if self.placement.num_nodes > 1:
                time.sleep(OTHERS)
            return first_failure(self.logs)
        self._beat(at_once=True)
        each_second()
        if checkpoint_files.newest(self.folder.checkpoints) < self.plan.num_slices:
            return Failure("the training", f"it ended without checkpoints/epoch_{self.plan.num_slices}.pt")
        if not checkpoint_files.holds_numbers(self.folder.checkpoints / f"epoch_{self.plan.num_slices}.pt"):
            return Failure("", f"the weights are no numbers after the last step, {self.plan.steps}", kind=LOSS)
        return None

    def _beat(self, at_once: bool = False) -> None:
        """Writes how the run stands, now and then, and at once where a rank is stopped."""
        self.progress.look()
        note = "; ".join(self.ranks.stopped.of_all_nodes()) or None
        now = time.monotonic()
        if now - self.last_beat < PERIOD and note == self.note and not at_once:
            return
        if note and note != self.note:
            print(f"superclip run: {note}", file=sys.stderr, flush=True)
        self.last_beat, self.note = now, note
        with contextlib.suppress(OSError):  # on a full disk, of which the rank that fills it tells
            self.folder.beat(
                note=note, unreadable=self.unreadable.look(), **self.progress.values(self.folder.state()["epoch"])
            )

    def _wait_for_slurm(self, lost: NodeLost) -> int:
        """Waits until SLURM ends the job, which it then requeues without the lost node.

        Returns the code that has the job script do so, if SLURM does not: where `superclip run` alone was lost, srun
        ends the others.
        """
        print(f"superclip run: {lost}; waiting for SLURM to requeue the job", file=sys.stderr, flush=True)
        with contextlib.suppress(Stopped):
            time.sleep(SLURM_NOTICES)
        return QUEUE_AGAIN

    def _make_room(self) -> None:
        """Removes the checkpoint that was being written, which may fill the disk, for what tells of the failure."""
        self.disk_was_full |= shutil.disk_usage(self.folder.path).free < FULL
        checkpoint_files.remove_cut(self.folder.checkpoints)

    def _end(self, failure: Failure | None) -> int:
        folder = self.folder
        self._beat(at_once=True)
        if failure is None:
            folder.end(FINISHED)
            print(f"superclip run: finished; {folder.checkpoints}/epoch_{self.plan.num_slices}.pt", flush=True)
            return 0
        print(describe(failure, self.logs), file=sys.stderr, flush=True)
        if failure.kind == LOSS:
            for path in checkpoint_files.set_ruined_aside(folder.checkpoints):
                self._log(f"{path.stem} holds weights that are no numbers and was set aside as {path.name}")
        why = f" (the disk of {folder.path} is full)" if self.disk_was_full else ""
        if failure.kind in (HARDWARE, STALL) and not self.disk_was_full:
            number = folder.failures_without_a_slice()
            if number < STARTS_WITHOUT_A_SLICE:
                print("superclip run: starts again from the last checkpoint", file=sys.stderr, flush=True)
                ask_to_exclude(failure.host)
                folder.end(PREEMPTED, failure.text, again=True)
                return QUEUE_AGAIN
            why = f"; {number} starts in a row failed before a slice was trained"
        folder.end(FAILED, f"{failure.text}{why}")
        return 1

    def _changes(self) -> list[str]:
        """Returns in what this start differs from what the run began with; InputError where that is not accepted."""
        if not checkpoint_files.newest(self.folder.checkpoints):  # nothing was trained yet
            return []
        now = beginning(vars(check_command(self.plan.command)), self.plan.world_size)
        if not self.accept_changes:
            check_beginning(self.folder.path, now, "--accept-changes")
        return changes_since_beginning(self.folder.path, now)

    def _set_damaged_aside(self) -> None:
        for path in checkpoint_files.set_damaged_aside(self.folder.checkpoints):
            self._log(f"{path.stem} is damaged and was set aside as {path.name}")

    def _log(self, text: str) -> None:
        """Prints a line, and adds it to OpenCLIP's log."""
        line = f"superclip run: {text}"
        print(line, flush=True)
        with open(self.folder.path / "out.log", "a") as log:
            log.write(f"{datetime.now():%Y-%m-%d,%H:%M:%S} | INFO | {line}\n")

    def _check_data(self) -> dict:
        checked = self.plan.check_data()
        self.unreadable.check_missing(checked)
        for warning in [*self.plan.warnings, *checked["warnings"]]:
            print(f"superclip run: {warning}", flush=True)
        return checked
