"""The demo in several modes of captions: CLIP and SuperCLIP in each, in one table."""

import argparse
import json
import logging
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..atomic_files import whole_file
from .demo_model import write_model
from .demo_run import METHODS, DemoRun, train_and_measure
from .scenes import CAPTIONS, write_shards


def compare_modes(options: argparse.Namespace) -> dict:
    """Trains and measures both methods in every mode, and returns what captions.json holds.

    Without a class loss *dual* is *short*: CLIP has no row of its own there.
    """
    logging.getLogger().setLevel(logging.ERROR)  # OpenCLIP warns that a model to be trained has no weights
    torch.set_num_threads(1)  # measuring happens in the threads that also wait for the runs
    model = write_model(options.out / "model")

    def submit(method: str, mode: str, seed: int):
        kind = mode if mode in CAPTIONS else "short"  # the samples' own text
        data = options.out / "data" / f"{kind}-{options.samples}"
        train_data = write_shards(data, options.samples, seed=0, caption=kind)
        run = DemoRun(method, options.samples, options.batch_size, options.learning_rates[0], mode, seed)
        return pool.submit(train_and_measure, run, train_data, model, options.out)

    rows = [(method, mode) for mode in options.captions for method in METHODS if (method, mode) != ("CLIP", "dual")]
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            futures = [[submit(*row, seed) for seed in range(options.seeds)] for row in rows]
            records = [[future.result() for future in row] for row in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or whatever waits in line would still be trained
            raise
    report = {
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()},
        "rows": [
            {"method": method, "captions": mode, "runs": runs}
            for (method, mode), runs in zip(rows, records, strict=True)
        ],
    }
    with whole_file(options.out / "captions.json") as file:
        file.write(json.dumps(report, indent=1).encode())
    return report


def modes_table(report: dict) -> str:
    """Returns the table in Markdown: a row a method and mode, mean ± standard deviation over the seeds, in percent."""
    measures = list(report["rows"][0]["runs"][0]["measures"])
    lines = [
        "| held-out scenes, % | captions | " + " | ".join(name.replace("_", " ") for name in measures) + " |",
        "|---|---|" + "---|" * len(measures),
    ]
    for row in report["rows"]:
        cells = []
        for measure in measures:
            values = [record["measures"][measure] for record in row["runs"]]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {row['method']} | {row['captions']} | " + " | ".join(cells) + " |")
    settings = report["settings"]
    lines.append(
        f"\n{settings['seeds']} seed(s), {settings['samples']:,} samples, batch {settings['batch_size']}, "
        f"learning rate {settings['learning_rates'][0]:g}."
    )
    return "\n".join(lines)
