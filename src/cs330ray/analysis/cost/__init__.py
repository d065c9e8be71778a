"""What a study costs: what its trials have taken so far, and what is to come."""
