"""One start of a run on one of its nodes: from the checks to the state that it leaves."""

import contextlib
import json
import math
import shutil
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

from ..checkpoints import run_outputs as checkpoint_files
from ..checkpoints.resume import beginning, changes_since_beginning, check_beginning
from ..checkpoints.run_outputs import checkpoints
from ..data.shards import expand
from ..errors import InputError
from ..openclip import with_model_defaults
from ..openclip.train import check_command
from ..pages import bytes_text
from .cost import checkpoint_bytes
from .folder import FAILED, FINISHED, PERIOD, PREEMPTED, RunFolder, prune, what_runs, which_start
from .lock import LockLost
from .machines import Placement, ask_to_exclude, hosts
from .plan import Plan, engine_flags
from .process import (
    HARDWARE,
    LOSS,
    QUEUE_AGAIN,
    STALL,
    Failure,
    Heartbeat,
    Stopped,
    StoppedRanks,
    describe,
    first_failure,
    node_failed,
    rank_failed,
    run_to_end,
    this_host,
    write_node_failure,
)
from .rank import STEPS, read_steps
from .run import STARTS_WITHOUT_A_SLICE, USUAL, RunSettings
from .stage import Staging

FIRST_STEP = 30  # minutes until the first, at least


WINDOW = 600  # seconds over which the speed is taken: checkpoints are in it


class Progress:
    """Follows the steps that rank 0 tells of."""

    def __init__(self, plan: Plan, logs: Path):
        self.plan, self.steps_file = plan, logs / STEPS
        self.seen = deque()  # times, and the whole steps then
        self.last_step = time.monotonic()  # when the last one was seen, or this start of the run began

    def look(self) -> None:
        """Reads how many steps there are by now."""
        steps, now = read_steps(self.steps_file), time.monotonic()
        if steps is None or (self.seen and steps <= self.seen[-1][1]):
            return
        self.last_step = now
        self.seen.append((now, steps))
        while now - self.seen[0][0] > WINDOW and len(self.seen) > 2:
            self.seen.popleft()

    def stands_still(self, minutes: float) -> bool:
        """Returns whether there was no step for so long; 0 for never. What comes before the first has half an hour."""
        allowed = minutes if self.seen else max(minutes, FIRST_STEP)
        return minutes > 0 and time.monotonic() - self.last_step > 60 * allowed

    def values(self, epoch: int) -> dict:
        """Returns what state.json tells of it, `epoch` slices being saved."""
        step = max(self.seen[-1][1] if self.seen else 0, epoch * self.plan.slice_steps)
        speed = self._steps_per_second()
        left = self.plan.steps - step
        end = datetime.now().astimezone() + timedelta(seconds=left / speed) if speed else None
        return {
            "slices": self.plan.num_slices,
            "step": step,
            "steps": self.plan.steps,
            "samples_per_second": round(speed * self.plan.global_batch_size, 3) if speed else None,
            "expected_end": end.isoformat(timespec="seconds") if end else None,
        }

    def _steps_per_second(self) -> float | None:
        if len(self.seen) < 2:
            return None
        (began, before), (ended, after) = self.seen[0], self.seen[-1]
        return (after - before) / (ended - began)


class LogFollower:
    """Shows on standard output what is added to a file."""

    def __init__(self, path: Path):
        self.path, self.shown = path, 0

    def read(self) -> bytes:
        """Returns what was added since it was last called."""
        if not self.path.exists():
            return b""
        with open(self.path, "rb") as file:
            file.seek(self.shown)
            added = file.read()
        self.shown += len(added)
        return added

    @staticmethod
    def show(added: bytes) -> None:
        sys.stdout.buffer.write(added)
        sys.stdout.buffer.flush()


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


SHOWN = 3  # shards


