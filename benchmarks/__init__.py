"""Benchmarks: one module each, run by `python -m benchmarks <name>`; figures with their commands are in RESULTS.md."""
