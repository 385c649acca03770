"""The demo in several modes of captions: CLIP and SuperCLIP in each, in one table."""

from ..atomic_files import write_json
from ..seed_statistics import Spread
from ..table import markdown_table
from .demo_run import METHODS, DemoRun
from .training_pool import DemoSettings, training_pool


def compare_modes(settings: DemoSettings) -> dict:
    """Trains and measures both methods in every mode, writes captions.json and returns what it holds.

    Without a class loss *dual* is *short*: CLIP has no row of its own there.
    """
    rows = [(method, mode) for mode in settings.captions for method in METHODS if (method, mode) != ("CLIP", "dual")]
    shared = settings.samples, settings.batch_size, settings.learning_rates[0]
    with training_pool(settings) as train:
        futures = [
            [train(DemoRun(method, *shared, mode, seed)) for seed in range(settings.seeds)] for method, mode in rows
        ]
        records = [[future.result() for future in row] for row in futures]
    report = {
        "settings": settings.as_dict(),
        "rows": [
            {"method": method, "captions": mode, "runs": runs}
            for (method, mode), runs in zip(rows, records, strict=True)
        ],
    }
    write_json(settings.out / "captions.json", report)
    return report


def modes_table(report: dict) -> str:
    """Returns the table in Markdown: a row a method and mode, mean ± standard deviation over the seeds, in percent."""
    measures = list(report["rows"][0]["runs"][0]["measures"])
    rows = [
        [
            row["method"],
            row["captions"],
            *(str(Spread([record["measures"][measure] for record in row["runs"]])) for measure in measures),
        ]
        for row in report["rows"]
    ]
    heads = ["held-out scenes, %", "captions", *(measure.replace("_", " ") for measure in measures)]
    settings = report["settings"]
    return markdown_table(heads, rows) + (
        f"\n\n{settings['seeds']} seed(s), {settings['samples']:,} samples, batch {settings['batch_size']}, "
        f"learning rate {settings['learning_rates'][0]:g}."
    )
