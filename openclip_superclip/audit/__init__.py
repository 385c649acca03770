"""Audit of a data set: what a model says of each pair's caption, word by word, and which pairs are kept."""

SORTED_BY = ("support", "class-loss", "clip-score", "both")  # of --by: the scores that pairs are sorted by
