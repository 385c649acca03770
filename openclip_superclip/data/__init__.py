"""Training data: captions, shards, the slices of a pass, and counts over a whole data set."""
