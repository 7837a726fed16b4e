"""What the positions of a subject are told in cross-attention, beside their scene's prompt.

Legend: ``K`` text position, ``C`` channels.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from t2ictl.casts import Cast
from t2ictl.controls import PlanContext
from t2ictl.spans import Prompt, Span
from t2ictl.subjects import Subject

__all__ = ["Told", "told_texts"]

Told = Literal["portrait", "spliced"]


def told_texts(cast: Cast, context: PlanContext, told: Told) -> dict[tuple[int, int], Tensor]:
    """Encode what subjects are told where no row of the batch says it.

    Args:
        cast: who is in which picture.
        context: the pipeline call.
        told: ``"portrait"``: the portrait's prompt; ``"spliced"``: the scene's, with the portrait's words for the
            subject in the place of its name. That keeps the others of the scene in the text.

    Returns:
        ``states_KC`` by picture and number of the subject (from 1).
    """
    texts: dict[tuple[int, int], str] = {}
    for image in cast.scenes:
        for number, subject in enumerate(cast.who[image], start=1):
            portrait = cast.portraits[image][number - 1]
            if subject is None or (portrait is None and image not in cast.composites):
                continue
            if told == "spliced":
                prompt = context.row_prompts[image]
                text = spliced(prompt, cast.rows[image][number - 1], description(subject, context))
                texts |= {(image, number): text} if text != prompt.text else {}
            elif portrait not in cast.shown:
                texts[image, number] = subject.prompt
    if not texts:
        return {}
    each = list(dict.fromkeys(texts.values()))
    states = dict(zip(each, context.encoded(each).rows, strict=True))
    return {key: states[text] for key, text in texts.items()}


def description(subject: Subject, context: PlanContext) -> str:
    """The words by which a portrait's prompt calls its subject: the object with its attributes that holds its name."""
    prompt = context.adapter.parse(subject.prompt, context.row_prompts[0].parser)
    named = prompt.find(subject.name)
    for phrase in prompt.objects():
        if phrase.span.start <= named.start and named.end <= phrase.span.end:
            return phrase.span.text
    return subject.name


def spliced(prompt: Prompt, name: Span, words: str) -> str:
    """A prompt with other words in the place of a name.

    Example:
        >>> import t2ictl
        >>> prompt = t2ictl.parse(t2ictl.load("shapes"), "a circle and a star")
        >>> spliced(prompt, prompt.find("circle"), "red circle")
        'a red circle and a star'
    """
    return prompt.as_written(prompt.text[: name.start] + words + prompt.text[name.end :])
