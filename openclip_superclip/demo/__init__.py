"""The demo: a small data set composed of real drawings, and what a model trained on it has learned."""
