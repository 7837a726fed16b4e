"""Judges that ask a vision-language model, and read its answer from the probabilities of the first token.

Legend: ``I`` image, ``Q`` question, ``V`` entry of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2ictl.errors import BadSetting
from t2ictl.evaluation.judges.base import Probabilities
from t2ictl.evaluation.judges.loading import loaded

__all__ = ["ChoiceJudge", "YesNoJudge"]


class _Asking:
    """Puts a question about an image to a model, and gives the probabilities of the answer's first token."""

    def __init__(self, model: str, device: str) -> None:
        import transformers

        self._model, self._processor = loaded(transformers.AutoModelForImageTextToText, model, device)
        self._tokenizer = getattr(self._processor, "tokenizer", self._processor)

    def first_token(self, image: Image.Image, question: str) -> torch.Tensor:
        """Return ``p_V``."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        if getattr(self._processor, "chat_template", None):
            text = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        else:
            text = f"{getattr(self._processor, 'image_token', '<image>')}\n{question}\nAnswer:"
        inputs = self._processor(images=image.convert("RGB"), text=text, return_tensors="pt").to(self._model.device)
        with torch.no_grad():
            logits_V = self._model(**inputs).logits[0, -1]
        return logits_V.float().softmax(dim=-1).cpu()

    def entries(self, words: Sequence[str]) -> list[int]:
        """First tokens of answers, in all their spellings."""
        spellings = {form for word in words for form in (word, f" {word}", word.capitalize(), f" {word.capitalize()}")}
        return sorted({self._tokenizer(form, add_special_tokens=False).input_ids[0] for form in spellings})


class YesNoJudge:
    """``p = P(yes) / (P(yes) + P(no))`` for "Is there a THING in the image?", from the first token's probabilities.

    Args:
        model: folder or hub id of an image-text-to-text model of transformers.
        question: what is asked.
        device: where to compute.

    Raises:
        BadSetting: if "yes" and "no" begin with the same token.
    """

    def __init__(self, model: str, *, question: str = "Is there a {thing} in the image?", device: str = "cpu") -> None:
        self.name = f"vlm:{model}"
        self._asking, self._question = _Asking(model, device), f"{question} Answer yes or no."
        self._yes, self._no = (self._asking.entries([word]) for word in ("yes", "no"))
        if set(self._yes) & set(self._no):
            raise BadSetting(f"The model {model!r} begins yes and no with the same token.", "Use another model.")

    def __call__(self, images: Sequence[Image.Image], things: Sequence[str]) -> Probabilities:
        """Return the probabilities."""
        answers = np.empty((len(images), len(things)))
        for row, image in enumerate(images):
            for column, thing in enumerate(things):
                p_V = self._asking.first_token(image, self._question.format(thing=thing))
                yes, no = float(p_V[self._yes].sum()), float(p_V[self._no].sum())
                answers[row, column] = yes / max(yes + no, 1e-12)
        return answers


class ChoiceJudge:
    """Asks which of all the things is to be seen, with "none of these" as one of the choices.

    Every question is put twice, with the choices in opposite orders, and the probabilities of the letters are averaged:
    models prefer the first letter.

    Args:
        model: folder or hub id of an image-text-to-text model of transformers.
        question: what is asked.
        device: where to compute.
    """

    def __init__(self, model: str, *, question: str = "Which of these is in the image?", device: str = "cpu") -> None:
        self.name = f"choice:{model}"
        self._asking, self._question = _Asking(model, device), question

    def __call__(self, images: Sequence[Image.Image], things: Sequence[str]) -> Probabilities:
        """Return the probabilities; those of an image add up to at most 1."""
        if len(things) > 25:
            raise BadSetting(f"There are {len(things)} things to choose from.", "Ask for at most 25.")
        choices = [*things, "none of these"]
        answers = np.zeros((len(images), len(things)))
        for row, image in enumerate(images):
            for order in (list(range(len(choices))), list(range(len(choices)))[::-1]):
                shares = self._shares(image, [choices[number] for number in order])
                for share, number in zip(shares, order, strict=True):
                    if number < len(things):
                        answers[row, number] += share / 2
        return answers

    def _shares(self, image: Image.Image, choices: Sequence[str]) -> Any:
        letters = [chr(ord("A") + number) for number in range(len(choices))]
        lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
        p_V = self._asking.first_token(image, f"{self._question}\n{lines}\nAnswer with one letter.")
        values = np.array([float(p_V[self._asking.entries([letter])].sum()) for letter in letters])
        return values / max(values.sum(), 1e-12)
