"""What pipelines with a transformer have in common: which blocks words are read in, and how prompts are encoded.

The blocks of each family are a guess from published figures, not yet measured on released weights; `t2ictl maps --by
depth` measures them on a model (docs/transformers.md).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from t2ictl.attention.layers import Kind, Layer
from t2ictl.families.arguments import Encoded, batch_layout, negative_texts, texts_by_prompt
from t2ictl.families.base import Adapter
from t2ictl.families.checks import refuse_cached
from t2ictl.prompts.prompt import Prompt
from t2ictl.prompts.tokens import Encoding, encode

__all__ = ["TransformerAdapter", "default_argument"]


class TransformerAdapter(Adapter):
    """A pipeline with a transformer."""

    text_is_causal = False
    pads_with_end = False
    denoiser_class: ClassVar[type]
    """Class of the transformer, by which a pipeline is known."""
    prompt_names: ClassVar[tuple[str, ...]] = ("prompt",)
    """For each tokenizer the argument that holds its prompt."""
    negative_names: ClassVar[tuple[str, ...]] = ("negative_prompt",)
    semantic_kind: ClassVar[Kind] = "cross"
    """Kind of the layers in whose maps words have shape."""
    semantic_depths: ClassVar[tuple[float, float]]
    """From which to which share of these layers, in the order in which they run."""
    longest_text: ClassVar[int]
    """Length of a text row where a call does not say it (tokens)."""

    @classmethod
    def matches(cls, pipe: Any) -> bool:
        """Return whether a pipeline has this family's transformer."""
        return isinstance(getattr(pipe, "transformer", None), cls.denoiser_class) and hasattr(pipe, "encode_prompt")

    def check_denoiser(self) -> None:
        """See that the transformer is the one that this adapter knows, and runs as it is written."""
        super().check_denoiser()
        refuse_cached(self.denoiser)

    @cached_property
    def semantic_layers(self) -> tuple[Layer, ...]:
        """The layers between the two depths, at least one."""
        layers = [layer for layer in self.layers if layer.kind == self.semantic_kind]
        first, last = (int(share * len(layers)) for share in self.semantic_depths)
        return tuple(layers[first : max(last, first + 1)])

    # -- words ------------------------------------------------------------------------------

    def encoded(self, arguments: Mapping[str, Any]) -> Encoded:
        """Read prompts, embeddings and batch layout, and how texts are read."""
        embeddings = arguments.get("prompt_embeds")
        found = texts_by_prompt(arguments, self.prompt_names)
        texts, count = (found, len(found)) if embeddings is None else (None, len(embeddings))
        return Encoded(
            texts=texts,
            embeddings=embeddings,
            batch=batch_layout(arguments, count),
            negatives=negative_texts(arguments, count, self.negative_names),
            how=self.how(arguments),
        )

    def how(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments of ``encode_prompt`` on which it depends how a text is read."""
        length = arguments.get("max_sequence_length")
        return {} if length is None else {"max_sequence_length": int(length)}

    def parse(self, texts: Sequence[str], parser: str = "grammar", how: Mapping[str, Any] | None = None) -> Prompt:
        """Parse one prompt, in the row that the transformer reads."""
        own = [texts[min(number, len(texts) - 1)] for number in range(len(self.tokenizers))]
        return Prompt.from_encodings(own[0], self.encodings(own, how or {}), parser)

    def encodings(self, texts: Sequence[str], how: Mapping[str, Any]) -> tuple[Encoding, ...]:
        """Read the text of each tokenizer, with the offset of its row.

        Args:
            texts: one for each tokenizer.
            how: as :meth:`how` returns it; empty: as a call by itself has it.
        """
        length = self.text_length(how)
        return tuple(encode(text, each, length) for text, each in zip(texts, self.tokenizers, strict=True))

    def text_length(self, how: Mapping[str, Any]) -> int:
        """Return the length of a row of the last tokenizer (tokens)."""
        own = how.get("max_sequence_length")
        return int(own or default_argument(self.pipe, "max_sequence_length") or self.longest_text)

    def how_long(self, tokens: int) -> Mapping[str, Any]:
        """Return how texts were read whose rows have so many positions."""
        return {"max_sequence_length": tokens}


def default_argument(pipe: Any, name: str) -> Any:
    """Return the value that an argument of a pipeline's call has by itself; None if it has no such argument.

    Args:
        pipe: a diffusers pipeline.
        name: of the argument.
    """
    found = inspect.signature(type(pipe).__call__).parameters.get(name)
    return None if found is None or found.default is inspect.Parameter.empty else found.default
