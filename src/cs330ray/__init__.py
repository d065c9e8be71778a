"""Hyperparameter studies of multi-task, meta- and few-shot learning.

A study is a file, a trial is a generator, a learner is mathematics.
"""

__version__ = "0.1.0"
