"""What the record means: who is best, and how sure that is. Nothing here draws."""
