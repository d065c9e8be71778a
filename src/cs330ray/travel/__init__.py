"""A study as one file: packed in one home, unpacked in another."""
