"""One run of a study: its recipe, its folder, its training by `superclip run`, and its measures."""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.best_epoch import validation_scores
from ..checkpoints.resume_record import versions_of_run
from ..checkpoints.trainer_files import checkpoints
from ..checkpoints.weights import read_checkpoint
from ..data.tables import is_table
from ..demo.measures import Measures, OpenedModel, measure
from ..errors import InputError
from ..files import content_digest, json_or_empty, write_json
from ..plans.plan import make_run
from ..plans.recipe import Recipe
from ..plans.run import Run
from ..runs.child_processes import last_line, start_process
from ..runs.folder import RunFolder
from ..runs.slurm import find_placement, processes_here
from ..words.open_checkpoint import open_checkpoint
from .configuration import ConfiguredStudy

# `superclip`, which ends by SIGTERM with its parent
SUPERCLIP = (
    "import sys; from openclip_superclip.environment import end_with_parent; "
    "end_with_parent({signal}, {parent}); from openclip_superclip.__main__ import main; "
    "sys.exit(main(sys.argv[1:]))"
)


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    configured: ConfiguredStudy
    arm: str
    cell: object
    seed: int
    set: dict[str, str]  # fields of the recipe with their values
    recipe: Recipe
    folder: Path

    def described(self, **machines) -> Run:
        """Returns the run as `make_run` makes it."""
        return make_run(
            self.recipe,
            data=self.configured.data,
            device=self.configured.options.device,
            settings=self.configured.options.settings,
            **machines,
        )

    def described_here(self) -> Run:
        """Returns the run on this machine, of which it uses all GPUs."""
        here = processes_here(find_placement(), self.configured.options.device)
        return self.described(gpus_per_node=here)

    @property
    def run_folder(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def state(self) -> dict:
        return self.run_folder.state()

    @property
    def is_finished(self) -> bool:
        return self.run_folder.is_finished

    @property
    def samples_trained(self) -> int:
        """The number of samples that it has been trained on."""
        samples = self.state.get("step", 0) * self.recipe.global_batch_size
        most = self.recipe.samples
        return most if self.is_finished else min(samples, most)

    def train(self, stop: threading.Event) -> None:
        """Trains it from its last checkpoint, unless it is finished.

        Raises InputError if it fails, with its last message, if `stop` ends it, and if it is
        trained elsewhere.
        """
        if self.is_finished:
            return
        self.run_folder.check_is_free(find_placement())
        # OpenCLIP would resume in another order
        if is_table(self.configured.data or self.recipe.shards):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.run_folder.write(self.described_here())
        state_before = self.state
        output = self.folder.with_name(f"{self.folder.name}.output")
        exit_code = run_superclip(
            ["run", str(self.folder), *self.configured.streams()],
            output,
            stop,
            one_thread=self.configured.options.device == "cpu",
        )
        if stop.is_set():
            raise InputError(f"{self.folder.name} was stopped")
        if exit_code != 0:
            error = last_line(output)
            state = self.state
            if state != state_before:  # this start has written it
                error = (state.get("refused") or state).get("error") or error
            raise InputError(f"{self.folder.name} failed: {' '.join(error.split())}; see {output}")
        output.unlink()


def run_superclip(
    arguments: Sequence[str],
    output: Path,
    stop: threading.Event,
    *,
    one_thread: bool = False,
) -> int:
    """Runs `superclip ARGUMENTS` and returns its exit code.

    It runs in a session of its own, which signals of a terminal do not reach, and gets SIGTERM when
    this process ends, or when `stop` is set. Its output goes to the file `output`.
    """
    threads = {"OMP_NUM_THREADS": "1"} if one_thread else {}
    code = SUPERCLIP.format(parent=os.getpid(), signal=signal.SIGTERM.value)
    command = [sys.executable, "-c", code, *arguments]
    process = start_process(command, {**os.environ, **threads}, output)
    try:
        while process.poll() is None and not stop.wait(0.5):
            pass
    finally:
        process.terminate()
    return process.wait()


def measured(run: StudyRun) -> dict:
    """Returns the digest of a trained run's weights, and its measures.

    It is measured now, unless the same versions have measured the same weights.
    """
    weights = _last_checkpoint(run)
    measures = run.configured.study.measures
    record = {
        "run": run.folder.name,
        "checkpoint": content_digest(weights)[:16],
        "versions": versions_of_run(),
    }
    file = run.folder / f"{measures}-test.json"
    earlier = json_or_empty(file)
    is_same = all(earlier.get(name) == record[name] for name in ("checkpoint", "versions"))
    record["measures"] = (earlier.get("measures") if is_same else None) or _measure(run, weights)
    write_json(file, record)
    return record


def _last_checkpoint(run: StudyRun) -> Path:
    """Returns the checkpoint of the last epoch; InputError if it is missing."""
    by_epoch = checkpoints(run.folder / "checkpoints")
    epoch = run.state.get("epoch") or max(by_epoch, default=None)
    if epoch not in by_epoch:
        raise InputError(
            f"{run.folder} is finished but lacks its last checkpoint: remove it, to train the run "
            "again"
        )
    return by_epoch[epoch]


def _measure(run: StudyRun, weights: Path) -> Measures:
    if run.configured.study.is_of_scenes:
        return measure(open_trained(weights, run.recipe.model))
    return validation_scores(run.folder)


def open_trained(weights: Path, model: str) -> OpenedModel:
    """Returns (model in evaluation mode, preprocess, tokenizer) of a checkpoint; `model` is the
    run's --model."""
    opened = open_checkpoint(read_checkpoint(weights), model)
    return opened.model, opened.preprocess(), opened.tokenizer
