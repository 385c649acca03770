"""superclip evaluate: compares the scores of runs and models, measured by CLIP_benchmark, with
each other and with the paper's."""

import argparse
import math
import shlex
from pathlib import Path

from ..environment import check_device
from ..errors import InputError, Parser, at_least, no_effect, printable, to_stderr, to_stdout
from ..extras import require
from ..files import check_results, make_folder, write_bytes, write_json
from .shared_options import add_folder, add_number, from_options

FILES = ("scores.json", "scores.png")
SUITES = "zeroshot,retrieval"


def main(argv: list[str]) -> int:
    """Evaluates with --data, prints the table, writes it to --out, and returns the exit code: 1
    if something failed."""
    options = _parse(argv)
    require("superclip evaluate", "report")
    if options.data is None:
        no_effect(options, "no --data", "suite", "datasets", "model", "device", "precision")
    else:
        require("superclip evaluate --data", "eval")
    from ..evaluation.model_scores import find_scores
    from ..evaluation.score_figure import draw_scores
    from ..evaluation.score_table import ScoreTable

    out = options.out
    check_results(out, FILES, "command")
    arguments = list(dict.fromkeys(options.models))
    command = shlex.join(["superclip", "evaluate", *argv])
    failures = [] if options.data is None else _evaluate(options, arguments, command)
    rows = [find_scores(argument, out) for argument in arguments]
    names = [row.name for row in rows]
    for row, argument in zip(rows, arguments, strict=True):
        if names.count(row.name) > 1:
            row.name = argument
    table = ScoreTable(rows)
    for failure in failures:
        to_stderr(f"error: {printable(failure)}")
    if not any(row.scores for row in rows):
        if failures:
            return 1
        missing = "; ".join(f"{row.name}: {', '.join(row.problems)}" for row in rows[:3])
        raise InputError(f"there are no scores ({missing})")
    make_folder(out)
    write_json(out / FILES[0], table.record(command))
    write_bytes(out / FILES[1], draw_scores(table))
    to_stdout(f"{table.text()}\n\nMore in {out}: {', '.join(FILES)}")
    return 1 if failures else 0


def _evaluate(options: argparse.Namespace, arguments: list[str], command: str) -> list[str]:
    """Evaluates models and writes their results; returns what failed."""
    import torch

    from ..checkpoints.weights import checkpoint_of
    from ..evaluation.evaluate import Evaluation
    from ..evaluation.features import EvaluationSettings
    from ..evaluation.local_datasets import select_datasets
    from ..evaluation.models import find_model

    device = torch.device(check_device(options.device)).type
    precision = options.precision or ("amp" if device == "cuda" else "fp32")
    settings = from_options(EvaluationSettings, options, device=device, precision=precision)
    suites = (options.suite or SUITES).split(",")
    chosen, absent = select_datasets(options.data, suites, options.datasets)
    evaluation = Evaluation(chosen, settings, options.out, command)
    models = []
    for argument in arguments:
        is_run = Path(argument, "checkpoints").is_dir()
        checkpoint = str(checkpoint_of(Path(argument))) if is_run else argument
        models.append(find_model(checkpoint, options.model))
    if not any(model.uses_option for model in models):
        no_effect(options, "exported folders and released models", "model")
    failures = list(evaluation.run(models))
    if evaluation.num_reused:
        to_stderr(f"reused results: {evaluation.num_reused}")
    if absent:
        to_stderr(f"not evaluated: {', '.join(absent)}")
    return failures


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        "evaluate",
        "Compares the scores of runs and models with each other and with the paper's. --data "
        "evaluates them first, with LAION's CLIP_benchmark on local data sets: WebDataset "
        "folders in its layout, or roots of its built-in data sets. It downloads only the weights "
        "of MODEL:TAG and hf-hub:REPO.",
        "logs/clip logs/superclip --data DIR",
    )
    add = parser.option
    add(
        "models",
        "the folder of a run, for its last checkpoint; a checkpoint, with or without --superclip; "
        "a file of weights; an exported folder; hf-hub:REPO; MODEL:TAG of OpenCLIP's released "
        "models",
        nargs="+",
        metavar="RUN|CHECKPOINT",
    )
    add_folder(parser, "--data", "folder of data sets: DIR/imagenet1k, …")
    add(
        "--suite",
        "zeroshot: CLIP_benchmark's 38 data sets for classification; retrieval: COCO and "
        f"Flickr30k; probe: a linear probe on ImageNet-1k (default: {SUITES})",
        metavar="SUITE,…",
    )
    add(
        "--datasets",
        "data sets of DIR, instead of those of the suites",
        nargs="+",
        default=[],
        metavar="NAME",
    )
    add(
        "--model",
        "for files: an OpenCLIP model's name or a JSON file (default: the one in the run's "
        "params.txt)",
        "--architecture",
    )
    add_folder(
        parser,
        "--out",
        "folder of scores.json, scores.png and of the results of models outside a run (default: "
        "%(default)s); those of runs are in RUN/evaluation, and all are reused",
        default=Path("evaluation"),
    )
    add("--device", "device of the models (default: cuda if there is a GPU)")
    add(
        "--precision",
        "(default: amp on a GPU, like CLIP_benchmark; fp32 on a CPU)",
        choices=("amp", "fp32"),
    )
    add_number(parser, "--batch-size", 64, "images per batch")
    add_number(parser, "--workers", 4, "processes that read data")
    add_number(
        parser,
        "--probe-lr",
        0.1,
        "learning rate of the linear probe: AdamW on frozen, normalized features",
    )
    add_number(parser, "--probe-epochs", 10, "passes of the linear probe")
    options = parser.parse_args(argv)
    if not 0 < options.probe_lr < math.inf:
        raise InputError(f"--probe-lr is {options.probe_lr}; expected a number above 0")
    at_least(options, batch_size=1, workers=0, probe_epochs=1)
    return options
