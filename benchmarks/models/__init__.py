"""Whole models from synthetic files: sizes, memory, load times and budgets. `python -m benchmarks.models`."""
