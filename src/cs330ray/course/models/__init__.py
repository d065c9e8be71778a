"""Models that are ready to use: what a person calls once a study has found its weights, one kind a module.

They read no checkpoint and no study: `ready` of a system (see `cs330ray.trial.Trainable`) makes them of tensors.
"""
