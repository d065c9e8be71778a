"""The hyperparameters of systems that have many, a module each."""
