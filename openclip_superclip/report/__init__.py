"""Runs side by side: their losses, their scores over the batch size, and the paper's."""
