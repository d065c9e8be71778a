"""The service: one truth (the ledger), one mirror (MLflow), and Ray Tune between a study and its trials.

Reading order: messages, listener, ask, queue, prune, recorder, workers, machines, tune, session, run; estimate and thin
aside.
"""
