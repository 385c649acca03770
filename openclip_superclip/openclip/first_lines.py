"""What a training with --superclip prints before its first step, and what only its log file
contains."""

import logging
from pathlib import Path

from .parsed_options import Training


def log_first_lines(training: Training) -> None:
    """Logs model, starting weights, data, steps and the place of the logs; the head logs its own
    line."""
    from ..checkpoints.starting_weights import start_of_towers

    options = training.options
    start = options.resume or start_of_towers(
        options.model,
        options.pretrained,
        options.cache_dir,
        pretrained_image=options.pretrained_image,
    )
    _keep_dumps_off_the_terminal()
    lines = [
        f"model {options.model} in {options.precision} on {options.world_size} rank(s)",
        f"the towers start from {start}",
        f"data {options.train_data or options.dataset_type}, {_steps(training)}",
    ]
    if training.has_logs:
        lines.append(f"log and checkpoints in {Path(options.logs, options.name)}")
    for line in lines:
        logging.info(f"SuperCLIP: {line}")


def _steps(training: Training) -> str:
    options = training.options
    batch = options.batch_size * options.world_size * options.accum_freq
    steps = f"{training.num_steps:,} steps" if training.num_steps else "steps not counted"
    return f"{options.epochs} epoch(s) in batches of {batch:,} samples: {steps}"


def _keep_dumps_off_the_terminal() -> None:
    """Lets only the log file have OpenCLIP's print of all modules and all parameters, if there
    is a log file."""
    handlers = logging.root.handlers
    others = [handler for handler in handlers if not isinstance(handler, logging.FileHandler)]
    if len(others) < len(handlers):
        for handler in others:
            handler.addFilter(_is_no_dump)


def _is_no_dump(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    is_dump = message in ("Model:", "Params:") or message.startswith("  ") or "\n" in message
    return not (is_dump and record.levelno == logging.INFO and record.funcName == "main")
