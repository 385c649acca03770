"""Words being learned, in a report: what each run has recorded, and the table of its bands."""

from ..data.word_course import KNOWN, NUM_LOOKED_AT, WordCourse, band_summaries, missing_told, word_course
from ..data.word_course_file import find_course
from ..errors import InputError
from .report_table import ReportTable, count, no_number
from .reported_run import ReportedRun


def read_courses(runs: list[ReportedRun]) -> tuple[list[WordCourse], list[str]]:
    """Returns the courses of the runs that have recorded one, each once, and what cannot be read or is not there."""
    courses, notes = [], []
    for run in runs:
        if run.copy_of is not None:
            continue
        try:
            files = find_course(run.path)
            if files is not None:
                courses.append(word_course(run.name, files))
                notes += filter(None, [missing_told(courses[-1])])
        except InputError as error:
            notes.append(str(error))
    return courses, notes


def words_table(courses: list[WordCourse]) -> ReportTable:
    """Returns a row a run and band of words, from frequent to rare."""
    rows = [
        [
            course.name, summary.band, count(summary.words),
            no_number() if summary.half_known_after is None else count(summary.half_known_after),
            count(summary.learned), count(summary.not_yet), count(summary.forgotten),
        ]
        for course in courses
        for summary in band_summaries(course)
    ]  # fmt: skip
    heads = ["run", "in … of captions", "words", "half known after", "learned", "not yet", "forgotten"]
    note = (
        f"A word (a token of the vocabulary) is known where the head gives it {KNOWN:g} times the share that it has in "
        f"other pictures, over {NUM_LOOKED_AT} captions or more; after so many captions half of a band's words are."
    )
    return ReportTable("Words by how many captions hold them", heads, rows, note)
