"""Benchmarks of EM attention. `ema-ops bench` runs `microbenchmark.py`; see README.md beside this file."""
