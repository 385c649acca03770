"""Evaluation: checkpoints measured by LAION's CLIP_benchmark on local data sets."""
