"""One run of the demo: OpenCLIP's training in a process of its own, then the measures of what it learned."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from .scenes import whole_file

METHODS = {"CLIP": [], "SuperCLIP": ["--superclip"]}  # what each adds to the command


@dataclass(frozen=True)
class Run:
    """What a run trains: everything that tells one from another."""

    method: str
    num_samples: int
    batch_size: int
    learning_rate: float
    caption: str
    seed: int

    @property
    def name(self) -> str:
        return (
            f"{self.method.lower()}_n{self.num_samples}_b{self.batch_size}_lr{self.learning_rate:g}"
            f"_{self.caption}_seed{self.seed}"
        )


def train_and_measure(run: Run, train_data: str, model: str, out: Path, split: str = "test") -> dict:
    """Trains and measures a run, and returns its record; one that was finished earlier is read from its folder.

    The record holds the command, the measures on `split` (percent), the curve of losses and samples/s.
    """
    folder = out / "runs" / run.name
    finished = folder / f"{split}.json"
    if finished.exists():
        return json.loads(finished.read_text())
    checkpoint = folder / "checkpoints" / "epoch_1.pt"
    if not checkpoint.exists():
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted run's: OpenCLIP would refuse its name
        _train(command(run, train_data, model, out), run, folder / "out.log")
    curve = read_log(folder / "out.log")
    record = {
        "run": asdict(run),
        "command": " ".join(["superclip", *command(run, train_data, model, out)]),
        "split": split,
        "measures": _measure(checkpoint, model, split),
        "samples_per_second": statistics.median(point["samples_per_second"] for point in curve),
        "curve": curve,
    }
    with whole_file(finished) as file:
        file.write(json.dumps(record, indent=1).encode())
    return record


def command(run: Run, train_data: str, model: str, out: Path) -> list[str]:
    """Returns the arguments of `superclip` that train a run: OpenCLIP's own, and --superclip or not."""
    num_steps = run.num_samples // run.batch_size
    return [
        "train", "--model", model, "--train-data", train_data, "--dataset-type", "webdataset",
        "--train-num-samples", str(run.num_samples), "--batch-size", str(run.batch_size), "--epochs", "1",
        "--lr", f"{run.learning_rate:g}", "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6", "--wd", "0.2",
        "--warmup", str(max(1, num_steps // 10)), "--seed", str(run.seed), "--workers", "0", "--device", "cpu",
        "--precision", "fp32",
        "--log-every-n-steps", str(max(1, num_steps // 50)), "--logs", str(out / "runs"), "--name", run.name,
        *METHODS[run.method],
    ]  # fmt: skip


def load(checkpoint: Path, model: str):
    """Returns (model, preprocess, tokenizer) of a trained run, CLIP or SuperCLIP, for evaluation."""
    import open_clip

    from .. import create_model_and_transforms

    loaded, _, preprocess = create_model_and_transforms(model)
    open_clip.load_checkpoint(loaded, str(checkpoint))
    return loaded.eval(), preprocess, open_clip.get_tokenizer(model)


def read_log(log: Path) -> list[dict]:
    """Returns the points of a run's curve from OpenCLIP's log: samples seen, samples/s and every loss."""
    points = []
    for line in log.read_text().splitlines():
        step = re.search(r"Train Epoch: \d+ \[\s*(\d+)/.*?, ([\d.e+]+)/s,", line)
        if step:
            losses = {name.lower(): float(value) for name, value in re.findall(r"(\w*[Ll]oss): ([\d.e+-]+) \(", line)}
            points.append({"samples": int(step[1]), "samples_per_second": float(step[2]), **losses})
    return points


def _train(arguments: list[str], run: Run, log: Path) -> None:
    """Runs `superclip train` on one thread; RuntimeError, with the last lines of its output, where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log.parent.parent.mkdir(parents=True, exist_ok=True)
    output_path = log.parent.parent / f"{run.name}.output"
    with open(output_path, "w") as output, tqdm(total=run.num_samples, desc=run.name, unit=" samples") as progress:
        process = subprocess.Popen(
            [sys.executable, "-m", "openclip_superclip", *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    _show(progress, log)
            _show(progress, log)
        finally:
            process.kill()
    if process.returncode != 0:
        last = "\n".join(output_path.read_text().splitlines()[-15:])
        raise RuntimeError(f"the run {run.name} failed with exit code {process.returncode}; its last words:\n{last}")
    output_path.unlink()  # all of it stands in out.log


def _show(progress: tqdm, log: Path) -> None:
    curve = read_log(log) if log.exists() else []
    if curve:
        progress.update(min(curve[-1]["samples"], progress.total) - progress.n)


def _measure(checkpoint: Path, model: str, split: str) -> dict[str, float]:
    from .measures import measure

    return measure(*load(checkpoint, model), split=split)
