"""Measurements of Quantarion against its peers; one file per claim, run as `python -m benchmarks.NAME`."""
