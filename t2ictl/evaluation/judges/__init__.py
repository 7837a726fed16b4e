"""Judges: what tells whether something is to be seen in an image, as a probability."""

from __future__ import annotations

from t2ictl.evaluation.judges.base import Judge, open_judge

__all__ = ["Judge", "open_judge"]
