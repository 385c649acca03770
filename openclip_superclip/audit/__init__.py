"""Audit of a data set: scores for each pair and for each word of its caption, and the pairs to keep."""

SORTED_BY = ("support", "class-loss", "clip-score", "both")  # of --by: the scores that sort the pairs
