"""The peak memory of a training step, measured and as `superclip plan` follows it without a GPU."""

import torch

from ..integration.command_check import check_command
from ..planning.training_memory import trace_step
from .time_and_memory import peak_memory
from .training_step import make_step


def step_memory(model: str, batch: int, device: str, precision: str, grad_checkpointing: bool) -> dict[str, int]:
    """Returns bytes that a step with the head adds to weights, optimizer and inputs: `measured` and `followed`."""
    measured = peak_memory(_prepared_step, model, batch, device, precision, grad_checkpointing, device=device)
    kind = torch.device(device).type
    flags = ["--model", model, "--train-data", "x.tar", "--batch-size", str(batch), "--precision", precision]
    flags += ["--device", kind, *(["--grad-checkpointing"] if grad_checkpointing else [])]
    followed = trace_step(check_command(flags), 1, with_head=True)
    inputs = followed["inputs"]
    return {"measured": measured, "followed": followed["peak"] - followed["weights"] - followed["optimizer"] - inputs}


def _prepared_step(model: str, batch: int, device: str, precision: str, grad_checkpointing: bool):
    """Returns a step whose optimizer has made its moments, and whose libraries are loaded."""
    step = make_step(model, True, batch, device, precision, grad_checkpointing)
    step(2)
    return step
