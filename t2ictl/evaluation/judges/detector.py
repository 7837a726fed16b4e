"""A judge by open-vocabulary detection: the score of the best box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from t2ictl.evaluation.judges.base import Probabilities
from t2ictl.evaluation.judges.loading import batches, loaded

__all__ = ["DetectorJudge"]


class DetectorJudge:
    """The highest score of a box for "a photo of a THING", by OWL-ViT or OWLv2 (or another model with that head).

    Args:
        model: folder or hub id of a zero-shot detector of transformers.
        template: the text with the thing.
        device: where to compute.
        batch: images at a time.
    """

    def __init__(
        self, model: str, *, template: str = "a photo of a {thing}", device: str = "cpu", batch: int = 8
    ) -> None:
        import transformers

        self.name = f"detector:{model}"
        self._model, self._processor = loaded(transformers.AutoModelForZeroShotObjectDetection, model, device)
        self._template, self._batch = template, batch

    def __call__(self, images: Sequence[Image.Image], things: Sequence[str]) -> Probabilities:
        """Return the best scores."""
        texts = [self._template.format(thing=thing) for thing in things]
        parts = []
        for part in batches(images, self._batch):
            inputs = self._processor(text=[texts] * len(part), images=list(part), return_tensors="pt")
            with torch.no_grad():
                # Boxes by things: no post-processing, whose threshold would turn a low score into none.
                logits = self._model(**inputs.to(self._model.device)).logits
            parts.append(logits.float().sigmoid().amax(dim=1).double().cpu().numpy())
        return np.concatenate(parts)
