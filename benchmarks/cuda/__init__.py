"""Measurements on an NVIDIA GPU: `python -m benchmarks.cuda COMMAND`; each prints a table and writes JSON."""
