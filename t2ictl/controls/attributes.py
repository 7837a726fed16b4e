"""Concepts with what describes them: the words that a loss of binding is about, for batches of unlike prompts.

Legend: ``B`` batch row, ``N`` word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2ictl.controls.base import Idle, PlanContext
from t2ictl.controls.concepts import Concepts
from t2ictl.prompts.per_prompt import per_prompt
from t2ictl.prompts.prompt import Prompt, Span

__all__ = ["ResolvedConcepts", "resolve_concepts"]


@dataclass(frozen=True, kw_only=True)
class ResolvedConcepts:
    """The words of each image's prompt, and which belong together.

    Args:
        spans: for each image its words: nouns, what describes them, and other words if they were asked for.
        owner_BN: number of the object that a word belongs to; a word of none has a number of its own, padding has -1.
        noun_BN: true where a word is the noun of its object.
        mask_BN: true where a word is real.
        undescribed: images with objects none of which is described by a word.
        word_BN: number of the word that an entry belongs to: entries are words, or tokens of words.
    """

    spans: tuple[tuple[Span, ...], ...]
    owner_BN: Tensor
    noun_BN: Tensor
    mask_BN: Tensor
    undescribed: tuple[int, ...]
    word_BN: Tensor

    @property
    def without_attributes(self) -> tuple[Idle, ...]:
        """Why a control of binding leaves images alone, for its plan."""
        reason = "no word of the prompt describes an object"
        remedy = "Describe an object in the prompt, or name one that is described in concepts=."
        return (Idle(reason=reason, remedy=remedy, images=self.undescribed),) if self.undescribed else ()

    @classmethod
    def from_rows(
        cls, rows: Sequence[Sequence[tuple[Span, int, bool, int]]], device: torch.device | str
    ) -> ResolvedConcepts:
        """Lay out the words of each image as padded tensors.

        Args:
            rows: for each image its entries: span, number of the object, whether it is the noun, number of the word.
            device: where the tensors are needed.

        Returns:
            The words.
        """
        widest = max(max((len(row) for row in rows), default=0), 1)
        owner_BN = torch.full((len(rows), widest), -1, dtype=torch.long)
        word_BN, noun_BN = owner_BN.clone(), torch.zeros(len(rows), widest, dtype=torch.bool)
        for row, listed in enumerate(rows):
            for place, (_, owner, is_noun, word) in enumerate(listed):
                owner_BN[row, place], noun_BN[row, place], word_BN[row, place] = owner, is_noun, word
        return cls(
            spans=tuple(tuple(span for span, *_ in row) for row in rows),
            owner_BN=owner_BN.to(device),
            noun_BN=noun_BN.to(device),
            mask_BN=(owner_BN >= 0).to(device),
            undescribed=tuple(
                image for image, own in enumerate(rows) if own and len({owner for _, owner, *_ in own}) == len(own)
            ),
            word_BN=word_BN.to(device),
        )

    def by_token(self) -> ResolvedConcepts:
        """Return the same with an entry for each token in the place of one for each word."""
        rows = [
            [
                (replace(span, by_encoder=((token,),), offsets=()), int(owner), bool(noun), place)
                for place, (span, owner, noun) in enumerate(zip(spans, owners, nouns, strict=False))
                for token in span.tokens
            ]
            for spans, owners, nouns in zip(self.spans, self.owner_BN.tolist(), self.noun_BN.tolist(), strict=True)
        ]
        return ResolvedConcepts.from_rows(rows, self.owner_BN.device)

    @property
    def nouns_BN(self) -> Tensor:
        """True where a word is real, and the noun of its object."""
        return self.noun_BN & self.mask_BN


def resolve_concepts(
    concepts: Concepts, context: PlanContext, *, control: str, others: bool = False
) -> ResolvedConcepts:
    """Find the objects of each image with what describes them.

    Args:
        concepts: nouns for every prompt; or one list for each prompt; or nothing, for all objects that are found. What
            describes a named noun is found in the prompt.
        context: the pipeline call.
        control: name of the control, for messages.
        others: also all other words of the prompt.

    Returns:
        The words.

    Raises:
        SpanNotFound: if a named word is not in its prompt.
        BadSetting: if there is one list a prompt, and their numbers differ; or if two named nouns share words.
    """
    words = per_prompt(concepts, len(context.prompts), setting=f"{control}.concepts", things="words")
    found = [_words_of(prompt, own, others) for prompt, own in zip(context.prompts, words, strict=True)]
    rows = [found[entry.prompt] for entry in context.batch.only("cond").rows]
    numbered = [[(*entry, place) for place, entry in enumerate(row)] for row in rows]
    return ResolvedConcepts.from_rows(numbered, context.adapter.device)


def _words_of(prompt: Prompt, named: Sequence[str], others: bool) -> list[tuple[Span, int, bool]]:
    """Words with the number of their object, and whether they are its noun."""
    phrases = prompt.objects()
    nouns = prompt.find_apart(named) if named else tuple(phrase.noun for phrase in phrases)
    by_tokens = {phrase.noun.by_encoder: phrase.attributes for phrase in phrases}
    listed: list[tuple[Span, int, bool]] = []
    for number, noun in enumerate(nouns):
        listed.append((noun, number, True))
        listed += [(span, number, False) for span in by_tokens.get(noun.by_encoder, ())]
    if others and nouns:
        taken = {token for span, _, _ in listed for token in span.tokens}
        rest = [span for span in prompt.words() if span.is_read and not taken & set(span.tokens)]
        listed += [(span, len(nouns) + number, False) for number, span in enumerate(rest)]
    return listed
