"""One start of a run on one of its nodes: from the checks to the state that it leaves."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import datetime

from ..checkpoints import run_outputs
from ..checkpoints.resume import beginning, changes_since_beginning, check_beginning
from ..data.shards import expand, is_remote
from ..errors import InputError
from ..openclip.train import check_command
from ..pages import bytes_text
from .cost import count_model
from .folder import FAILED, FINISHED, PERIOD, PREEMPTED, Locked, RunFolder
from .process import (
    EXIT_REQUEUE,
    HARDWARE,
    LOSS,
    NODE,
    STALL,
    Failure,
    Heartbeat,
    Stopped,
    describe,
    down_nodes,
    dump_stacks,
    failure_here,
    first_failure,
    node_failed,
    rank_failed,
    run_to_end,
    this_host,
    write_node_failure,
)
from .progress import AddedText, Progress, TooManyUnreadable, UnreadableData
from .run import Run, Start
from .slurm import Placement, ask_job, hosts
from .stage import Staging

STARTS_WITHOUT_A_SLICE = 3  # in a row, after which a run has failed
FULL = 4 << 20  # bytes free on a disk that counts as full
SLURM_NOTICES = 900  # seconds: its SlurmdTimeout is 300 by default


class NodeLost(Exception):
    """The heartbeats of a node have stopped."""


class OthersFailed(Exception):
    """The ranks of another node have failed."""


class Stalled(Exception):
    """The ranks are alive, and there is no progress."""


class NodeTraining:
    """A run, on this node, into a folder.

    Node 0 alone owns the folder; the others start their ranks, and write there if these fail.
    """

    def __init__(self, run: Run, placement: Placement, folder: RunFolder, measures: bool = False):
        self.run, self.placement, self.folder = run, placement, folder
        self.logs = folder.path / "ranks" / placement.name_of_start(folder.num_starts())
        settings, was_requeued = run.settings, placement.restarts > 0  # such a job has accepted them before
        self.accept_changes = settings.accept_changes and not was_requeued
        arguments = [*run.openclip_arguments(), *folder.openclip_flags()]
        arguments += ["--horovod"] if settings.engine == "horovod" else []
        arguments += ["--superclip-accept-changes"] if self.accept_changes else []
        self.staging = Staging(run, placement, folder, settings.stage) if settings.stage else None
        self.start = Start(
            run, self.logs, arguments, placement.node, placement.num_nodes, placement.master_addr,
            placement.master_port, str(self.staging.folder) if self.staging else None, measures,
        )  # fmt: skip
        self.heartbeat = Heartbeat(self.logs, placement.node, placement.num_nodes)
        self.progress = Progress(run, self.logs)
        self.unreadable = UnreadableData(run, folder.path / "ranks", self.logs.name)
        self.last_beat, self.disk_was_full = 0.0, False

    def train(self) -> int:
        """Trains this node's part and returns the exit code; raises Stopped if a signal ends it."""
        try:
            return self._first_node() if self.placement.node == 0 else self._other_node()
        finally:
            self.heartbeat.beat(Heartbeat.ENDED)

    def _other_node(self) -> int:
        """Trains with the ranks of this node, and returns the exit code."""
        if self.folder.state().get("state") == FINISHED:
            return 0
        try:
            self._check_sees_data()
            code = self._run_ranks(lambda: None)
        except NodeLost as lost:
            return self._wait_for_slurm(lost)
        except OthersFailed:
            return 1
        except InputError as error:  # about this node's disk
            self._write_failure(failure_here("superclip run", str(error)))
            raise
        if code:
            print(describe(first_failure(self.logs), self.logs), file=sys.stderr, flush=True)
        return int(code != 0)  # a launcher's that was killed is negative

    def _check_sees_data(self) -> None:
        """Raises InputError if this node lacks the data, which node 0 has seen; another node may have it."""
        shards = [self.run.data] if self.run.is_table else expand(self.run.data)
        for shard in (shards[0], shards[len(shards) // 2], shards[-1]):
            if not is_remote(shard) and not os.path.exists(shard):
                failure = failure_here("superclip run", f"--data: there is no file {shard} on this node", kind=NODE)
                self._write_failure(failure)
                raise InputError(failure.text)

    def _write_failure(self, failure: Failure) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        failure.write(self.logs / f"node_{self.placement.node}.error.json")
        with contextlib.suppress(NodeLost):
            self._hear_others()

    def _first_node(self) -> int:
        """Checks, trains, keeps the folder in order, and returns the exit code."""
        folder = self.folder
        with folder.lock(self.placement) as check_lock:
            try:
                if not self.accept_changes:
                    folder.check_recipe(self.run.recipe)
                if folder.state().get("state") == FINISHED:
                    print(f"superclip run: {folder.path} is finished: nothing is left to train")
                    return 0
                changed = self._changes()
            except InputError as error:
                folder.note_refusal(str(error))
                raise
            folder.write(self.run)
            for path in run_outputs.quarantine(folder.checkpoints, run_outputs.is_whole, "damaged"):
                self._log(f"{path.stem} is damaged and was set aside as {path.name}")
            folder.start(self.run, self.placement, self.start.arguments, self.logs.name, self.start.command())
            if changed:
                folder.note_changes(changed)
            try:
                folder.check_progress(self.placement.job, STARTS_WITHOUT_A_SLICE)
                self._check_disk()
                folder.note(data_check=self._check_data())
                check_lock()
                return self._end(self._train())
            except Locked:
                raise
            except NodeLost as lost:
                folder.end(PREEMPTED, str(lost))
                return self._wait_for_slurm(lost)
            except Stalled as stalled:
                return self._end(Failure("", str(stalled), kind=STALL))
            except Stopped as stop:
                self._make_room()
                self._beat(at_once=True)
                lost = "" if stop.before_time_is_up else down_nodes()
                if node_failed(self.logs) and not lost and not stop.before_time_is_up:  # so that srun ends this one
                    return self._end(first_failure(self.logs))
                # At once, for SLURM kills this process a few seconds after the signal.
                folder.end(PREEMPTED, f"lost contact with {lost}" if lost else f"stopped by {stop}")
                if stop.before_time_is_up or not (lost or (lost := self._lost_nodes())):
                    raise
                folder.end(PREEMPTED, f"lost contact with {lost}")
                ask_job("requeue")
                return EXIT_REQUEUE
            except TooManyUnreadable as error:
                if (node := self.unreadable.only_node()) is not None:
                    host = self._host(node)
                    return self._end(Failure(f"ranks on {host}", str(error), kind=NODE, host=host))
                folder.end(FAILED, str(error))
                raise
            except Exception as error:
                folder.end(FAILED, str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
                raise

    def _train(self) -> Failure | None:
        """Trains to the end, and returns what went wrong."""
        run, log, added = self.run, self.logs / "rank_0.log", AddedText()

        def each_second():
            self._beat()
            self.unreadable.check()
            if self.progress.has_stalled(run.settings.stall_minutes):
                self.heartbeat.beat(Heartbeat.STALLED)
                dump_stacks(self.logs, self.start.ranks)
                time.sleep(2 * Heartbeat.PERIOD)
                raise Stalled(f"no step for {run.settings.stall_minutes:g} minutes")
            new = added.read(log)
            if not rank_failed(self.logs):  # the first error is reported first
                sys.stdout.buffer.write(new)
                sys.stdout.buffer.flush()
                if self.folder.note_epoch(run_outputs.newest(self.folder.checkpoints)):
                    self.folder.prune(run)
                    self._beat(at_once=True)

        if self.placement.port_is_taken():
            port = f"port {self.placement.master_port} of {this_host()}"
            return Failure("", f"{port} is taken: set MASTER_PORT to another", kind=HARDWARE)
        try:
            code = self._run_ranks(each_second)
        except OthersFailed:
            code = 1
        except OSError as error:
            self._make_room()
            return Failure("superclip run", f"{type(error).__name__}: {error}")
        if code:
            return first_failure(self.logs)
        self._beat(at_once=True)
        each_second()
        from ..checkpoints.checkpoint import holds_numbers  # imports torch

        last = self.folder.checkpoints / f"epoch_{run.num_slices}.pt"
        if run_outputs.newest(self.folder.checkpoints) < run.num_slices:
            return Failure("the training", f"it ended without checkpoints/{last.name}")
        if not holds_numbers(last):
            return Failure("", f"the weights are not finite after the last step, {run.steps}", kind=LOSS)
        return None

    def _run_ranks(self, each_second: Callable[[], None]) -> int:
        """Runs this node's ranks to their end and returns the launcher's exit code; 0 is success.

        If shards are staged, those of the first slice are copied before. Raises NodeLost if another node is silent,
        OthersFailed if another one's ranks have failed.
        """
        dumped = False

        def tick():
            nonlocal dumped
            self.heartbeat.beat()
            if self.heartbeat.says(Heartbeat.STALLED) and not dumped:
                dump_stacks(self.logs, self.start.ranks)
                dumped = True
            if self.heartbeat.says(Heartbeat.FAILED):
                raise OthersFailed
            each_second()

        self.logs.mkdir(parents=True, exist_ok=True)
        self.start.save()
        try:
            with self.staging or contextlib.nullcontext():
                while self.staging and not self.staging.is_ready():
                    tick()
                    time.sleep(0.5)
                code = run_to_end(self.start.command(), self.logs / f"node_{self.placement.node}.log", tick)
            if code:
                self._make_room()
                write_node_failure(self.logs, self.placement.node, code)
                self._hear_others()
            return code
        except OthersFailed:
            self._hear_others()
            raise

    def _hear_others(self) -> None:
        """Writes that this node's ranks have failed until the others are heard; raises NodeLost if one is silent."""
        if lost := self._lost_nodes():
            for node in range(self.placement.num_nodes):  # whose failures follow from the loss
                (self.logs / f"node_{node}.error.json").unlink(missing_ok=True)
            raise NodeLost(f"lost contact with {lost}")

    def _lost_nodes(self) -> str:
        """Returns the names of the nodes whose heartbeats have stopped, "" if there is none."""
        return ", ".join(map(self._host, self.heartbeat.lost_nodes(Heartbeat.FAILED)))

    def _host(self, node: int) -> str:
        names = hosts()
        return names[node] if len(names) == self.placement.num_nodes else f"node {node}"

    def _wait_for_slurm(self, lost: NodeLost) -> int:
        """Waits until SLURM ends the job, which it then requeues without the lost node.

        Returns the code that has the job script do so, if SLURM does not: if `superclip run` alone was lost, srun ends
        the others.
        """
        print(f"superclip run: {lost}; waiting for SLURM to requeue the job", file=sys.stderr, flush=True)
        ask_job("requeue")
        with contextlib.suppress(Stopped):
            time.sleep(SLURM_NOTICES)
        return EXIT_REQUEUE

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
                self._log(f"{path.stem} holds weights that are not finite and was set aside as {path.name}")
        why = f" (the disk of {folder.path} is full)" if self.disk_was_full else ""
        if failure.kind in (HARDWARE, STALL, NODE) and not self.disk_was_full:
            number = folder.failures_without_a_slice()
            if number < STARTS_WITHOUT_A_SLICE:
                here = number < 2 and failure.kind != NODE  # what fails twice needs another node
                ask_job("restart" if here else "requeue", "" if here else failure.host)
                print("superclip run: starts again from the last checkpoint", file=sys.stderr, flush=True)
                folder.end(PREEMPTED, failure.text, again=True)
                return EXIT_REQUEUE
            why = f"; {number} starts in a row failed before a slice was trained"
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
            epoch = self.folder.state().get("epoch", 0)
            self.folder.beat(unreadable=self.unreadable.look(), **self.progress.values(epoch))

    def _make_room(self) -> None:
        """Removes the checkpoint that was being written, which may fill the disk, for the records of the failure."""
        self.disk_was_full |= shutil.disk_usage(self.folder.path).free < FULL
        run_outputs.quarantine(self.folder.checkpoints, run_outputs.is_complete, None)

    def _changes(self) -> list[str]:
        """Returns the differences of this start from what the run began with; InputError if they are not accepted."""
        if not run_outputs.newest(self.folder.checkpoints):  # nothing was trained yet
            return []
        now = beginning(vars(check_command(self.run.openclip_arguments())), self.run.world_size)
        if not self.accept_changes:
            check_beginning(self.folder.path, now, "--accept-changes")
        return changes_since_beginning(self.folder.path, now)

    def _check_disk(self) -> None:
        """Raises InputError, with the free and the needed bytes, if the disk is too small; quotas are not read."""
        folder, there = self.folder, run_outputs.checkpoints(self.folder.checkpoints)
        if max(there, default=0) >= self.run.num_slices:
            return
        num_more = max(1, self.run.max_checkpoints - len(there))
        size = max((path.stat().st_size for path in there.values()), default=0)
        size = size or count_model(self.run)["checkpoint_bytes"]
        free, needed = shutil.disk_usage(folder.path).free, num_more * size
        if free < needed:
            raise InputError(
                f"--out: the disk of {folder.path} has {bytes_text(free)} free, and {num_more} more checkpoints of "
                f"{bytes_text(size)} are kept at a time: make room for {bytes_text(needed)}, or give --out another "
                "folder"
            )

    def _check_data(self) -> dict:
        checked = self.run.check_data()
        self.unreadable.check_missing(checked)
        for warning in [*self.run.warnings, *checked["warnings"]]:
            print(f"superclip run: {warning}", flush=True)
        return checked

    def _log(self, text: str) -> None:
        """Prints a line, and adds it to OpenCLIP's log."""
        line = f"superclip run: {text}"
        print(line, flush=True)
        with open(self.folder.path / "out.log", "a") as log:
            log.write(f"{datetime.now():%Y-%m-%d,%H:%M:%S} | INFO | {line}\n")
