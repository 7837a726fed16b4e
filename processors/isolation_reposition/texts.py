"""What the positions of a subject are told in cross-attention, beside their scene's prompt.

Legend: ``K`` text position, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from t2ictl.controls.base import PlanContext
from t2ictl.processors.isolation_reposition.cast import SubjectAssignment
from t2ictl.processors.isolation_reposition.subjects import Subject
from t2ictl.prompts.prompt import Prompt, Span

__all__ = ["SubjectText", "subject_texts"]

SubjectText = Literal["portrait_prompt", "inserted", "in_full"]


def subject_texts(
    assignment: SubjectAssignment, context: PlanContext, subject_text: SubjectText
) -> dict[tuple[int, int], Tensor]:
    """Encode what positions are told where no row of the batch says it.

    Args:
        assignment: who is in which image.
        context: the pipeline call.
        subject_text: ``"portrait_prompt"``: a subject's positions its portrait's prompt; ``"inserted"``: the scene's
            prompt, with the portrait's words for the subject in the place of its name. That keeps the others in the
            text, without their attributes; the background, where anybody may yet appear, is told the attributes of all;
            ``"in_full"``: all positions are.

    Returns:
        ``states_KC`` by image and number of the subject (from 1; 0 for the background, or, spelled, for all).
    """
    texts: dict[tuple[int, int], str] = {}
    for image in assignment.scenes:
        read = [number for number, each in enumerate(assignment.portraits[image], start=1) if each is not None]
        among = range(1, len(assignment.subjects[image]) + 1) if image in assignment.composites else read
        subjects = {
            number: subject for number in among if (subject := assignment.subjects[image][number - 1]) is not None
        }
        if subject_text != "portrait_prompt":
            prompt, spans = context.row_prompts[image], assignment.rows[image]
            words = {spans[number - 1]: description(subject, context) for number, subject in subjects.items()}
            alone = subjects if subject_text == "inserted" else ()
            own = {number: {spans[number - 1]: words[spans[number - 1]]} for number in alone}
            made = {number: spliced(prompt, each) for number, each in ({0: words} | own).items()}
            texts |= {(image, number): text for number, text in made.items() if text != prompt.as_written(prompt.text)}
        else:
            there = [each for each in subjects if assignment.portraits[image][each - 1] not in assignment.shown]
            texts |= {(image, number): subjects[number].prompt for number in there}
    if not texts:
        return {}
    each = list(dict.fromkeys(texts.values()))
    states = dict(zip(each, context.encoded(each).embeds, strict=True))
    return {key: states[text] for key, text in texts.items()}


def description(subject: Subject, context: PlanContext) -> str:
    """The words by which a portrait's prompt calls its subject: the object with all that belongs to it."""
    prompt = context.adapter.parse((subject.prompt,), context.row_prompts[0].parser)
    named = prompt.find(subject.name)
    for group in prompt.object_groups():
        is_its_own = group.noun[0] < named.end and named.start < group.noun[1]
        if is_its_own and group.start <= named.start and named.end <= group.end:
            return group.text
    return subject.name


def spliced(prompt: Prompt, words: Mapping[Span, str]) -> str:
    """A prompt with other words in the place of some.

    Example:
        >>> import t2ictl
        >>> prompt = t2ictl.parse(t2ictl.load("shapes"), "a circle and a star")
        >>> spliced(prompt, {prompt.find("circle"): "red circle"})
        'a red circle and a star'
    """
    text = prompt.text
    for span in sorted(words, key=lambda each: each.start, reverse=True):
        text = text[: span.start] + words[span] + text[span.end :]
    return prompt.as_written(text)
