"""Hyperparameter studies of multi-task, meta- and few-shot learning: a study is a file, a trial is a generator, a learner is mathematics."""

__version__ = "0.1.0"
