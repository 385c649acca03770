"""superclip evaluate: CLIP_benchmark's zero-shot, retrieval and linear-probe numbers, models side by side."""

import argparse
import logging
import math
import shlex
import sys
from pathlib import Path

from ..atomic_files import make_folder, whole_file
from ..errors import InputError
from ..optional_dependencies import check_clip_benchmark


def main(argv: list[str]) -> int:
    """Evaluates, prints the table and what is missing from it, and returns the exit code: 1 where something failed."""
    argv = argv[1:] if argv[:1] == ["--"] else argv  # which torchrun needs, and passes on
    options = _parse(argv)
    check_clip_benchmark("superclip evaluate")
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
        "has; retrieval: COCO and Flickr30k; compositional: SugarCrepe and Winoground; on ImageNet-1k probe: a linear "
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
    probe = parser.add_argument_group("linear probe", "CLIP_benchmark's: AdamW on frozen, normalised features")
    probe.add_argument("--probe-lr", type=float, default=0.1, help="(default: %(default)s)")
    probe.add_argument("--probe-epochs", type=int, default=10, help="(default: %(default)s)")
    probe.add_argument(
        "--probe-val-split", metavar="SPLIT", help="choose the weight decay on this split (default: no weight decay)"
    )
    options = parser.parse_args(argv)
    if not (math.isfinite(options.probe_lr) and options.probe_lr > 0):
        raise InputError(f"--probe-lr is {options.probe_lr}; expected a number above 0")
    for name, least in (("batch_size", 1), ("workers", 0), ("probe_epochs", 1)):
        if getattr(options, name) < least:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}; expected {least} or more")
    return options


def _evaluate(options: argparse.Namespace, command: str) -> int:
    from ..evaluation.datasets import select_datasets
    from ..evaluation.evaluation_loop import evaluate_all
    from ..evaluation.evaluation_ranks import EvaluationRanks
    from ..evaluation.models import find_models

    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that a model made for its shapes has no weights
    settings = _settings(options)
    selection = select_datasets(options.data, options.suite.split(","), options.datasets)
    models = find_models(options.checkpoints, options.model)
    folders = [options.out or (model.run / "evaluation" if model.run else Path("evaluation")) for model in models]
    for folder in folders:
        make_folder(folder, "--out")
    ranks = EvaluationRanks()
    outcome = evaluate_all(models, folders, selection.chosen, settings, command, ranks)
    ranks.end()
    if not ranks.is_first:
        return 0
    _report(outcome, selection, options.data, list(dict.fromkeys(folders)))
    return 1 if outcome.failures else 0


def _settings(options: argparse.Namespace):
    import torch

    from ..evaluation.metrics import Settings

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: there is no GPU here; give --device cpu")
    precision = options.precision or ("amp" if device == "cuda" else "fp32")
    probe = options.probe_lr, options.probe_epochs, options.probe_val_split
    return Settings(device, precision, options.batch_size, options.workers, *probe)


def _report(outcome, selection, data: Path, folders: list[Path]) -> None:
    """Prints the results and what is missing from them, and writes each folder's table beside its results."""
    from ..evaluation.averages import NOT_IN_CLIP_BENCHMARK
    from ..evaluation.datasets import other_data
    from ..evaluation.result_files import read_records
    from ..evaluation.results_table import differences, table

    for folder in folders:
        if models := read_records(folder):
            with whole_file(folder / "summary.md") as file:
                file.write(f"{table(models)}\n".encode())
    if outcome.models:
        print(printed := table(outcome.models))
        if ahead := differences(outcome.models):
            print(f"\n{ahead}")
        if "\n| datacomp38" in printed:
            print(f"\nDataComp's 38 hold {', '.join(NOT_IN_CLIP_BENCHMARK)} as well, of which CLIP_benchmark has none.")
    print(f"\n{outcome.num_results} results, {outcome.num_read} of them from before: {', '.join(map(str, folders))}")
    if selection.absent:
        print(f"Not evaluated: {', '.join(selection.absent)}")
    others = other_data(data, selection)
    if others:
        print(f"In {data}, but in no suite's list: {', '.join(others)}; --datasets evaluates them")
    for failure in outcome.failures:
        print(f"error: {failure}", file=sys.stderr)
