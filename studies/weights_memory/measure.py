"""Peak memory of `superclip import` and `export`: `python docs/weights-memory/measure.py`."""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main(argv: list[str]) -> int:
    """Imports and exports a checkpoint of random weights, each in a process of its own, and
    prints its peak RSS."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="ViT-L-16", help="(default: %(default)s)")
    model = parser.parse_args(argv).model
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "authors.pt")
        # In a process of its own: the peak of a child includes that of the process that starts it.
        writer = multiprocessing.get_context("spawn").Process(
            target=write, args=(model, checkpoint)
        )
        writer.start()
        writer.join()
        size = checkpoint.stat().st_size
        print(f"{model} with its head, random weights: {size / 2**20:,.0f} MiB")
        commands = {
            "import": ["import", checkpoint, "--model", model, "--out", f"{folder}/imported"],
            "export": ["export", f"{folder}/imported", "--out", f"{folder}/exported"],
            "export --format torch": [
                "export",
                f"{folder}/imported",
                "--out",
                f"{folder}/torch",
                "--format",
                "torch",
            ],
            "export --format hf": [
                "export",
                f"{folder}/imported",
                "--out",
                f"{folder}/hf",
                "--format",
                "hf",
            ],
        }
        for name, command in commands.items():
            peak = _run_and_measure(
                [sys.executable, "-m", "openclip_superclip", *map(str, command)]
            )
            print(
                f"{name}: peak RSS {peak / 2**20:,.0f} MiB, {peak / size:.2f} times the checkpoint",
                flush=True,
            )
    return 0


def write(model_name: str, file: Path) -> None:
    """Writes what the authors' trainer would have saved of `model_name`, without an optimizer."""
    import open_clip
    import torch

    with torch.device("meta"):
        model = open_clip.create_model(
            model_name, load_weights=False, device="meta", force_custom_text=True
        )
    width, vocab_size = model.visual.transformer.width, model.vocab_size
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()} | {
        "text_decoder.ln_mlp.weight": (width,),
        "text_decoder.ln_mlp.bias": (width,),
        "text_decoder.text_projection.weight": (vocab_size, width),
        "text_decoder.text_projection.bias": (vocab_size,),
        "cap_fq": (1, vocab_size),
    }
    weights = {f"module.{name}": torch.rand(shape) for name, shape in shapes.items()}
    weights["module.num_samples"] = torch.ones(1, 1)  # cap_fq is at most this
    torch.save({"epoch": 1, "state_dict": weights}, file)


def _run_and_measure(command: list[str]) -> int:
    """Runs a command to its end and returns its peak resident memory in bytes; RuntimeError if
    it fails."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
