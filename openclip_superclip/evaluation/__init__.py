"""Evaluation of checkpoints with LAION's CLIP_benchmark on local data sets."""
