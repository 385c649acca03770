"""Evaluation: checkpoints measured by LAION's CLIP_benchmark, on data sets that are here."""
