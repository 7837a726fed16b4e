"""Subjects: someone, or something, that shall look the same in several images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from t2ictl.controls.layouts import Mask, Region
from t2ictl.errors import BadSetting, SpanNotFound
from t2ictl.maps.masks import box_mask
from t2ictl.prompts.prompt import Prompt, Span
from t2ictl.prompts.queries import check_apart
from t2ictl.settings.fields import setting, settings_class
from t2ictl.settings.images import ImageField

__all__ = ["Subject", "named_spans", "subject_spans"]


@settings_class
class Subject:
    """Someone, or something, that shall look the same in several images.

    Args:
        name: the word or phrase by which prompts call it.
        prompt: the prompt of the image that shows it alone (its portrait).
        image: an image that shows it, in the place of a portrait that is generated: file, PIL image or array.
        box: where it is in its portrait, edges as fractions; or
        mask: the same as an image file, image, array or nested list; neither: where its word looks.

    Raises:
        BadSetting: without name or prompt, or with box and mask.

    Example:
        >>> Subject(name="cat", prompt="a photo of a cat").box is None
        True
    """

    name: str = setting(default="", help="the word or phrase by which prompts call it")
    prompt: str = setting(default="", help="prompt of the image that shows it alone")
    image: ImageField | None = setting(default=None, help="an image that shows it; empty: it is generated")
    box: tuple[float, float, float, float] | None = setting(default=None, help="where it is there: x0, y0, x1, y1")
    mask: Mask | None = setting(default=None, help="where it is there: image file or array")

    def __post_init__(self) -> None:
        if not self.name or not self.prompt:
            raise BadSetting(f"The subject {self.name!r} is not clear.", "Give a name and the prompt of its portrait.")
        if self.box is not None and self.mask is not None:
            raise BadSetting(f"The subject {self.name!r} has a box and a mask.", "Give one of them.")
        if self.box is not None:
            box_mask(self.box, 1, 1)  # raises for edges in the wrong order

    @property
    def region(self) -> Region | None:
        """Where it is in its portrait, if that was said."""
        if self.box is None and self.mask is None:
            return None
        return Region(word=self.name, box=self.box, mask=self.mask)


def named_spans(prompt: Prompt, names: Iterable[str]) -> dict[str, Span]:
    """Find the subjects that a prompt names, each at the first place that is not inside a longer name.

    A "bear" inside a "teddy bear" is not another subject; one behind it is.

    Args:
        prompt: the prompt.
        names: the subjects.

    Returns:
        The places of those that are there, by name.
    """
    places = {name: list(_places(prompt, name)) for name in names}
    tokens = [{*span.tokens} for spans in places.values() for span in spans]
    free = {
        name: next((span for span in spans if not any({*span.tokens} < other for other in tokens)), None)
        for name, spans in places.items()
    }
    return {name: span for name, span in free.items() if span is not None}


def subject_spans(prompt: Prompt, names: Sequence[str], others: Iterable[str] = ()) -> tuple[Span, ...]:
    """Find subjects that have to be in a prompt.

    Args:
        prompt: the prompt.
        names: the subjects.
        others: further names, inside of which they are not meant.

    Returns:
        Their places, in the order of the names.

    Raises:
        SpanNotFound: if one is not in the prompt.
        BadSetting: if two share words: they would be kept apart from themselves.
    """
    placed = named_spans(prompt, dict.fromkeys((*names, *others)))
    spans = tuple(placed.get(name) or prompt.find(name) for name in names)
    check_apart(prompt.text, spans, names, "subjects")
    return spans


def _places(prompt: Prompt, name: str) -> Iterator[Span]:
    """All places of a name; of one with a number that place alone."""
    try:
        yield prompt.find(name)
        occurrence = 2
        while True:
            yield prompt.find(name, occurrence)
            occurrence += 1
    except (SpanNotFound, BadSetting):  # there is no other one, or the name has its own number
        return
