"""One start of a run on one of its nodes: from the checks to the state that it leaves."""

import shutil
import sys
import time
from collections.abc import Mapping
from datetime import datetime

from ..errors import InputError
from ..planning.plan import Plan
from . import checkpoint_files as good_checkpoint
from .failure import Error, describe, first_error, node_failed, rank_failed, write_node_error
from .heartbeat import NodeBeats
from .launch import QUEUE_AGAIN, Follower, Stopped, launch
from .placement import Placement, hosts
from .provenance import what_runs, which_start
from .rank_command import engine_flags, torchrun_command
from .run_folder import FAILED, FINISHED, PREEMPTED, RunFolder
from .run_lock import LockLost

STARTS_WITHOUT_A_SLICE = 3  # in a row: a job's time is too short for a slice
FULL = 4 << 20  # bytes that are left on a disk that is as good as full
OTHERS = 5  # seconds in which another node that has failed can say so
SLURM_NOTICES = 900  # seconds: its SlurmdTimeout is 300 where nothing else is set


class NodeLost(Exception):
    """Nothing more is heard of a node."""


class Run:
    """A plan, on this node of the run's, into a folder.

    Node 0 alone owns the folder; the others start their ranks, and say there if these fail.
    """

    def __init__(
        self, plan: Plan, placement: Placement, folder: RunFolder, set_: Mapping[str, str], engine: str = "torchrun"
    ):
        self.plan, self.placement, self.folder, self.set = plan, placement, folder, dict(set_)
        self.logs = folder.path / "ranks" / placement.name_of_start(folder.num_starts())
        self.arguments = [*plan.command, *engine_flags(engine, plan.command), *folder.openclip_flags()]
        self.beats = NodeBeats(self.logs, placement.node, placement.num_nodes)
        self.disk_was_full = False

    def command(self) -> list[str]:
        """Returns the command that starts this node's ranks."""
        return torchrun_command(self.placement, self.plan.gpus_per_node, self.logs, self.arguments)

    def other_node(self) -> int:
        """Trains with the ranks of this node, and returns the exit code."""
        if self.folder.state().get("state") == FINISHED:
            return 0
        try:
            code = self._launch(lambda: None)
        except NodeLost as lost:
            return self._wait_for_slurm(lost)
        if code:
            print(describe(first_error(self.logs), self.logs), file=sys.stderr, flush=True)
        return min(code, 1)

    def first_node(self) -> int:
        """Checks, trains, keeps the folder in order, and returns the exit code."""
        folder = self.folder
        with folder.lock(self.placement) as check_lock:
            folder.check_recipe(self.plan.recipe)
            if folder.state().get("state") == FINISHED:
                print(f"superclip run: {folder.path} is finished: nothing is left to train")
                return 0
            folder.write_recipe(self.plan.recipe)
            self._set_damaged_aside()
            record = what_runs(self.plan, self.arguments, self.set)
            folder.start(record, which_start(self.placement, self.plan, self.logs.name, self.command()))
            try:
                folder.check_progress(self.placement.job, STARTS_WITHOUT_A_SLICE)
                folder.note(data_check=self._check_data())
                check_lock()
                return self._end(self._train())
            except LockLost:
                raise
            except NodeLost as lost:
                folder.end(PREEMPTED, str(lost))
                return self._wait_for_slurm(lost)
            except Stopped as stop:
                self._make_room()
                if node_failed(self.logs) and not stop.before_time_is_up:  # another node's, after which srun ends this
                    return self._end(first_error(self.logs))
                folder.end(PREEMPTED, f"stopped by {stop}")
                raise
            except Exception as error:
                folder.end(FAILED, str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
                raise

    def _train(self) -> Error | None:
        """Trains to the end, and returns what went wrong."""
        follower = Follower(self.logs / "rank_0.log")

        def each_second():
            added = follower.read()
            if not rank_failed(self.logs):  # the first error is told first
                follower.show(added)
                if self.folder.note_epoch(good_checkpoint.newest(self.folder.checkpoints)):
                    good_checkpoint.prune(self.folder.checkpoints, self.plan.slices_per_pass)

        try:
            code = self._launch(each_second)
        except OSError as error:
            self._make_room()
            return Error("superclip run", f"{type(error).__name__}: {error}")
        if code:
            if self.placement.num_nodes > 1:
                time.sleep(OTHERS)
            return first_error(self.logs)
        each_second()
        if good_checkpoint.newest(self.folder.checkpoints) < self.plan.num_slices:
            return Error("the training", f"it ended without checkpoints/epoch_{self.plan.num_slices}.pt")
        return None

    def _launch(self, each_second) -> int:
        """Runs this node's ranks to their end and returns the launcher's exit code; 0 is success.

        Raises NodeLost where they failed and another node is silent.
        """

        def tick():
            self.beats.beat()
            each_second()

        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            code = launch(self.command(), self.logs / f"node_{self.placement.node}.log", tick)
            if code:
                if self.placement.node == 0:
                    self._make_room()
                lost = self.beats.lost_nodes()
                if lost:
                    raise NodeLost(f"lost contact with {', '.join(map(self._name, lost))}")
                write_node_error(self.logs, self.placement.node, code)
            return code
        finally:
            self.beats.end()

    def _wait_for_slurm(self, lost: NodeLost) -> int:
        """Waits until SLURM ends the job, which it then puts back into the queue without the lost node.

        Returns the code that has the job script do so, if SLURM does not.
        """
        print(f"superclip run: {lost}; SLURM is to put the job back into the queue", file=sys.stderr, flush=True)
        time.sleep(SLURM_NOTICES)
        return QUEUE_AGAIN

    def _make_room(self) -> None:
        """Removes the checkpoint that was being written, which may fill the disk, for what tells of the failure."""
        self.disk_was_full |= shutil.disk_usage(self.folder.path).free < FULL
        good_checkpoint.remove_cut(self.folder.checkpoints)

    def _end(self, error: Error | None) -> int:
        folder = self.folder
        if error is None:
            folder.end(FINISHED)
            print(f"superclip run: finished; {folder.checkpoints}/epoch_{self.plan.num_slices}.pt", flush=True)
            return 0
        print(describe(error, self.logs), file=sys.stderr, flush=True)
        why = f" (the disk of {folder.path} is full)" if self.disk_was_full else ""
        folder.end(FAILED, f"{error.who}: {error.error}{why}")
        return 1

    def _set_damaged_aside(self) -> None:
        for path in good_checkpoint.set_damaged_aside(self.folder.checkpoints):
            line = f"superclip run: {path.stem} is damaged and was set aside as {path.name}"
            print(line, flush=True)
            with open(self.folder.path / "out.log", "a") as log:
                log.write(f"{datetime.now():%Y-%m-%d,%H:%M:%S} | INFO | {line}\n")

    def _check_data(self) -> dict:
        checked = self.plan.check_data()
        for warning in [*self.plan.warnings, *checked["warnings"]]:
            print(f"superclip run: {warning}", flush=True)
        return checked

    def _name(self, node: int) -> str:
        names = hosts()
        return names[node] if len(names) == self.placement.num_nodes else f"node {node}"
