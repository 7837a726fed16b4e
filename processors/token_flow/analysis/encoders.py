"""The screen of each text encoder by itself: what words have read of each other in CLIP, and what in T5.

A text row may be made of segments: in Stable Diffusion 3 two CLIPs side by side, then T5. What a word has read, it has
read within its segment. So each segment is screened as if it were the row, and the pipeline encodes as ever: words are
hidden from the encoders of one segment, and of what it returns the rows of this segment are taken.

Legend: ``B`` text, ``T`` position of the text row, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from t2ictl.errors import UnsupportedPipeline
from t2ictl.families import find_adapter
from t2ictl.families.text_masking import visible_except
from t2ictl.families.text_states import PromptEmbeds
from t2ictl.processors.token_flow.analysis.screen import ScreenCell, screen
from t2ictl.processors.token_flow.conditions import Conditions
from t2ictl.processors.token_flow.items import Item, bound_items
from t2ictl.prompts.prompt import Prompt

__all__ = ["screen_encoders"]

#: Families whose text encoders get their texts in one call, as whole rows.
READABLE = ("sd", "sdxl", "sd3", "pixart")


def screen_encoders(
    pipe: Any, prompt: str, items: Sequence[Item | str] = (), *, parser: str = "grammar", **how: Any
) -> dict[str, tuple[ScreenCell, ...]]:
    """Measure what each item, and the ends, have read of each item, in every segment of the text row.

    Args:
        pipe: a diffusers pipeline.
        prompt: the prompt.
        items: words or items; empty for all objects that the parser finds.
        parser: who groups words into objects.
        **how: further arguments of ``encode_prompt``, as ``max_sequence_length``.

    Returns:
        By the names of its encoders, joined by ``" + "``, the cells of each segment; pooled states have none.

    Raises:
        UnsupportedPipeline: if the encoders of this family cannot be read one by one.
        SpanNotFound: if an item is not in the prompt.
        BadSetting: if there are no items, or two share words.

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes", device="cpu")
        >>> found = screen_encoders(pipe, "a red circle and a blue square", ["circle", "square"])
        >>> [(name, cells[0].target, cells[0].source, cells[0].is_possible) for name, cells in found.items()]
        [('text_encoder', 'square', 'circle', True)]
    """
    adapter = find_adapter(pipe)
    if adapter.family not in READABLE:
        raise UnsupportedPipeline(
            f"The text encoders of {type(pipe).__name__} cannot be read one by one.",
            f"Use a pipeline of one of the families {', '.join(READABLE)}.",
        )
    whole = adapter.parse((prompt,), parser, how)
    found = {}
    for offset in sorted({each.offset for each in whole.encodings if each.offset is not None}):
        segment = _Segment(pipe=pipe, adapter=adapter, whole=whole, offset=offset, how=how)
        conditions = Conditions(segment.parse(prompt), segment.parse)
        resolved = bound_items(conditions.prompt, items, is_causal=segment.is_causal)
        found[segment.name] = screen(conditions, resolved, segment.encode)
    return found


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """The encoders whose rows begin at one place of the text row.

    Args:
        pipe: the pipeline.
        adapter: its family.
        whole: a prompt, as all encoders read it.
        offset: the place.
        how: further arguments of ``encode_prompt``.
    """

    pipe: Any
    adapter: Any
    whole: Prompt
    offset: int
    how: Mapping[str, Any]

    @property
    def _numbers(self) -> list[int]:
        return [number for number, each in enumerate(self.whole.encodings) if each.offset == self.offset]

    @property
    def name(self) -> str:
        """The names that the encoders have in the pipeline."""
        return " + ".join(f"text_encoder{f'_{number + 1}' if number else ''}" for number in self._numbers)

    @property
    def is_causal(self) -> bool:
        """Whether a word reads only those before it."""
        return any(self.adapter.causal_encoders[number] for number in self._numbers)

    def parse(self, text: str) -> Prompt:
        """Read a text with these encoders alone, in a row that begins with theirs."""
        every: Prompt = self.adapter.parse((text,), self.whole.parser, self.how)
        return replace(every, encodings=tuple(replace(every.encodings[number], offset=0) for number in self._numbers))

    def encode(
        self,
        texts: Sequence[str],
        first: Sequence[int] | None = None,
        seen: Sequence[Tensor] | None = None,
        depth: float = 1.0,
    ) -> PromptEmbeds:
        """Encode texts as the pipeline does, and take this segment; other encoders see all of them."""
        lengths = [len(each.ids) for each in self.whole.encodings]
        masks = None
        if seen is not None:
            masks = [visible_except([()] * len(texts), length) for length in lengths]
            for number, own in zip(self._numbers, seen, strict=True):
                masks[number] = own
        arguments = {"device": self.adapter.device, **self.how}
        states = self.adapter.encode(self.pipe.encode_prompt, arguments, texts, first=first, seen=masks, depth=depth)
        return PromptEmbeds(embeds=states.embeds[:, self.offset : self.offset + lengths[self._numbers[0]]])
