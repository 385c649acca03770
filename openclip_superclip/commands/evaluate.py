"""superclip evaluate: CLIP_benchmark's zero-shot, retrieval and linear-probe numbers, models side by side."""

import argparse
import logging
import math
import shlex
import sys
from pathlib import Path

from ..environment import check_device, require
from ..errors import InputError
from ..rules import at_least

ALPHAS = "0,0.25,0.5,0.75,1"


def main(argv: list[str]) -> int:
    """Evaluates, prints the table and missing results, and returns the exit code: 1 if something failed."""
    argv = argv[1:] if argv[:1] == ["--"] else argv  # torchrun needs it, and passes it on
    options = _parse(argv)
    require("superclip evaluate", "eval", "clip_benchmark", "requests")
    return _evaluate(options, shlex.join(["superclip", "evaluate", *argv]))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip evaluate",
        description="Measures models with LAION's CLIP_benchmark on local data sets: WebDataset folders in its "
        "layout, or roots of data sets that it has built in. Nothing is downloaded but weights of MODEL:TAG.",
        epilog="example: superclip evaluate epoch_5.pt ViT-B-16:openai --data DIR",
    )
    parser.add_argument(
        "checkpoints", nargs="+", metavar="CHECKPOINT",
        help="of a training run, with or without --superclip; a file of weights; an exported folder; MODEL:TAG of "
        "OpenCLIP's released models",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of data sets: DIR/imagenet1k, …"
    )
    parser.add_argument(
        "--suite", default="zeroshot,retrieval", metavar="SUITE,…",
        help="zeroshot: CLIP_benchmark's 38 data sets for classification; datacomp: those of DataComp's that it "
        "has; retrieval: COCO and Flickr30k; compositional: SugarCrepe and Winoground; dense: "
        "segmentation and depth from the patch tokens, on PASCAL VOC, ADE20k and NYUv2; on ImageNet-1k probe: a linear "
        "probe, fewshot: a logistic regression on 1 to 16 images per class, knn: the vote of 20 neighbours (default: "
        "%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--datasets", nargs="+", default=[], metavar="NAME",
        help="these data sets of DIR, in a list or not, instead of all that the suites list",
    )  # fmt: skip
    parser.add_argument(
        "--model",
        "--architecture",
        help="for files: an OpenCLIP model's name or a JSON file (default: the one in the run's params.txt)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="folder of the results (default: RUN/evaluation for RUN/checkpoints/epoch_N.pt, else evaluation); results "
        "that are there already are not computed again",
    )  # fmt: skip
    parser.add_argument("--device", help="(default: cuda if there is a GPU)")
    parser.add_argument(
        "--precision", choices=("amp", "fp32"), help="(default: amp on a GPU, as CLIP_benchmark; fp32 on a CPU)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes that read data (default: %(default)s)")
    parser.add_argument(
        "--every", action="store_true", help="CHECKPOINT is the folder of a run; evaluate all its checkpoints"
    )
    parser.add_argument(
        "--wise-ft", metavar="RELEASED",
        help="measure (1 - α) · RELEASED + α · CHECKPOINT for every α; RELEASED is a file, a folder or MODEL:TAG",
    )  # fmt: skip
    parser.add_argument("--alphas", metavar="α,…", help=f"for --wise-ft (default: {ALPHAS})")
    probe = parser.add_argument_group("linear probe", "CLIP_benchmark's: AdamW on frozen, normalised features")
    probe.add_argument("--probe-lr", type=float, default=0.1, help="(default: %(default)s)")
    probe.add_argument("--probe-epochs", type=int, default=10, help="(default: %(default)s)")
    probe.add_argument(
        "--probe-val-split", metavar="SPLIT", help="tune the weight decay on this split (default: no weight decay)"
    )
    dense = parser.add_argument_group("segmentation and depth", "one linear map of the patch tokens, by AdamW")
    dense.add_argument("--dense-lr", type=float, default=1e-3, help="(default: %(default)s)")
    dense.add_argument("--dense-epochs", type=int, default=20, help="(default: %(default)s)")
    dense.add_argument("--finetune", action="store_true", help="fine-tune the vision tower, as the paper does")
    options = parser.parse_args(argv)
    options.alphas = _alphas(options)
    for name in ("probe_lr", "dense_lr"):
        if not (math.isfinite(value := getattr(options, name)) and value > 0):
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected a number above 0")
    if options.finetune and "dense" not in options.suite.split(","):
        raise InputError(f"--finetune is for --suite dense; given is --suite {options.suite}")
    at_least(options, batch_size=1, workers=0, probe_epochs=1, dense_epochs=1)
    return options


def _alphas(options: argparse.Namespace) -> list[float]:
    """Returns the α values of the sweep; InputError for flags that cannot be combined."""
    if options.wise_ft is None:
        if options.alphas is not None:
            raise InputError("--alphas is for --wise-ft RELEASED, which is not given")
        return []
    if options.every or len(options.checkpoints) > 1:
        given = "--every" if options.every else f"{len(options.checkpoints)} checkpoints"
        raise InputError(f"--wise-ft takes the one CHECKPOINT that was tuned from RELEASED; given are {given}")
    try:
        alphas = sorted(set(map(float, (options.alphas or ALPHAS).split(","))))
    except ValueError:
        alphas = []
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise InputError(f"--alphas is {options.alphas}; expected numbers from 0 to 1, such as 0,0.5,1")
    return alphas


def _evaluate(options: argparse.Namespace, command: str) -> int:
    import torch

    from ..evaluation.datasets import select_datasets
    from ..evaluation.evaluate import evaluate_all, result_folders, write_tables
    from ..evaluation.features import EvaluationRanks
    from ..evaluation.models import checkpoints_of, find_models, interpolated_models
    from ..evaluation.tasks import Settings

    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that the shape-only model has no weights
    ranks = EvaluationRanks()  # first, because each rank has its GPU
    device = torch.device(check_device(options.device)).type
    precision = options.precision or ("amp" if device == "cuda" else "fp32")
    settings = Settings(
        device, precision, options.batch_size, options.workers, options.probe_lr, options.probe_epochs,
        options.probe_val_split, options.dense_lr, options.dense_epochs, options.finetune,
    )  # fmt: skip
    selection = select_datasets(options.data, options.suite.split(","), options.datasets)
    if options.wise_ft is not None:
        models = interpolated_models(options.checkpoints[0], options.wise_ft, options.alphas, options.model)
    else:
        given = [one for run in options.checkpoints for one in (checkpoints_of(run) if options.every else [run])]
        models = find_models(given, options.model)
    folders = result_folders(models, options.out, sweep=options.wise_ft is not None)
    results = evaluate_all(models, folders, selection.chosen, settings, command, ranks)
    ranks.end()
    if not ranks.is_first:
        return 0
    write_tables(folders)
    print(results.summary(selection, folders))
    for failure in results.failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if results.failures else 0
