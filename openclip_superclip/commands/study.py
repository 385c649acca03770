"""superclip study: compares methods by paired seeds, and tests their differences."""

import dataclasses
import os
import shlex
from argparse import Namespace
from typing import TYPE_CHECKING

from ..checkpoints.trainer_files import RECORD
from ..data.data_check import check_table
from ..data.held_out import TableSplit, split_table
from ..data.tables import is_table
from ..data.tar_shards import expand
from ..errors import InputError, Parser, at_least, to_stderr, to_stdout
from ..extras import require
from ..flags import DataConfig
from . import recipe_options as shared
from .shared_options import add_count, add_folder, add_switch, from_options

if TYPE_CHECKING:
    from ..study.configuration import ConfiguredStudy, StudyOptions

VAL_FRACTION = 0.2

OF_SLURM = (  # options that need --slurm
    "nodes",
    "gpus_per_node",
    "gpu_type",
    *shared.NAMED,
    "cpus_per_node",
    "sbatch",
    "setup",
    "skip_data_check",
    "gpu_batch_max",
    "workers",
)


def main(argv: list[str]) -> int:
    """Trains, measures, prints the table and writes the results, or submits jobs that do;
    returns the exit code."""
    options = _parse(argv)
    from ..study.configuration import StudyOptions, configure
    from ..study.study_file import read_study, study_files

    if options.list:
        for path in study_files():
            to_stdout(f"{path.stem}: {read_study(str(path)).question}")
        return 0
    device = options.device
    if device is None and not options.only:
        device = "cuda" if options.slurm else shared.device_here()
    settings = shared.run_settings(options, "--only" if options.only else "")
    require("superclip study", "report")
    study_options = from_options(
        StudyOptions,
        options,
        device=device,
        set=shared.all_settings(options),
        settings=settings,
        command=shlex.join(["superclip", "study", *argv]),
    )
    if _splits(options):
        return _run_on_parts(study_options, options)
    return _run(configure(study_options), options)


def _run_on_parts(study_options: "StudyOptions", options: Namespace) -> int:
    """Runs the study on the parts of a table, which are removed if no run reads them; returns the
    exit code."""
    from ..study.configuration import configure

    whole = configure(dataclasses.replace(study_options, val_data=options.data))
    split = _split(whole, options)
    try:
        parts = dataclasses.replace(study_options, data=split.train, val_data=split.val)
        return _run(configure(parts), options)
    finally:  # after --dry-run, or an error
        records = whole.runs_in.glob(f"*/{RECORD}")
        if not any(split.folder.name in record.read_text() for record in records):
            split.remove()


def _split(configured: "ConfiguredStudy", options: Namespace) -> TableSplit:
    """Returns the split of --data in the study's folder; InputError, before it is written, for a
    table with errors."""
    columns = configured.study.first_recipe.columns
    if not options.only:
        table = check_table(options.data, columns, "--data")
        if len(table.bad) > configured.options.settings.unreadable_max * table.num_checked:
            table.check_images()
    fraction = options.val_fraction or VAL_FRACTION
    split = split_table(options.data, columns, fraction, configured.out, "--data", "--out")
    split.write("--out")
    files = "" if options.dry_run else f": {split.train}, {split.val}"
    to_stderr(
        f"superclip: {split.record['num_train']:,} pairs for training and "
        f"{split.record['num_val']:,} for validation{files}"
    )
    return split


def _splits(options: Namespace) -> bool:
    """Returns whether the command splits --data; InputError for --val-fraction where it does
    not."""
    if options.data and not is_table(options.data):
        if os.path.isdir(options.data):
            raise InputError(
                f"--data is {options.data}, a folder; expected a table, a .csv file with a column "
                "of image files and a column of captions, or a pattern of shards, such as "
                "'x/{00000..00099}.tar'"
            )
        expand(options.data, "--data")  # InputError for a wrong pattern
    has_validation = options.val_data or "flags.val-data" in shared.all_settings(options)
    if options.val_fraction is None:
        return is_table(options.data) and not has_validation
    DataConfig(val_fraction=options.val_fraction)  # InputError for another number than a fraction
    if has_validation:
        raise InputError("--val-fraction splits validation data off --data: leave out --val-data")
    if not is_table(options.data):
        raise InputError(
            f"--val-fraction splits a table, and --data is {options.data}: expected a .csv or .tsv"
        )
    return True


