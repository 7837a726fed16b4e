"""The training recipe of the embedded model: ``python -m t2ictl.benchmarks.train_shapes --out DIR``."""
