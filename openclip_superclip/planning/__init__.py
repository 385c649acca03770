"""Recipes, and plans that put them on machines and hold them against their data."""
