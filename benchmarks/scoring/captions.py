"""Text-text similarity: a caption of the image against the prompt, both as CLIP reads them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from t2ictl.benchmarks.scoring.base import Score, short
from t2ictl.evaluation.judges.loading import loaded

__all__ = ["CaptionCosine"]

# As LAVIS generates BLIP's captions: beams, nothing drawn.
BEAMS, SHORTEST, LONGEST = 3, 10, 30


class CaptionCosine:
    """Cosine of the prompt and of BLIP's caption of the image, in the text space of CLIP.

    Attend-and-Excite reports it with both texts in 80 templates each; here they are taken as they are.

    Args:
        models: a ``BlipForConditionalGeneration`` and a ``CLIPModel``, with a comma between.
        device: where to compute.

    Reference:
        Chefer, Alaluf, Vinker, Wolf, Cohen-Or: "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image
        Diffusion Models", SIGGRAPH 2023, arXiv 2301.13826, section 5.
    """

    def __init__(self, models: str, *, device: str = "cpu") -> None:
        import transformers

        captioner, _, clip = models.partition(",")
        self._blip, self._see = loaded(transformers.BlipForConditionalGeneration, captioner, device)
        self._clip, self._read = loaded(transformers.CLIPModel, clip, device)
        self.name = f"caption_cosine[{short(captioner)},{short(clip)}]"
        self.facts: dict[str, Any] = {
            "captioner": captioner,
            "clip": clip,
            "beams": BEAMS,
            "tokens": [SHORTEST, LONGEST],
        }

    @torch.no_grad()
    def caption(self, image: Image.Image) -> str:
        """Describe an image."""
        inputs = self._see(images=image.convert("RGB"), return_tensors="pt").to(self._blip.device)
        made = self._blip.generate(**inputs, num_beams=BEAMS, min_length=SHORTEST, max_length=LONGEST, do_sample=False)
        text: str = self._see.decode(made[0], skip_special_tokens=True)
        return text

    @torch.no_grad()
    def __call__(self, image: Image.Image, prompt: str) -> Score:
        """Score one image."""
        texts = [self.caption(image), prompt]
        inputs = self._read(text=texts, return_tensors="pt", padding=True, truncation=True).to(self._clip.device)
        made = self._clip.get_text_features(**inputs)
        a, b = made if isinstance(made, torch.Tensor) else made.pooler_output
        return Score(value=float(torch.nn.functional.cosine_similarity(a, b, dim=0)))
