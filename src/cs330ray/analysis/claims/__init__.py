"""Claims about cells: what a look saw, the rule that tells cells apart, the sentences, and what telling them takes."""