def _run(configured: "ConfiguredStudy", options: Namespace) -> int:
    """Trains or submits the study, or prints what it would; returns the exit code."""
    from ..study.runs import check_data, runs_of, summary
    from ..study.training import run_study

    study = configured.study
    runs = runs_of(configured)
    if options.slurm:
        from ..study.study_on_slurm import StudySubmission

        request = shared.slurm_request(options)
        submission = from_options(StudySubmission, options, configured=configured, request=request)
        to_stdout(submission.dry_run() if options.dry_run else submission.submit())
        return 0
    from ..runs.signals import stopped_by_signals

    jobs = options.jobs or 1
    if options.dry_run:
        check_data(study, runs)
        to_stdout(summary(study, runs, jobs))
        return 0
    if options.only:
        jobs = 0
    else:
        to_stderr(f"superclip: {summary(study, runs, jobs)}")
    with stopped_by_signals():
        results = run_study(configured, jobs)
    to_stdout(
        f"\n{results.tables()}\n\nMore in {configured.out}: study.png, study.json, and the "
        "folders of the runs"
    )
    return 0


def _parse(argv: list[str]) -> Namespace:
    parser = Parser(
        "study",
        "Trains the arms of a study with paired seeds (the same initial weights of the towers, "
        "the same order of the data, the same crops), evaluates them, and prints each difference "
        "with its confidence interval. The same command resumes a study that was stopped or "
        "submitted to SLURM.",
        "one_batch --jobs 2 --out one_batch",
    )
    add = parser.option
    add("study", "a file, or a name from --list", nargs="?", metavar="STUDY")
    add_switch(parser, "--list", "list the shipped studies and their questions")
    add_count(parser, "--seeds", "number of paired seeds (default: the study's)")
    add_count(parser, "--jobs", "runs at a time (default: 1; with --slurm, no limit)")
    shared.add_device(parser)
    shared.add_data_options(parser, "the study's")
    add(
        "--val-data",
        "shards or a .csv for OpenCLIP's retrieval metrics",
        metavar="DATA",
    )
    add(
        "--val-fraction",
        "without --val-data: the fraction of a table's pairs held out for validation, or their "
        "number if it is 1 or more; no image and no caption is on both sides (default: "
        f"{VAL_FRACTION})",
        type=float,
        metavar="F",
    )
    add_folder(parser, "--out", "folder of runs and results (default: runs/studies/NAME)")
    add("--only", "only evaluate and report finished runs", choices=("report",))
    shared.add_settings(parser, *shared.RUN_SETTINGS)
    slurm = parser.add_argument_group("on SLURM")
    add_switch(slurm, "--slurm", "submit the unfinished runs as an array of jobs")
    shared.add_slurm_options(slurm, default_gpus=1)
    shared.add_dry_run(slurm)
    shared.add_split_options(slurm)
    options = parser.parse_args(argv)
    if not options.study and not options.list:
        raise InputError(
            "superclip study: expected a STUDY, a file or a name from superclip study --list"
        )
    at_least(options, seeds=1, jobs=1)
    for name in OF_SLURM:
        if not options.slurm and getattr(options, name) not in (None, False):
            raise InputError(f"{shared.flag_of(name)} applies to SLURM's jobs: add --slurm")
    if options.only and (options.slurm or options.jobs or options.dry_run):
        raise InputError("--only trains nothing: expected no --slurm, --jobs or --dry-run with it")
    return options
