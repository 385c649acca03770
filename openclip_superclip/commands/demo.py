"""superclip demo: trains CLIP and SuperCLIP on real drawings, and compares them by paired seeds."""

import shlex
from argparse import Namespace

from ..errors import Parser, at_least, no_effect, to_stderr, to_stdout
from ..extras import require
from ..files import make_folder
from ..runs.signals import stopped_by_signals
from .shared_options import add_count, add_number, add_switch, expanded_path


def main(argv: list[str]) -> int:
    """Trains, measures, prints the table, and writes the figures, study.* and the runs; returns
    the exit code."""
    options = _parse(argv)
    to_stderr("superclip demo: loading PyTorch and OpenCLIP, which takes a few seconds")
    if options.data_only:
        to_stdout(_write_training_data(options))
        return 0
    require("superclip demo", "report")
    from ..study.configuration import StudyOptions, configure
    from ..study.runs import runs_of, summary
    from ..study.training import run_study

    out = options.out
    study_options = StudyOptions(
        study="demo",
        device="cpu",
        out=out,
        seeds=options.seeds,
        set={} if options.samples is None else {"samples": str(options.samples)},
        scenes=out,
        command=shlex.join(["superclip", "demo", *argv]),
    )
    configured = configure(study_options)
    text = summary(configured.study, runs_of(configured), options.jobs)
    to_stderr(f"superclip {text}")
    with stopped_by_signals():
        results = run_study(configured, options.jobs)
    to_stdout(f"\n{results.tables()}")
    if results.study.seeds == 1:
        to_stdout("\nOne seed is only a test: superclip demo trains four.")
    to_stdout(f"\nMore in {out}: study.png, study.json and runs/")
    return 0


def _parse(argv: list[str]) -> Namespace:
    parser = Parser(
        "demo",
        "Composes scenes of real drawings, trains CLIP and SuperCLIP on them with paired seeds "
        "(the same initial weights of the towers, the same order of the data, the same crops), "
        "and prints the difference on held-out scenes with its 95 % interval.",
        "--quick",
    )
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument(
        "--quick",
        action="store_const",
        const=1,
        dest="seeds",
        help="train one seed, as a test: a few minutes",
    )
    add_count(seeds, "--seeds", "paired seeds (default: 4, 10 to 20 minutes on two cores)")
    add_count(parser, "--samples", "training samples per run (default: 40960)")
    add_number(parser, "--jobs", 2, "runs at a time, one thread each", "N")
    parser.option(
        "--out",
        "folder for data, runs and results (default: %(default)s)",
        type=expanded_path,
        default="demo",
    )
    add_switch(parser, "--data-only", "only write the model and the shards of the demo's recipes")
    options = parser.parse_args(argv)
    at_least(options, seeds=1, samples=32, jobs=1)  # a batch of the demo's recipe
    return options


def _write_training_data(options: Namespace) -> str:
    """Writes the model and the shards of the demo's recipes, and returns where they are."""
    from ..demo.data import write_training_data

    no_effect(options, "--data-only", "seeds", "samples")
    make_folder(options.out)
    return " and ".join(write_training_data(options.out))
