"""superclip evaluate: CLIP_benchmark's zero-shot, retrieval and linear-probe scores, models side
by side."""

import argparse
import math
import shlex
import sys
from pathlib import Path

from ..environment import check_device, require
from ..errors import InputError, Parser, at_least, no_effect, printable


def main(argv: list[str]) -> int:
    """Evaluates, prints the table and missing results, and returns the exit code: 1 if something
    failed."""
    options = _parse(argv)
    require("superclip evaluate", "eval", "clip_benchmark", "requests")
    import torch

    from ..lab.evaluation.datasets import Settings, select_datasets
    from ..lab.evaluation.evaluate import evaluate_all
    from ..lab.evaluation.models import checkpoints_of, find_model

    device = torch.device(check_device(options.device)).type
    settings = Settings(
        device,
        options.precision or ("amp" if device == "cuda" else "fp32"),
        options.batch_size,
        options.workers,
        options.probe_lr,
        options.probe_epochs,
        options.dense_lr,
        options.dense_epochs,
    )
    chosen, absent = select_datasets(options.data, options.suite.split(","), options.datasets)
    given = [
        one
        for run in options.checkpoints
        for one in (checkpoints_of(run) if options.every else [run])
    ]
    models, unreadable = [], []
    for one in dict.fromkeys(given):
        try:
            models.append(find_model(one, options.model))
        except InputError as error:
            if not options.every:
                raise
            unreadable.append(error)
    if models and all(model.openclip[0] for model in models):
        no_effect(options, "exported folders and released models", "model")
    results = evaluate_all(
        models, options.out, chosen, settings, shlex.join(["superclip", "evaluate", *argv])
    )
    print(results.summary(absent))
    failures = [*unreadable, *results.failures]
    for failure in failures:
        print(f"error: {printable(str(failure))}", file=sys.stderr)
    return 1 if failures else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="superclip evaluate",
        description="Evaluates models with LAION's CLIP_benchmark on local data sets: "
        "WebDataset folders in its "
        "layout, or roots of its built-in data sets. It only downloads the weights of "
        "MODEL:TAG and hf-hub:REPO.",
        epilog="example: superclip evaluate epoch_5.pt ViT-B-16:openai --data DIR",
    )
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="a checkpoint of a run, with or without --superclip; a file of weights; an "
        "exported folder; hf-hub:REPO; MODEL:TAG of OpenCLIP's released models",
    )
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of data sets: DIR/imagenet1k, …",
    )
    add(
        "--suite",
        default="zeroshot,retrieval",
        metavar="SUITE,…",
        help="zeroshot: CLIP_benchmark's 38 data sets for classification; retrieval: COCO and "
        "Flickr30k; probe: a "
        "linear probe on ImageNet-1k; dense: segmentation and depth from the patch tokens, on "
        "PASCAL VOC, ADE20k and NYUv2 (default: %(default)s)",
    )
    add(
        "--datasets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="data sets of DIR, instead of those of the suites",
    )
    about = (
        "for files: an OpenCLIP model's name or a JSON file (default: the one in the run's "
        "params.txt)"
    )
    add("--model", "--architecture", help=about)
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the results (default: RUN/evaluation for RUN/checkpoints/epoch_N.pt, "
        "else evaluation); existing results are reused",
    )
    add("--device", help="device of the models (default: cuda if there is a GPU)")
    add(
        "--precision",
        choices=("amp", "fp32"),
        help="(default: amp on a GPU, like CLIP_benchmark; fp32 on a CPU)",
    )
    add("--batch-size", type=int, default=64, help="images per batch (default: %(default)s)")
    add("--workers", type=int, default=4, help="processes that read data (default: %(default)s)")
    add(
        "--every",
        action="store_true",
        help="CHECKPOINT is the folder of a run; evaluate all its checkpoints",
    )
    probe = parser.add_argument_group(
        "linear probe", "as in CLIP_benchmark: AdamW on frozen, normalised features"
    )
    probe.add_argument("--probe-lr", type=float, default=0.1, help="(default: %(default)s)")
    probe.add_argument("--probe-epochs", type=int, default=10, help="(default: %(default)s)")
    dense = parser.add_argument_group(
        "segmentation and depth", "a linear layer on frozen patch tokens, with AdamW"
    )
    dense.add_argument("--dense-lr", type=float, default=1e-3, help="(default: %(default)s)")
    dense.add_argument("--dense-epochs", type=int, default=20, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    for name in ("probe_lr", "dense_lr"):
        if not (math.isfinite(value := getattr(options, name)) and value > 0):
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected a number above 0")
    at_least(options, batch_size=1, workers=0, probe_epochs=1, dense_epochs=1)
    return options
