"""The parts of `benchmarks/gpu.py`: each yields rows, a name and a function that says what was found, or raises."""
