"""Audit of a data set: what a model says of each pair's caption, word by word, and which pairs are kept."""
