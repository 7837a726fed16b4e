"""The words of a call: from its prompt, from embeddings that this session has seen, or from the user."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from t2ictl.errors import PromptUnknown
from t2ictl.families import Adapter, Encoded
from t2ictl.families.text_states import Encode
from t2ictl.prompts.prompt import Prompt

__all__ = ["PromptCache", "by_image"]

# Rows of the same word lie on one line but for rounding (0.9999 in bfloat16), those of others at 0.99 at most.
_SAME = 0.998


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

    def prompts_of(self, encoded: Encoded, encode: Encode) -> tuple[Prompt, ...] | None:
        """Return the parsed prompt of each text that the pipeline was given, or None where nobody knows the words.

        Args:
            encoded: what the pipeline encodes.
            encode: encodes other texts in the same way.

        Returns:
            One prompt for each text, or for each row of embeddings.

        Raises:
            PromptUnknown: if the prompts that the user named do not spell the embeddings.
        """
        if encoded.texts is not None:
            return tuple(self.adapter.parse(texts, self.parser, encoded.how) for texts in encoded.texts)
        assert encoded.embeddings is not None
        known = self._find(encoded.embeddings)
        if known is not None:
            return known.prompts
        if self.given is None:
            return None
        rows, tokens = encoded.embeddings.shape[:2]
        own = self.adapter.how_long(tokens)
        found = tuple(self.adapter.parse((text,), self.parser, own) for text in self.given)
        lengths = {self.adapter.embeds_length(prompt, own) for prompt in found}
        if len(found) not in (1, rows) or lengths != {tokens}:
            raise PromptUnknown(
                f"prompt= names {len(found)} prompts of {sorted(lengths)} tokens, and the embeddings have "
                f"{rows} rows of {tokens}.",
                _long(tokens, max(lengths))
                or "Name the prompts from which the embeddings were made, one for each row.",
            )
        found = found * (rows // len(found))
        self._check_spelling(encoded.embeddings, found, encode)
        return found

    def window_problem(self, embeddings: Tensor | None) -> str:
        """Explain why no prompt can be named for embeddings that are longer than a prompt.

        Args:
            embeddings: what the pipeline was given, or None.

        Returns:
            A sentence or two; empty where one can be named.
        """
        if embeddings is None:
            return ""
        tokens = embeddings.shape[1]
        # A row of words has the length of one window, whatever the words are.
        how = self.adapter.how_long(tokens)
        return _long(tokens, self.adapter.embeds_length(self.adapter.parse(("",), self.parser, how), how))

    def _check_spelling(self, embeddings: Tensor, prompts: Sequence[Prompt], encode: Encode) -> None:
        """Compare with what the pipeline itself makes of the words; weighted words are still the same words."""
        if not self.adapter.can_encode or not self.adapter.spells_embeddings:
            return
        read = [prompt.encodings[0] for prompt in prompts]
        ends = [each.end if "end" in each.roles else each.end - 1 for each in read]  # else the last word has read all
        texts = [prompt.text for prompt in prompts]
        try:
            own = encode([*texts, ""]).embeds
        except Exception:  # an encoder that is not the one of these embeddings may fit no prompt of theirs
            return
        if own.shape[1:] != embeddings.shape[1:]:
            return  # another encoder has made them, and only that could tell
        wrong = [row for row, end in enumerate(ends) if not _spells(embeddings[row], own[row], own[-1], end)]
        if wrong:
            raise PromptUnknown(
                f"prompt= does not spell the embeddings: the pipeline itself makes others of {texts[wrong[0]]!r}, "
                "and words would be sought at wrong places.",
                "Name the words without the weights or marks of an embedding library, and call with the clip_skip with "
                "which they were encoded; or encode them inside the session with pipe.encode_prompt.",
            )

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


def by_image(prompts: tuple[Prompt, ...] | None, encoded: Encoded) -> tuple[Prompt, ...] | None:
    """Return the prompt of each image, where prompts are known.

    Args:
        prompts: one for each text.
        encoded: what the pipeline encodes.
    """
    return None if prompts is None else tuple(prompts[row.prompt] for row in encoded.batch.only("cond").rows)


def _long(tokens: int, window: int) -> str:
    if tokens <= window:
        return ""
    return (
        f"Embeddings of several windows cannot be controlled by words: these are located in one window of {window} "
        "positions. Encode a prompt that fits into one, or use no control that needs words."
    )


def _spells(given_TC: Tensor, own_TC: Tensor, empty_TC: Tensor, end: int) -> bool:
    """Whether embeddings are those of a text, but for weights of its words.

    Libraries weight a word by stretching its row, from nothing or from that of the empty text. Every row of another
    text differs from its first other word on, and the row of its end most surely.
    """
    given_TC, own_TC, empty_TC = (each.detach().float().cpu() for each in (given_TC, own_TC, empty_TC))
    lines = ((given_TC, own_TC), (given_TC - empty_TC, own_TC - empty_TC))
    likeness_T = torch.stack([torch.cosine_similarity(*line, dim=-1) for line in lines]).amax(0)
    return bool(likeness_T[end] > _SAME or (likeness_T[1:end] > _SAME).all())
