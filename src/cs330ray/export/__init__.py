"""A model as a directory: which run, its weights, its card."""
