"""Recipes, and plans that put them on machines and check them against their data."""
