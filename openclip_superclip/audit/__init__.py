"""Audits a data set: scores each pair and each word of its caption, and selects the pairs to
keep."""

# choices of --by: the score that sorts the pairs
SORTED_BY = ("support", "class-loss", "clip-score", "both")
