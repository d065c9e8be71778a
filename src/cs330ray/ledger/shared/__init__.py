"""The home of a study that jobs of Slurm run, on a disk that several machines share: who holds it, and its ledger."""
