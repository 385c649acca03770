"""Checkpoints: what is in them, how they are told apart, and the forms in which they leave."""
