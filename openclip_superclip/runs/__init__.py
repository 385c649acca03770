"""Runs on one machine or on SLURM: start, monitor, restart, requeue."""