class UnreadableData:
    """Adds up what the ranks of all starts of a run have passed over.

    Args:
        ranks: the folder with a folder for each start.
        start: this start's name.
        limit: the share of a slice's shards, or samples, that may be unreadable.
    """

    def __init__(self, plan: Plan, ranks: Path, start: str, limit: float):
        self.plan, self.ranks, self.start, self.limit = plan, ranks, start, limit
        self.shards: dict[str, str] = {}  # of the whole run: why each cannot be read
        self.of_slice = defaultdict(set)  # of this start
        self.samples = Counter()  # by start and epoch
        self.read: dict[Path, int] = {}  # bytes of each file

    def look(self) -> dict[str, int]:
        """Returns the numbers for state.json."""
        for file in self.ranks.glob("*/unreadable_*.jsonl"):
            for line in self._added(file):
                if "shard" in line:
                    self.shards[line["shard"]] = line["why"]
                    if file.parent.name == self.start:
                        self.of_slice[line["epoch"]].add(line["shard"])
                else:
                    self.samples[file.parent.name, line["epoch"]] += 1
        return {"shards": len(self.shards), "samples": self._num_samples()}

    def check_missing(self, checked: dict) -> None:
        """Raises InputError where the data check has found too many shards that are missing or broken."""
        if checked["bad"] and len(checked["bad"]) > self.limit * checked["shards"]:
            bad = {one["shard"]: one["problem"] for one in checked["bad"]}
            raise InputError(self._refusal(f"{len(bad):,} of {checked['shards']:,} shards", bad))

    @cached_property
    def _shards_of_a_slice(self) -> int:
        return math.ceil(len(expand(self.plan.data)) / self.plan.slices_per_pass)

    def _added(self, file: Path) -> list[dict]:
        """Returns the whole lines that were added since the last look."""
        with open(file, "rb") as opened:
            opened.seek(self.read.get(file, 0))
            text = opened.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.read[file] = self.read.get(file, 0) + len(whole)
        return list(map(json.loads, whole.splitlines()))

    def _num_samples(self) -> int:
        """Returns the samples of the run, those of a slice that was trained twice as they were last."""
        of_epoch = {epoch: number for (_, epoch), number in self.samples.items()}
        return sum(of_epoch.values())

    def check(self) -> None:
        """Raises InputError where a slice that this start trains has too many."""
        num_shards = self._shards_of_a_slice
        for epoch, bad in self.of_slice.items():
            if len(bad) > self.limit * num_shards:
                found = f"{len(bad):,} of the {num_shards:,} shards of slice {epoch + 1}"
                raise InputError(self._refusal(found, {shard: self.shards[shard] for shard in sorted(bad)}))
        for (start, epoch), number in self.samples.items():
            if start == self.start and number > self.limit * self.plan.slice_samples:
                found = f"{number:,} of the {self.plan.slice_samples:,} samples of slice {epoch + 1}"
                raise InputError(self._refusal(found, {}))

    def _refusal(self, found: str, shards: dict[str, str]) -> str:
        named = [f"{shard} ({why})" for shard, why in list(shards.items())[:SHOWN]]
        more = f" and {len(shards) - SHOWN:,} more" if len(shards) > SHOWN else ""
        listed = f": {', '.join(named)}{more}" if named else ""
        return (
            f"{found} cannot be read, more than --unreadable-max {self.limit:g} allows{listed}; superclip plan --check "
            "reads all shards and gives a pattern without the bad ones"
        )


class NodeLost(Exception):
    """The heartbeats of a node have stopped."""


class NodeRanks:
    """So many processes that train with the same arguments of `superclip train`, their logs in one folder."""

    def __init__(
        self, placement: Placement, num_processes: int, logs: Path, arguments: list[str], staging: Staging | None = None
    ):
        self.placement, self.num_processes, self.logs, self.arguments = placement, num_processes, logs, arguments
        self.staging = staging
        self.heartbeat = Heartbeat(logs, placement.node, placement.num_nodes)
        self.stopped = StoppedRanks(logs, placement.node, num_processes)

    def command(self) -> list[str]:
        """Returns the command that starts them."""
        where = []
        if self.placement.num_nodes > 1:
            where = [
                f"--nnodes={self.placement.num_nodes}", f"--node-rank={self.placement.node}",
                f"--master-addr={self.placement.master_addr}", f"--master-port={self.placement.master_port}",
            ]  # fmt: skip
        launcher = [sys.executable, "-m", "openclip_superclip.runs.launcher"]
        return [
            *launcher,
            *where,
            f"--nproc-per-node={self.num_processes}",
            f"--logs={self.logs}",
            "--",
            *self.arguments,
        ]

    def run(self, each_second: Callable[[], None], make_room: Callable[[], None] = lambda: None) -> int:
        """Runs them to their end and returns the launcher's exit code; 0 is success.

        Where shards are staged, those of the first slice are copied before. Where the ranks failed, makes room for what
        tells of it on a disk that may be full; raises NodeLost where another node is silent.
        """

        def tick():
            self.heartbeat.beat()
            self.stopped.look()
            each_second()

        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            with self.staging or contextlib.nullcontext():
                while self.staging and not self.staging.is_ready():
                    tick()
                    time.sleep(0.5)
                code = run_to_end(self.command(), self.logs / f"node_{self.placement.node}.log", tick)
            if code:
                make_room()
                if lost := self.lost_nodes():
                    raise NodeLost(f"lost contact with {lost}")
                write_node_failure(self.logs, self.placement.node, code)
            return code
        finally:
            self.heartbeat.end()

    def lost_nodes(self) -> str:
        """Returns the names of the nodes whose heartbeats have stopped, "" where there is none."""
        return ", ".join(map(self._name, self.heartbeat.lost_nodes()))

    def _name(self, node: int) -> str:
        names = hosts()
        return names[node] if len(names) == self.placement.num_nodes else f"node {node}"


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
                    prune(self.folder.checkpoints, self.plan)
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
        now = beginning(with_model_defaults(vars(check_command(self.plan.command))), self.plan.world_size)
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
