"""How fast `superclip frequencies` counts, beside a plain webdataset loop."""

import os
import time

import webdataset
from open_clip_train.data import filter_no_caption_or_no_image, log_and_continue, tarfile_to_samples_nothrow

from ..data.frequencies import BATCH, Counting, each_counted
from ..pages import markdown_table


def captions_per_second(counting: Counting, shards: list[str]) -> dict[str, tuple[float, float]]:
    """Returns captions a second, and a second of CPU time: of a plain webdataset loop that tokenizes, and of ours.

    On a machine that others use as well, the second number is the one to compare.
    """

    def plain() -> int:
        pipeline = webdataset.DataPipeline(
            webdataset.SimpleShardList(shards),
            tarfile_to_samples_nothrow,
            webdataset.select(filter_no_caption_or_no_image),
            webdataset.decode(only=["txt"], handler=log_and_continue),
            webdataset.rename(text="txt"),
            webdataset.map_dict(text=lambda text: counting.tokenizer(text)[0]),
            webdataset.to_tuple("text"),
            webdataset.batched(BATCH),
        )
        return sum(len(texts) for (texts,) in pipeline)

    def ours(workers: int) -> int:
        with each_counted(counting, shards, workers) as counted_shards:
            return sum(counted.num_captions for counted in counted_shards)

    ours(1)  # OpenCLIP's tokenizer remembers words: all find it alike
    rates = {}
    for name, run in {
        "plain webdataset loop": plain,
        "superclip frequencies, 1 worker": lambda: ours(1),
        "superclip frequencies, 2 workers": lambda: ours(2),
    }.items():
        start, cpu_start = time.perf_counter(), sum(os.times()[:4])
        num_captions = run()
        rates[name] = num_captions / (time.perf_counter() - start), num_captions / (sum(os.times()[:4]) - cpu_start)
    return rates


def speed_table(rates: dict[str, tuple[float, float]]) -> str:
    """Returns what `captions_per_second` measured in Markdown, beside the plain loop."""
    plain, plain_cpu = rates["plain webdataset loop"]
    rows = [
        [name, f"{rate:,.0f}", f"{rate / plain:.2f}", f"{cpu_rate:,.0f}", f"{cpu_rate / plain_cpu:.2f}"]
        for name, (rate, cpu_rate) in rates.items()
    ]
    heads = ["", "captions/s", "× the plain loop", "captions/s of CPU time", "× the plain loop"]
    return markdown_table(heads, rows)
