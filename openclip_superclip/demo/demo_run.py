"""One run of the demo: OpenCLIP's training in a process of its own, then the measures of what it learned."""

import json
import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from ..atomic_files import write_json
from ..checkpoints.training_log import read_log
from ..errors import InputError
from ..running.superclip_process import run_superclip
from ..versions import versions
from .scenes import CAPTIONS

METHODS = {"CLIP": [], "SuperCLIP": ["--superclip"]}  # what each adds to the command

PACKAGES = ("python", "openclip-superclip", "open_clip_torch", "torch", "webdataset", "numpy", "pillow")


@dataclass(frozen=True)
class DemoRun:
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
            f"_{self.caption.replace(':', '-')}_seed{self.seed}"
        )


def train_and_measure(
    run: DemoRun, train_data: str, model: str, out: Path, stop: threading.Event, split: str = "test"
) -> dict:
    """Trains and measures a run, and returns its record; one that the same versions finished earlier is read instead.

    The record holds the command, the measures on `split` (percent), the training's CPU seconds and its curve of losses.
    """
    folder = out / "runs" / run.name
    finished, trained = folder / f"{split}.json", folder / "trained.json"
    if _read(finished):
        return _read(finished)
    if not (_read(trained) and checkpoint(run, out).exists()):
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted run's: OpenCLIP would refuse its name
        cpu_seconds = _train(command(run, train_data, model, out), run, folder / "out.log", stop)
        write_json(trained, {"cpu_seconds": cpu_seconds, "versions": versions(*PACKAGES)})
    record = {
        "run": asdict(run),
        "command": " ".join(["superclip", *command(run, train_data, model, out)]),
        "split": split,
        "measures": _measure(checkpoint(run, out), model, split),
        **_read(trained),
        "curve": read_log(folder / "out.log"),
    }
    write_json(finished, record)
    return record


def checkpoint(run: DemoRun, out: Path) -> Path:
    """Returns where a run's weights are."""
    return out / "runs" / run.name / "checkpoints" / "epoch_1.pt"


def command(run: DemoRun, train_data: str, model: str, out: Path) -> list[str]:
    """Returns the arguments of `superclip` that train a run: OpenCLIP's own, and --superclip or not."""
    num_steps = run.num_samples // run.batch_size
    return [
        "train", "--model", model, "--train-data", train_data, "--dataset-type", "webdataset",
        "--train-num-samples", str(run.num_samples), "--batch-size", str(run.batch_size), "--epochs", "1",
        "--lr", f"{run.learning_rate:g}", "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6", "--wd", "0.2",
        "--warmup", str(max(1, num_steps // 10)), "--seed", str(run.seed), "--workers", "0", "--device", "cpu",
        "--precision", "fp32",
        "--log-every-n-steps", str(max(1, num_steps // 50)), "--logs", str(out / "runs"), "--name", run.name,
        *method_flags(run.method, run.caption),
    ]  # fmt: skip


def method_flags(method: str, caption: str) -> list[str]:
    """Returns what a method adds to the command, with short and long captions where `caption` is a mode of both.

    Plain CLIP has no flag that mixes captions: there it is SuperCLIP whose class loss is multiplied by 0.
    """
    if caption in CAPTIONS:
        return METHODS[method]
    weight = [] if method == "SuperCLIP" else ["--superclip-weight", "0"]
    return ["--superclip", *weight, "--superclip-captions", caption, "--superclip-long-caption", "long.txt"]


def load(weights: Path, model: str):
    """Returns (model, preprocess, tokenizer) of a trained run, CLIP or SuperCLIP, for evaluation."""
    import open_clip

    from .. import create_model_and_transforms

    loaded, _, preprocess = create_model_and_transforms(model)
    open_clip.load_checkpoint(loaded, str(weights))
    return loaded.eval(), preprocess, open_clip.get_tokenizer(model)


def _train(arguments: list[str], run: DemoRun, log: Path, stop: threading.Event) -> float:
    """Runs `superclip train` on one thread and returns its CPU seconds.

    Raises InputError, with its last words, where it fails, and where `stop` ends it.
    """
    output_path = log.parent.parent / f"{run.name}.output"
    output_path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=run.num_samples, desc=run.name, unit=" samples") as progress:

        def show() -> bool:
            _show(progress, log)
            return stop.is_set()

        returncode, cpu_seconds = run_superclip(arguments, output_path, one_thread=True, is_to_stop=show)
    if returncode != 0:
        lines = output_path.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        raise InputError(f"the run {run.name} failed with exit code {returncode}: {last} ({output_path} holds it all)")
    output_path.unlink()  # all of it stands in out.log
    return cpu_seconds


def _show(progress: tqdm, log: Path) -> None:
    curve = read_log(log) if log.exists() else []
    if curve:
        progress.update(min(curve[-1]["samples"], progress.total) - progress.n)


def _measure(weights: Path, model: str, split: str) -> dict[str, float]:
    from .measures import measure

    return measure(*load(weights, model), split=split)


def _read(path: Path) -> dict | None:
    """Returns a record, or None where there is none or other versions wrote it."""
    record = json.loads(path.read_text()) if path.exists() else {}
    return record if record.get("versions") == versions(*PACKAGES) else None
