"""superclip evaluate: CLIP_benchmark's zero-shot, retrieval and linear-probe scores, models side
by side."""

import argparse
import math
import shlex

from ..environment import check_device
from ..errors import InputError, Parser, at_least, no_effect, printable, to_stderr, to_stdout
from ..extras import require
from .shared_options import add_folder, add_number, add_switch, from_options


def main(argv: list[str]) -> int:
    """Evaluates, prints the table and missing results, and returns the exit code: 1 if something
    failed."""
    options = _parse(argv)
    require("superclip evaluate", "eval")
    import torch

    from ..evaluation.evaluate import Evaluation
    from ..evaluation.features import EvaluationSettings
    from ..evaluation.local_datasets import select_datasets
    from ..evaluation.models import checkpoints_of, find_model

    device = torch.device(check_device(options.device)).type
    precision = options.precision or ("amp" if device == "cuda" else "fp32")
    settings = from_options(EvaluationSettings, options, device=device, precision=precision)
    chosen, absent = select_datasets(options.data, options.suite.split(","), options.datasets)
    checkpoints = options.checkpoints
    if options.every:
        checkpoints = [file for run in checkpoints for file in checkpoints_of(run)]
    command = shlex.join(["superclip", "evaluate", *argv])
    evaluation = Evaluation(chosen, settings, options.out, command)
    models = []
    for checkpoint in dict.fromkeys(checkpoints):
        try:
            models.append(find_model(checkpoint, options.model))
        except InputError as error:
            if not options.every:
                raise
            evaluation.failures.append(str(error))
    if models and not any(model.uses_option for model in models):
        no_effect(options, "exported folders and released models", "model")
    evaluation.run(models)
    to_stdout(evaluation.summary(absent))
    for failure in evaluation.failures:
        to_stderr(f"error: {printable(failure)}")
    return 1 if evaluation.failures else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        "evaluate",
        "Evaluates models with LAION's CLIP_benchmark on local data sets: WebDataset "
        "folders in its layout, or roots of its built-in data sets. It only downloads the weights "
        "of MODEL:TAG and hf-hub:REPO.",
        "epoch_5.pt ViT-B-16:openai --data DIR",
    )
    add = parser.option
    add(
        "checkpoints",
        "a checkpoint of a run, with or without --superclip; a file of weights; an exported "
        "folder; hf-hub:REPO; MODEL:TAG of OpenCLIP's released models",
        nargs="+",
        metavar="CHECKPOINT",
    )
    add_folder(parser, "--data", "folder of data sets: DIR/imagenet1k, …", required=True)
    add(
        "--suite",
        "zeroshot: CLIP_benchmark's 38 data sets for classification; retrieval: COCO and "
        "Flickr30k; probe: a linear probe on ImageNet-1k; dense: segmentation and depth from the "
        "patch tokens, on PASCAL VOC, ADE20k and NYUv2 (default: %(default)s)",
        default="zeroshot,retrieval",
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
        "folder of the results (default: RUN/evaluation for RUN/checkpoints/epoch_N.pt, else "
        "evaluation); existing results are reused",
    )
    add("--device", "device of the models (default: cuda if there is a GPU)")
    add(
        "--precision",
        "(default: amp on a GPU, like CLIP_benchmark; fp32 on a CPU)",
        choices=("amp", "fp32"),
    )
    add_number(parser, "--batch-size", 64, "images per batch")
    add_number(parser, "--workers", 4, "processes that read data")
    add_switch(parser, "--every", "CHECKPOINT is the folder of a run; evaluate all its checkpoints")
    add_number(
        parser,
        "--probe-lr",
        0.1,
        "learning rate of the linear probe: AdamW on frozen, normalised features",
    )
    add_number(parser, "--probe-epochs", 10, "passes of the linear probe")
    add_number(
        parser,
        "--dense-lr",
        1e-3,
        "learning rate for segmentation and depth: a linear layer on frozen patch tokens, AdamW",
    )
    add_number(parser, "--dense-epochs", 20, "passes for segmentation and depth")
    options = parser.parse_args(argv)
    for name in ("probe_lr", "dense_lr"):
        value = getattr(options, name)
        if not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected a number above 0")
    at_least(options, batch_size=1, workers=0, probe_epochs=1, dense_epochs=1)
    return options
