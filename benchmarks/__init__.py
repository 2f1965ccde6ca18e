"""Measurements of this project on the machine at hand: `python -m benchmarks SUITE`."""
