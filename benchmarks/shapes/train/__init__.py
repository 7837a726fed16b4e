"""The training recipe of the embedded model: ``python -m t2ictl.benchmarks.shapes.train --out DIR``."""
