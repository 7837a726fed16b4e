"""The words of a call: from its prompt, from embeddings that this session has seen, or from the user."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from t2ictl.errors import PromptUnknown
from t2ictl.families import Adapter, Encoded
from t2ictl.prompts.prompt import Prompt

__all__ = ["PromptCache"]


@dataclass(frozen=True)
class _Seen:
    """Embeddings that the session's pipeline encoded: their words, and whether a control has edited them."""

    embeddings: weakref.ref[Tensor]
    prompts: tuple[Prompt, ...]
    is_edited: bool


@dataclass
class PromptCache:
    """What a session knows of words.

    Args:
        adapter: the pipeline's family.
        given: the prompts that the user named for calls with embeddings only.
        parser: how objects and attributes are found.
    """

    adapter: Adapter
    given: Sequence[str] | None
    parser: str
    seen: list[_Seen] = field(default_factory=list)

    def prompts_of(self, encoded: Encoded) -> tuple[Prompt, ...] | None:
        """Return the parsed prompt of each text that the pipeline was given, or None where nobody knows the words.

        Args:
            encoded: what the pipeline encodes.

        Returns:
            One prompt for each text, or for each row of embeddings.

        Raises:
            PromptUnknown: if the prompts that the user named do not fit the embeddings.
        """
        if encoded.texts is not None:
            return tuple(self.adapter.parse(texts, self.parser) for texts in encoded.texts)
        assert encoded.embeddings is not None
        known = self._find(encoded.embeddings)
        if known is not None:
            return known.prompts
        if self.given is None:
            return None
        rows, tokens = encoded.embeddings.shape[:2]
        found = tuple(self.adapter.parse((text,), self.parser) for text in self.given)
        lengths = {len(encoding.ids) for prompt in found for encoding in prompt.encodings}
        if len(found) not in (1, rows) or lengths != {tokens}:
            raise PromptUnknown(
                f"prompt= names {len(found)} prompts of {sorted(lengths)} tokens, and the embeddings have "
                f"{rows} rows of {tokens}.",
                "Give the prompts from which the embeddings were made, one for each row.",
            )
        return found * (rows // len(found))

    def are_edited(self, embeddings: Tensor | None) -> bool:
        """Return whether a control of this session has edited these embeddings already.

        Args:
            embeddings: what the pipeline was given, or None.

        Returns:
            True only for the very tensor that came out of an edited ``encode_prompt``.
        """
        known = None if embeddings is None else self._find(embeddings)
        return known is not None and known.is_edited

    def remember(self, embeddings: Tensor, prompts: tuple[Prompt, ...] | None, *, is_edited: bool) -> None:
        """Keep the words of embeddings: the user may come back with this tensor. Nothing is kept alive for it.

        Args:
            embeddings: what ``encode_prompt`` returned, one row an image.
            prompts: the prompt of each image, if known.
            is_edited: whether a control has edited the rows.
        """
        self.seen = [each for each in self.seen if each.embeddings() is not None]
        if prompts is not None:
            self.seen.append(_Seen(weakref.ref(embeddings), prompts, is_edited))

    def _find(self, embeddings: Tensor) -> _Seen | None:
        return next((each for each in self.seen if each.embeddings() is embeddings), None)
