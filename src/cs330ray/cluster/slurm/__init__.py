"""Studies as jobs of Slurm: the batch script, what runs in it, and how a job is found again."""
