"""Benchmarks of the field: how their data lie on a disk, what a model does with them, and what is counted."""
