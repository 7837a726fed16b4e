"""Denoisers on frozen text encoders: ``python -m t2ictl.benchmarks.shapes.train.frozen --model dit --out DIR ...``."""
