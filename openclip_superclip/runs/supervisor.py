"""Supervises a run on one of its nodes: checks, training, whether it restarts after a failure, the recorded state."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ..checkpoints import run_outputs
from ..checkpoints.resume import beginning, check_beginning, resumed_checkpoint, write_beginning
from ..errors import InputError
from ..files import make_folder
from ..openclip.train import check_command
from ..pages import bytes_text
from . import process
from .cost import build_model
from .folder import FAILED, FINISHED, PERIOD, PREEMPTED, RunFolder, lock
from .process import HARDWARE, LOSS, STALL, Failure, describe, failure_here, first_failure, node_failed, refresh
from .progress import AddedLines, Progress, UnreadableData, accepted_data
from .run import Run, Start
from .slurm import Placement, ask_job, hosts
from .stage import Staging

STARTS_WITHOUT_A_SLICE = 3  # in a row, after which a run has failed
FULL = 4 << 20  # bytes: a disk with less free space counts as full
SLURM_NOTICES = 900  # seconds until SLURM ends the job of a lost node; its SlurmdTimeout is 300 by default
SILENCE = 20  # seconds after which a node that does not end as the others do is lost
SILENCE_AT_STOP = 15  # the same after a signal, which all nodes get: SLURM kills this process 30 seconds after it
DUMP, END, OVER = "dump", "end", "over"  # node 0's orders: write stacks, end the ranks; node 0 has ended


class NodeLost(Exception):
    """A node does not end as the others do."""


class OthersFailed(Exception):
    """The ranks of another node have failed."""


class Stalled(Exception):
    """The ranks are alive but make no progress."""


class NodeTraining:
    """Trains a run on this node, into a folder.

    Only node 0 writes to the folder. It gives orders to the others in a file. The others start their ranks, report
    failures, and wait until node 0 has ended: srun ends all nodes with the first one that ends with an error.
    """

    def __init__(self, run: Run, placement: Placement, folder: RunFolder, measures: bool = False):
        settings, attempts = run.settings, folder.record().get("attempts", [])
        self.accept_changes = settings.accept_changes and not any(  # a start before the job was requeued accepted them
            one.get("job") == placement.job and one.get("restarts", 0) < placement.restarts for one in attempts
        )
        run = replace(run, settings=replace(settings, accept_changes=False))  # later starts accept no changes
        self.run, self.placement, self.folder = run, placement, folder
        num_local = len(list(folder.path.glob("ranks/local-*")))
        self.logs = folder.path / "ranks" / placement.name_of_start(num_local)
        arguments = [*run.openclip_arguments(), "--logs", str(folder.path.parent), "--name", folder.path.name]
        arguments += ["--resume", "latest", "--save-frequency", "1"]
        arguments += ["--superclip-accept-changes"] if self.accept_changes and not run.is_table else []
        self.staging = Staging(run, placement, folder, settings.stage) if settings.stage else None
        self.start = Start(
            run, self.logs, arguments, placement.node, placement.master_addr,
            placement.master_port if placement.num_nodes > 1 else process.free_port(),
            str(self.staging.folder) if self.staging else None, measures,
        )  # fmt: skip
        self.progress = Progress(run, self.logs)
        self.unreadable = UnreadableData(run, folder.path / "ranks", self.logs.name)
        self.last_beat, self.last_epoch, self.disk_was_full = 0.0, None, False

    def train(self) -> int:
        """Trains this node's part and returns the exit code; raises Stopped if a signal ends it."""
        if self.placement.node:
            return self._other_node()
        try:
            return self._first_node()
        finally:
            self._order(OVER)

    def _is_finished(self) -> bool:
        return self.folder.state().get("state") == FINISHED

    def _other_node(self) -> int:
        if self._is_finished():
            return 0
        self.logs.mkdir(parents=True, exist_ok=True)
        failure, text = None, "superclip run: ended because other ranks have failed"
        try:
            failure = self._run_ranks(lambda: None)
            if failure is None:
                return 0
            text = describe(failure, self.logs)
        except OthersFailed:
            pass
        except (InputError, OSError) as error:  # about this node's disk
            failure, text = failure_here("superclip run", str(error)), f"error: {error}"
        finally:
            with contextlib.suppress(OSError):  # on a full disk, of which the first node removes a checkpoint
                if failure:
                    failure.write(self._file("error.json"))
            with contextlib.suppress(OSError):
                self._file("ended").touch()
        print(text, file=sys.stderr, flush=True)
        deadline = time.monotonic() + SLURM_NOTICES
        while self._orders() != OVER:
            if time.monotonic() > deadline:
                return process.EXIT_REQUEUE
            time.sleep(0.5)
        return 0 if self._is_finished() else 1

    def _first_node(self) -> int:
        folder = self.folder
        make_folder(folder.path, "--out")
        with lock(folder.path / "lock", self.placement):
            try:
                if self._is_finished():
                    folder.check_recipe(self.run.recipe, "give --out another folder")
                    folder.check_plan("give --out another folder", data=self.run.data)
                    print(f"superclip run: {folder.path} is finished: nothing is left to train")
                    return 0
                if not self.accept_changes:
                    folder.check_recipe(self.run.recipe)
                resumed_checkpoint("latest", str(folder.path), save_most_recent=False)
                changed = self._changes()
            except InputError as error:
                folder.note_refusal(str(error))
                raise
            folder.write(self.run)
            for path in run_outputs.quarantine(folder.checkpoints, run_outputs.is_whole, "damaged"):
                self._log(f"{path.stem} is damaged and was renamed to {path.name}")
            folder.start(self.run, self.placement, self.start.arguments, self.logs.name, changed)
            try:
                self._check_starts()
                self._check_disk()
                folder.note(data_check=accepted_data(self.run, "run"))
                return self._end(self._train())
            except NodeLost as lost:
                folder.end(PREEMPTED, str(lost))
                print(f"superclip run: {lost}; waiting for SLURM to requeue the job", file=sys.stderr, flush=True)
                ask_job("requeue")
                with contextlib.suppress(process.Stopped):
                    time.sleep(SLURM_NOTICES)
                return process.EXIT_REQUEUE
            except process.Stopped as stop:
                self._make_room()
                self._beat(at_once=True)
                if not stop.before_time_is_up and node_failed(self.logs):  # srun ends this node after another's failure
                    return self._end(first_failure(self.logs))
                folder.end(PREEMPTED, f"stopped by {stop}")  # at once: SLURM kills this process soon
                if stop.before_time_is_up or not (lost := self._silent_nodes(SILENCE_AT_STOP)):
                    raise
                folder.end(PREEMPTED, f"lost contact with {lost}")
                ask_job("requeue")
                return process.EXIT_REQUEUE
            except Exception as error:
                folder.end(FAILED, str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
                raise

    def _train(self) -> Failure | None:
        """Trains to the end, and returns the first failure."""
        run, log, added = self.run, self.logs / "rank_0.log", AddedLines()

        def each_second():
            self._beat()
            self.unreadable.check()
            if self.progress.has_stalled(run.settings.stall_minutes):
                self._order(DUMP)
                process.dump_stacks(self.logs, self.start.ranks)
                time.sleep(4)  # until other nodes have dumped theirs
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
            failure = self._run_ranks(each_second)
        except OthersFailed:
            failure = first_failure(self.logs)
        except Stalled as stalled:
            return Failure("", str(stalled), kind=STALL)
        except OSError as error:
            self._make_room()
            return Failure("superclip run", f"{type(error).__name__}: {error}")
        if failure:
            self._make_room()  # this node's ranks, which may have been saving, have ended
            failure.write(self._file("error.json"))
            if lost := self._silent_nodes(SILENCE):
                raise NodeLost(f"lost contact with {lost}")
            return first_failure(self.logs)
        self._beat(at_once=True)
        each_second()
        if run_outputs.newest(self.folder.checkpoints) < run.num_slices:
            return Failure("the training", f"it ended without checkpoints/epoch_{run.num_slices}.pt")
        return None

    def _run_ranks(self, each_second: Callable[[], None]) -> Failure | None:
        """Runs this node's ranks to their end, after staging the first slice; returns the first failure.

        Raises OthersFailed if the ranks of another node have failed.
        """
        is_first, dumped = self.placement.node == 0, False

        def tick():
            nonlocal dumped
            orders = "" if is_first else self._orders()
            if orders == DUMP and not dumped:
                process.dump_stacks(self.logs, self.start.ranks)
                dumped = True
            if is_first and self.placement.num_nodes > 1 and node_failed(self.logs):
                raise OthersFailed
            if orders == END or (orders == OVER and not self._is_finished()):
                raise OthersFailed
            each_second()

        self.logs.mkdir(parents=True, exist_ok=True)
        self.start.save()
        if is_first:
            self._order("")  # NFS shows a change within seconds, and a new file within a minute
        with self.staging or contextlib.nullcontext():
            while self.staging and not self.staging.first.is_set():
                self.progress.last_step = time.monotonic()  # copying is not a stall
                tick()
                time.sleep(0.5)
            return process.run_ranks(self.start, tick)

    def _order(self, what: str) -> None:
        """Gives an order to the other nodes, which they see within seconds."""
        with contextlib.suppress(OSError):
            (self.logs / "orders").write_text(what)

    def _orders(self) -> str:
        """Returns node 0's last order."""
        with contextlib.suppress(OSError):
            return (self.logs / "orders").read_text()
        return ""

    def _silent_nodes(self, seconds: float) -> str:
        """Orders the other nodes to end, and returns the names of those that do not do so within so many seconds."""
        self._order(END)
        deadline, silent = time.monotonic() + seconds, range(1, self.placement.num_nodes)
        while silent := [node for node in silent if not self._file("ended", node).exists()]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
            refresh(self.logs)
        names = hosts()
        return ", ".join(names[node] if len(names) > node else f"node {node}" for node in silent)

    def _file(self, what: str, node: int | None = None) -> Path:
        """Returns a file of this node, or of another one, that other nodes look for."""
        return self.logs / f"node_{self.placement.node if node is None else node}.{what}"

    def _end(self, failure: Failure | None) -> int:
        folder = self.folder
        self._beat(at_once=True)
        if failure is None:
            folder.end(FINISHED)
            print(f"superclip run: finished; {folder.checkpoints}/epoch_{self.run.num_slices}.pt", flush=True)
            return 0
        print(describe(failure, self.logs), file=sys.stderr, flush=True)
        if failure.kind == LOSS:
            from ..checkpoints.checkpoint import holds_numbers  # imports torch

            for path in run_outputs.quarantine(folder.checkpoints, holds_numbers, "ruined"):
                self._log(f"{path.stem} contains non-finite weights and was renamed to {path.name}")
        why = f" (the disk of {folder.path} is full)" if self.disk_was_full else ""
        if why:  # a rank may not have been able to write its error
            print(f"superclip run: the disk of {folder.path} is full", file=sys.stderr, flush=True)
        if failure.kind in (HARDWARE, STALL) and not self.disk_was_full and not self.start.measures:
            number = folder.starts_without_a_slice()
            if number < STARTS_WITHOUT_A_SLICE:
                here = number < 2  # a second failure may be due to the node
                ask_job("restart" if here else "requeue", "" if here else failure.host)
                print("superclip run: starts again from the last checkpoint", file=sys.stderr, flush=True)
                folder.end(PREEMPTED, failure.text, again=True)
                return process.EXIT_REQUEUE
            why = f"; {number} starts in a row ended before a slice was trained"
        folder.end(FAILED, f"{failure.text}{why}")
        return 1

    def _beat(self, at_once: bool = False) -> None:
        """Writes the progress into state.json every few seconds."""
        self.progress.look()
        now = time.monotonic()
        if now - self.last_beat < PERIOD and not at_once:
            return
        self.last_beat = now
        with contextlib.suppress(OSError):  # on a full disk, which the rank that fills it reports
            epoch = run_outputs.newest(self.folder.checkpoints)
            self.folder.beat(epoch=epoch, unreadable=self.unreadable.look(), **self.progress.values(epoch))

    def _make_room(self) -> None:
        """Removes an incomplete checkpoint, which may fill the disk, so that the failure can be recorded."""
        self.disk_was_full |= shutil.disk_usage(self.folder.path).free < FULL
        run_outputs.quarantine(self.folder.checkpoints, run_outputs.is_complete, None)

    def _changes(self) -> list[str]:
        """Returns the differences of this start from what the run began with; InputError if they are not accepted."""
        if not run_outputs.newest(self.folder.checkpoints):  # nothing was trained yet
            return []
        now = beginning(vars(check_command(self.run.openclip_arguments())), self.run.world_size)
        if self.accept_changes:
            return write_beginning(self.folder.path, now, resumes=True)
        check_beginning(self.folder.path, now, "--accept-changes")
        return []

    def _check_starts(self) -> None:
        """Raises InputError if this job was started too often without a new slice."""
        if self.folder.starts_without_a_slice() > STARTS_WITHOUT_A_SLICE:
            raise InputError(
                f"the run was started {STARTS_WITHOUT_A_SLICE} times and stopped before a slice was trained: give the "
                "job more --time, or the recipe more slices"
            )

    def _check_disk(self) -> None:
        """Raises InputError, with the free and the needed bytes, if the disk is too small; quotas are not read."""
        folder, there = self.folder, run_outputs.checkpoints(self.folder.checkpoints)
        if max(there, default=0) >= self.run.num_slices:
            return
        num_more = max(1, self.run.max_checkpoints - len(there))
        size = max((path.stat().st_size for path in there.values()), default=0)
        size = size or build_model(self.run)[0]["checkpoint_bytes"]
        free, needed = shutil.disk_usage(folder.path).free, num_more * size
        if free < needed:
            raise InputError(
                f"--out: the disk of {folder.path} has {bytes_text(free)} free, and {num_more} more checkpoints of "
                f"{bytes_text(size)} need {bytes_text(needed)}: free some space, or give --out another folder"
            )

    def _log(self, text: str) -> None:
        """Prints a line, and adds it to OpenCLIP's log."""
        line = f"superclip run: {text}"
        print(line, flush=True)
        with open(self.folder.path / "out.log", "a") as log:
            log.write(f"{datetime.now():%Y-%m-%d,%H:%M:%S} | INFO | {line}\n")
