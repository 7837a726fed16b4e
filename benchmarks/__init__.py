"""Benchmarks: the training recipe of the embedded model, and what measures the controls."""
