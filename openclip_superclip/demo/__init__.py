"""The demo: a small data set composed of emoji drawings, and measures of models trained on it."""
