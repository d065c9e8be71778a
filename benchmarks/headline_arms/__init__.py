"""What `benchmarks/headline.py` compares: the arms, how one is run, and the scripts of the rivals."""
