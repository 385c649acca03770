"""The figure of words being learned: of each run, by how often captions hold a word."""

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .word_course import BANDS, KNOWN, WordCourse

COLOURS = ["#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#e8c500"]  # from frequent to rare


def draw_word_courses(courses: Sequence[WordCourse]) -> bytes:
    """Returns a PNG: a column a run, above which part of a band's words is known, below their median lift."""
    figure, grid = plt.subplots(
        2, len(courses), figsize=(max(5.5, 4.4 * len(courses)), 5.6), squeeze=False, sharex="col", sharey="row",
        layout="constrained",
    )  # fmt: skip
    for (above, below), course in zip(grid.T, courses, strict=True):
        for place, (band, colour) in enumerate(zip(BANDS, COLOURS, strict=True)):
            num_words = int((course.band == place).sum())
            if num_words:
                look = {"color": colour, "marker": ".", "label": f"{band}: {num_words:,}"}
                above.plot(course.samples, 100 * course.known[place], **look)
                below.plot(course.samples, course.median_lift[place], **look)
        below.set_yscale("log")
        below.axhline(KNOWN, color="#888", linewidth=0.8, linestyle=":")
        below.set_xlabel("captions trained on")
        above.set_title(course.name, fontsize=10)
        above.legend(title="in … of captions: words", fontsize=7, title_fontsize=7)
        for axes in (above, below):
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("words known, %")
    grid[1, 0].set_ylabel("median lift")
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
    return file.getvalue()
