"""Recipes, plans and training runs on one machine or on SLURM."""
