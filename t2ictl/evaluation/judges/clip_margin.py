"""A judge by CLIP: how much nearer an image is to a text with the thing than to one without it.

Legend: ``I`` image, ``Q`` question, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2ictl.evaluation.judges.base import Probabilities
from t2ictl.evaluation.judges.loading import batches, loaded

__all__ = ["ClipMarginJudge"]


class ClipMarginJudge:
    """Judges by how much nearer an image is to a text with the thing than to one without it.

    ``p = sigmoid(scale (cos(image, "a picture of a THING") - cos(image, "a picture")))``.

    CLIP's own logit scale makes a probability of the margin; it is not calibrated, and compares images of the same
    thing better than things with each other.

    Args:
        model: folder or hub id of a CLIP model of transformers.
        template: the text with the thing.
        foil: the text without it.
        device: where to compute.
        batch: images at a time.
    """

    def __init__(
        self,
        model: str,
        *,
        template: str = "a picture of a {thing}",
        foil: str = "a picture",
        device: str = "cpu",
        batch: int = 16,
    ) -> None:
        import transformers

        self.name = f"clip:{model}"
        self._model, self._processor = loaded(transformers.CLIPModel, model, device)
        self._template, self._foil, self._batch = template, foil, batch

    def __call__(self, images: Sequence[Image.Image], things: Sequence[str]) -> Probabilities:
        """Return the probabilities."""
        texts = [self._foil, *(self._template.format(thing=thing) for thing in things)]
        inputs = self._processor(text=texts, return_tensors="pt", padding=True, truncation=True)
        text_QC = self._unit(self._model.get_text_features(**inputs.to(self._model.device)))
        parts = []
        for part in batches(images, self._batch):
            pixels = self._processor(images=list(part), return_tensors="pt").to(self._model.device)
            image_IC = self._unit(self._model.get_image_features(**pixels))
            parts.append(image_IC @ text_QC.T)
        cosine_IQ = torch.cat(parts)
        margin_IQ = cosine_IQ[:, 1:] - cosine_IQ[:, :1]
        probabilities: Probabilities = (margin_IQ * self._model.logit_scale.exp()).sigmoid().double().cpu().numpy()
        return np.clip(probabilities, 0.0, 1.0)

    @staticmethod
    def _unit(features: Any) -> torch.Tensor:
        """Features of length 1; newer versions of transformers wrap them."""
        vectors: torch.Tensor = getattr(features, "pooler_output", features)
        return torch.nn.functional.normalize(vectors.float(), dim=-1)
