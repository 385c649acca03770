"""Ranks that train together: sums over them, and what Horovod needs."""
