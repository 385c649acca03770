"""The demo: CLIP and SuperCLIP at equal samples, and CLIP at equal time, in one table and one figure."""

import statistics
from collections.abc import Callable
from concurrent.futures import Future

from ..atomic_files import write_json
from ..seed_statistics import Spread
from ..table import markdown_table
from ..versions import versions
from .demo_run import METHODS, PACKAGES, DemoRun, checkpoint, load
from .figure import draw
from .measures import describe
from .training_pool import DemoSettings, training_pool

EQUAL_TIME = "CLIP, equal time"


def compare_methods(settings: DemoSettings) -> dict:
    """Trains and measures everything, writes demo.json and demo.png, and returns what demo.json holds.

    Each method trains at its best learning rate. CLIP's samples at equal time are those that it sees in the CPU time
    that SuperCLIP takes.
    """
    with training_pool(settings) as train:
        rates, trials = _choose_learning_rates(settings, train)
        columns = _train_seeds(settings, train, {m: (m, rates[m], settings.samples) for m in METHODS})
        ratio = _time_ratio([*trials, *(record for records in columns.values() for record in records)])
        num_equal_time = round(settings.samples * max(1.0, ratio))
        columns |= _train_seeds(settings, train, {EQUAL_TIME: ("CLIP", rates["CLIP"], num_equal_time)})
    (captions,) = settings.captions
    report = {
        "settings": settings.as_dict() | {"captions": captions},
        "versions": versions(*PACKAGES),
        "learning_rates": rates,
        "tuning": [{k: record[k] for k in ("run", "split", "measures", "cpu_seconds")} for record in trials],
        "time_superclip_over_clip": ratio,
        "summary": {column: _summarise(records) for column, records in columns.items()},
        "runs": columns,
    }
    write_json(settings.out / "demo.json", report)
    _draw(settings, report)
    return report


def methods_table(report: dict) -> str:
    """Returns the report's table in Markdown: mean ± standard deviation over the seeds of every measure, in percent."""
    columns = report["runs"]
    heads = [f"{column} ({records[0]['run']['num_samples']:,} samples)" for column, records in columns.items()]
    rows = [
        [measure.replace("_", " "), *(str(_spread(records, measure)) for records in columns.values())]
        for measure in report["summary"]["CLIP"]
    ]
    seconds = [statistics.median(record["cpu_seconds"] for record in records) for records in columns.values()]
    rows.append(["CPU seconds to train", *(f"{value:.0f}" for value in seconds)])
    settings, rates = report["settings"], report["learning_rates"]
    return markdown_table(["held-out scenes, %", *heads], rows) + (
        f"\n\n{settings['seeds']} seed(s), batch {settings['batch_size']}, {settings['captions']} captions, "
        f"learning rate {rates['CLIP']:g} (CLIP) and {rates['SuperCLIP']:g} (SuperCLIP); "
        f"SuperCLIP took {report['time_superclip_over_clip']:.2f} × the CPU time of CLIP at equal samples."
    )


def _choose_learning_rates(settings: DemoSettings, train: Callable[..., Future]) -> tuple[dict[str, float], list[dict]]:
    """Returns each method's best learning rate on the scenes kept for that, and the records of the trials."""
    if len(settings.learning_rates) == 1:
        return dict.fromkeys(METHODS, settings.learning_rates[0]), []
    futures = {
        method: [train(_run(settings, method, rate, settings.samples, 0), "tune") for rate in settings.learning_rates]
        for method in METHODS
    }
    rates, trials = {}, []
    for method, waiting in futures.items():
        records = [future.result() for future in waiting]
        best = max(records, key=lambda record: statistics.mean(record["measures"].values()))
        rates[method] = best["run"]["learning_rate"]
        trials += records
    return rates, trials


def _train_seeds(
    settings: DemoSettings, train: Callable[..., Future], columns: dict[str, tuple[str, float, int]]
) -> dict[str, list[dict]]:
    """Returns the records of all seeds of each column, given as method, learning rate and number of samples."""
    futures = {
        column: [train(_run(settings, *trained, seed)) for seed in range(settings.seeds)]
        for column, trained in columns.items()
    }
    return {column: [future.result() for future in waiting] for column, waiting in futures.items()}


def _run(settings: DemoSettings, method: str, learning_rate: float, num_samples: int, seed: int) -> DemoRun:
    (captions,) = settings.captions
    return DemoRun(method, num_samples, settings.batch_size, learning_rate, captions, seed)


def _time_ratio(records: list[dict]) -> float:
    """Returns SuperCLIP's CPU time over CLIP's, medians of runs of equal samples."""
    clip, superclip = (
        statistics.median(record["cpu_seconds"] for record in records if record["run"]["method"] == method)
        for method in ("CLIP", "SuperCLIP")
    )
    return superclip / clip


def _spread(records: list[dict], measure: str) -> Spread:
    return Spread([record["measures"][measure] for record in records])


def _summarise(records: list[dict]) -> dict:
    """Returns mean and standard deviation over the seeds of every measure."""
    spreads = {measure: _spread(records, measure) for measure in records[0]["measures"]}
    return {measure: {"mean": spread.mean, "std": spread.std} for measure, spread in spreads.items()}


def _draw(settings: DemoSettings, report: dict) -> None:
    said = {}
    for method in METHODS:
        run = DemoRun(**report["runs"][method][0]["run"])
        said[method] = describe(*load(checkpoint(run, settings.out), f"local-dir:{settings.out / 'model'}"))
    pictures = [
        (clip[0], clip[1], {"CLIP": clip[2], "SuperCLIP": ours[2]})
        for clip, ours in zip(said["CLIP"], said["SuperCLIP"], strict=True)
    ]
    title = (
        f"superclip demo: emoji scenes (composed), {settings.samples:,} samples, batch {settings.batch_size}, "
        f"{settings.seeds} seed(s)"
    )
    draw(settings.out / "demo.png", report["runs"], report["summary"], pictures, title)
