"""superclip evaluate: CLIP_benchmark's zero-shot, retrieval and linear-probe numbers, models side by side."""

import argparse
import logging
import math
import shlex
import sys
from pathlib import Path

from ..environment import require
from ..errors import InputError
from ..rules import at_least

ALPHAS = (0, 0.25, 0.5, 0.75, 1)


def main(argv: list[str]) -> int:
    """Evaluates, prints the table and what is missing from it, and returns the exit code: 1 where something failed."""
    argv = argv[1:] if argv[:1] == ["--"] else argv  # which torchrun needs, and passes on
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
        "probe, fewshot: a logistic regression on 1 to 16 pictures a class, knn: the vote of 20 neighbours (default: "
        "%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--datasets", nargs="+", default=[], metavar="NAME",
        help="these data sets of DIR, in a list or not, instead of all that the suites list",
    )  # fmt: skip
    parser.add_argument(
        "--model", help="for files: an OpenCLIP model's name or a JSON file (default: what the run's params.txt says)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="where the results go (default: RUN/evaluation for RUN/checkpoints/epoch_N.pt, else evaluation); what "
        "is there already is not computed again",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cuda", "cpu"), help="(default: cuda where there is one)")
    parser.add_argument(
        "--precision", choices=("amp", "fp32"), help="(default: amp on a GPU, as CLIP_benchmark; fp32 on a CPU)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes that read data (default: %(default)s)")
    parser.add_argument(
        "--every", action="store_true", help="CHECKPOINT is the folder of a run, and all its checkpoints are meant"
    )
    parser.add_argument(
        "--wise-ft", metavar="RELEASED",
        help="measure (1 - α) · RELEASED + α · CHECKPOINT for every α; RELEASED is a file, a folder or MODEL:TAG. "
        "Draws wise_ft.png",
    )  # fmt: skip
    parser.add_argument("--alphas", metavar="α,…", help=f"for --wise-ft (default: {','.join(map(str, ALPHAS))})")
    probe = parser.add_argument_group("linear probe", "CLIP_benchmark's: AdamW on frozen, normalised features")
    probe.add_argument("--probe-lr", type=float, default=0.1, help="(default: %(default)s)")
    probe.add_argument("--probe-epochs", type=int, default=10, help="(default: %(default)s)")
    probe.add_argument(
        "--probe-val-split", metavar="SPLIT", help="choose the weight decay on this split (default: no weight decay)"
    )
    dense = parser.add_argument_group("segmentation and depth", "one linear map of the patch tokens, by AdamW")
    dense.add_argument("--dense-lr", type=float, default=1e-3, help="(default: %(default)s)")
    dense.add_argument("--dense-epochs", type=int, default=20, help="(default: %(default)s)")
    dense.add_argument("--finetune", action="store_true", help="tune the vision tower with it, as the paper does")
    options = parser.parse_args(argv)
    options.alphas = _alphas(options)
    for name in ("probe_lr", "dense_lr"):
        if not (math.isfinite(value := getattr(options, name)) and value > 0):
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected a number above 0")
    if "dense" in (suites := options.suite.split(",")):
        require("--suite dense", "eval", "clip_benchmark", "requests")
    elif options.finetune:
        raise InputError(f"--finetune is for --suite dense; given is --suite {','.join(suites)}")
    at_least(options, batch_size=1, workers=0, probe_epochs=1, dense_epochs=1)
    return options


def _alphas(options: argparse.Namespace) -> list[float]:
    """Returns the sweep's; InputError for flags that do not go together."""
    if options.wise_ft is None:
        if options.alphas is not None:
            raise InputError("--alphas is for --wise-ft RELEASED, which is not given")
        return []
    if options.every or len(options.checkpoints) > 1:
        given = "--every" if options.every else f"{len(options.checkpoints)} checkpoints"
        raise InputError(f"--wise-ft takes the one CHECKPOINT that was tuned from RELEASED; given are {given}")
    try:
        alphas = sorted(set(map(float, options.alphas.split(",")))) if options.alphas else list(ALPHAS)
    except ValueError:
        alphas = []
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise InputError(f"--alphas is {options.alphas}; expected numbers from 0 to 1, such as 0,0.5,1")
    require("--wise-ft", "report", "matplotlib")
    return alphas


def _evaluate(options: argparse.Namespace, command: str) -> int:
    from ..evaluation.datasets import select_datasets
    from ..evaluation.evaluate import draw_sweep, evaluate_all, result_folders, told, write_tables
    from ..evaluation.features import EvaluationRanks
    from ..evaluation.models import checkpoints_of, find_models, interpolated_models

    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that a model made for its shapes has no weights
    settings = _settings(options)
    selection = select_datasets(options.data, options.suite.split(","), options.datasets)
    if options.wise_ft is not None:
        models = interpolated_models(options.checkpoints[0], options.wise_ft, options.alphas, options.model)
    else:
        given = [one for run in options.checkpoints for one in (checkpoints_of(run) if options.every else [run])]
        models = find_models(given, options.model)
    folders = result_folders(models, options.out, sweep=options.wise_ft is not None)
    ranks = EvaluationRanks()
    outcome = evaluate_all(models, folders, selection.chosen, settings, command, ranks)
    ranks.end()
    if not ranks.is_first:
        return 0
    write_tables(folders)
    print(told(outcome, selection, options.data, folders))
    for failure in outcome.failures:
        print(f"error: {failure}", file=sys.stderr)
    figure = folders[0] / "wise_ft.png"
    is_whole = options.alphas and len(outcome.models) == len(options.alphas)
    if is_whole and draw_sweep(figure, options.alphas, outcome.models):
        print(f"Scores over α: {figure}")
    return 1 if outcome.failures else 0


def _settings(options: argparse.Namespace):
    import torch

    from ..evaluation.tasks import Settings

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: there is no GPU here; give --device cpu")
    precision = options.precision or ("amp" if device == "cuda" else "fp32")
    probe = options.probe_lr, options.probe_epochs, options.probe_val_split
    dense = options.dense_lr, options.dense_epochs, options.finetune
    return Settings(device, precision, options.batch_size, options.workers, *probe, *dense)
