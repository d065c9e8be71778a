"""The question: a study file, its cells, its identity and what may grow."""
