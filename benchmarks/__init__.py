"""Benchmarks of this runtime and its peers; run them with `python -m benchmarks.NAME`."""
