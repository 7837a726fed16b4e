"""Adapters: everything that is true of one pipeline family, so that nothing else has to ask."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from t2ictl.attention.layers import Layer
from t2ictl.errors import UnsupportedPipeline
from t2ictl.families.arguments import Encoded
from t2ictl.families.checks import check_gradients, refuse_compiled
from t2ictl.families.rows import KnownRows
from t2ictl.families.text_depth import truncated_encoder
from t2ictl.families.text_masking import masked_tokens
from t2ictl.families.text_positions import position_offset
from t2ictl.families.text_states import PromptEmbeds
from t2ictl.ports.base import DenoiserPort
from t2ictl.prompts.prompt import Prompt

__all__ = ["Adapter", "Encoded", "Offer"]

Offer = Literal["maps", "self_maps", "values", "rows", "encoders", "features"]
"""What a family offers and a control needs: ``maps`` of words over the image; ``self_maps`` of the image over itself;
``values`` of cross-attention that may come of other text; text ``rows`` that may be rewritten, weighted and moved;
``encoders`` whose tokens may be hidden; ``features`` of self-attention that images may share."""

# Arguments of encode_prompt that say how, and not what, is encoded.
_HOW = ("device", "lora_scale", "clip_skip", "max_sequence_length", "clean_caption", "complex_human_instruction")


class Adapter(ABC):
    """One pipeline family.

    Args:
        pipe: the user's pipeline. The adapter reads from it and changes nothing.

    Raises:
        UnsupportedPipeline: if something about this pipeline keeps a session from working.
    """

    family: ClassVar[str]
    """Short name, for settings and messages."""
    title: ClassVar[str]
    """Name that people know."""
    offers: ClassVar[frozenset[Offer]]
    port_class: ClassVar[type[DenoiserPort]]
    text_is_causal: ClassVar[bool] = True
    """Whether in every encoder a word of the text reads only those before it, as in CLIP."""
    spells_embeddings: ClassVar[bool] = False
    """Whether embeddings can be compared with words by encoding these again: rows of causal encoders, row by row."""
    needed_arguments: ClassVar[tuple[str, ...]] = ("prompt", "num_images_per_prompt")
    """What a session reads of a call of ``encode_prompt``."""
    guidance_first: ClassVar[bool] = True
    """Whether unconditional rows come before the conditional ones, where both are alike."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.denoiser = self._component()
        self.port = self.port_class(self.denoiser)
        self.check_denoiser()

    @staticmethod
    @abstractmethod
    def matches(pipe: Any) -> bool:
        """Return whether a pipeline is of this family."""

    # -- words ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def tokenizers(self) -> tuple[Any, ...]:
        """The tokenizers whose rows the attention to text reads, in order."""

    @property
    @abstractmethod
    def pads_with_end(self) -> bool:
        """Whether empty positions repeat the end token, as in SD 1.x, or hold another one, as in SD 2.x."""

    @abstractmethod
    def encoded(self, arguments: Mapping[str, Any]) -> Encoded:
        """Read the bound arguments of a call of the pipeline's ``encode_prompt``."""

    @abstractmethod
    def parse(self, texts: Sequence[str], parser: str = "grammar", how: Mapping[str, Any] | None = None) -> Prompt:
        """Parse one prompt.

        Args:
            texts: the text of each encoder; one text stands for all.
            parser: the grouping of objects and attributes.
            how: arguments of ``encode_prompt`` on which it depends how a text is read; None: as a call by itself.

        Returns:
            The prompt with its tokens in each encoder. Multi-vector placeholders of textual
            inversion are expanded first, as the pipeline itself does.
        """

    def how_long(self, tokens: int) -> Mapping[str, Any]:
        """Return how texts were read whose rows have so many positions; nothing where rows have one length."""
        return {}

    @property
    def own_arguments(self) -> dict[str, Any]:
        """Arguments of a call that this model wants otherwise than the pipeline has them by itself."""
        return {}

    def embeds_length(self, prompt: Prompt, how: Mapping[str, Any]) -> int:
        """Return how long the rows are that a call takes in the place of a prompt (tokens).

        Args:
            prompt: the prompt, as :meth:`parse` returns it.
            how: how its text was read.
        """
        return prompt.row_length

    @property
    def causal_encoders(self) -> tuple[bool, ...]:
        """For each text encoder whether a word reads only those before it."""
        return (self.text_is_causal,) * len(self.tokenizers)

    # -- layers and sizes -------------------------------------------------------------------

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The attention layers, in the order in which the denoiser runs them."""
        return self.port.layers

    @property
    def word_layers(self) -> tuple[Layer, ...]:
        """The layers in which places of the image attend to words."""
        return tuple(layer for layer in self.layers if layer.has_words)

    @cached_property
    @abstractmethod
    def semantic_layers(self) -> tuple[Layer, ...]:
        """The layers in whose maps words have shape: those that losses read and records keep by default."""

    @property
    def semantic_stride(self) -> int:
        """Latent cells per cell of the maps in which words have shape."""
        return min(layer.stride for layer in self.semantic_layers)

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width (pixels) of the images that the pipeline makes when it is not told a size."""
        height, width = self.port.native_cells
        return height * self._cell, width * self._cell

    @property
    def size_multiple(self) -> int:
        """What height and width of an image must be a multiple of (pixels)."""
        return self._cell * self.port.cell_multiple

    @property
    def _cell(self) -> int:
        """Pixels of a latent cell along each side."""
        return int(self.pipe.vae_scale_factor)

    def cells(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of the latent of an image.

        Args:
            size: height and width of the image (pixels); None for the model's own.

        Returns:
            Cells.
        """
        height, width = self.native_size if size is None else size
        return height // self._cell, width // self._cell

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes; under offloading its weights may wait elsewhere."""
        found = getattr(self.pipe, "_execution_device", None)  # goes through all modules, so it is not asked for twice
        return torch.device(self.denoiser.device if found is None else found)

    # -- text states ------------------------------------------------------------------------

    def text_states(self, result: tuple[Any, ...]) -> PromptEmbeds:
        """Read the conditional text states from what ``encode_prompt`` returned.

        Args:
            result: its return value.

        Returns:
            The states, one row an image.
        """
        return PromptEmbeds(embeds=result[0])

    def with_text_states(self, result: tuple[Any, ...], states: PromptEmbeds) -> tuple[Any, ...]:
        """Put other conditional text states in the place of those that ``encode_prompt`` returned.

        Args:
            result: its return value.
            states: the states to use.

        Returns:
            A new return value.
        """
        return (states.embeds.to(result[0].dtype), *result[1:])

    def known_rows(self, results: Sequence[tuple[Any, ...]]) -> KnownRows:
        """Read the text rows that the denoiser will be called with.

        Args:
            results: what ``encode_prompt`` returned, for each of its calls before the first pass.

        Returns:
            Rows by role.
        """
        return KnownRows(cond=(results[0][0],))

    def encode(
        self,
        encode_prompt: Any,
        arguments: Mapping[str, Any],
        texts: Sequence[str],
        first: Sequence[int] | None = None,
        seen: Sequence[Tensor] | None = None,
        depth: float = 1.0,
    ) -> PromptEmbeds:
        """Encode other texts as a call of ``encode_prompt`` encodes its prompt.

        Args:
            encode_prompt: the pipeline's own.
            arguments: the bound arguments of the call; its device, LoRA scale and skipped layers count.
            texts: the texts.
            first: for each text the position from which on its words are read; None: from 1.
            seen: for each encoder ``seen_BK``, the positions that it may read of each text; None: all.
            depth: share of the encoders' layers that read.

        Returns:
            The states, one row a text.

        Raises:
            UnsupportedPipeline: if a text encoder was taken out of the pipeline, or cannot read in that way.
        """
        if getattr(self.pipe, "text_encoder", None) is None and getattr(self.pipe, "text_encoder_2", None) is None:
            raise UnsupportedPipeline(
                "This control encodes texts of its own, and the pipeline has no text encoder (any more).",
                "Keep the text encoders until the call is over.",
            )
        kept = {name: arguments[name] for name in _HOW if name in arguments}
        names = ("text_encoder", "text_encoder_2", "text_encoder_3")
        encoders = [each for name in names if (each := getattr(self.pipe, name, None)) is not None]
        with torch.no_grad(), ExitStack() as reading:
            if first is not None:
                reading.enter_context(position_offset(encoders, first))
            if seen is not None:
                reading.enter_context(masked_tokens(encoders, seen, are_causal=self.causal_encoders))
            if depth < 1:
                reading.enter_context(truncated_encoder(encoders, depth))
            result = encode_prompt(
                **self.prompt_arguments(texts), num_images_per_prompt=1, do_classifier_free_guidance=False, **kept
            )
        return self.text_states(result)

    def prompt_arguments(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return the arguments by which ``encode_prompt`` is given texts, the same for all text encoders.

        Args:
            texts: the texts.

        Returns:
            Value by name.
        """
        return {"prompt": list(texts)}

    @property
    def can_encode(self) -> bool:
        """Whether every tokenizer still has its text encoder."""
        both = ((f"tokenizer{each}", f"text_encoder{each}") for each in ("", "_2", "_3"))
        return all(
            getattr(self.pipe, encoder, None) is not None
            for tokenizer, encoder in both
            if getattr(self.pipe, tokenizer, None) is not None
        )

    def encode_signature(self, encode_prompt: Any) -> inspect.Signature:
        """Find the arguments by which ``encode_prompt`` is called.

        A method that passes everything on (``*args, **kwargs``) has those of the class above it.

        Args:
            encode_prompt: what stands at the pipeline.

        Returns:
            Its signature, without ``self``.

        Raises:
            UnsupportedPipeline: if prompts, or the rows of the batch, are not among its arguments.
        """
        above = (vars(cls).get("encode_prompt") for cls in type(self.pipe).__mro__)
        bound = (each.__get__(self.pipe) for each in above if each is not None and hasattr(each, "__get__"))
        for each in (encode_prompt, *bound):
            signature = inspect.signature(each)
            if set(self.needed_arguments) <= signature.parameters.keys():
                return signature
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
                break
        raise UnsupportedPipeline(
            f"{type(self.pipe).__name__}.encode_prompt has no {', '.join(self.needed_arguments)}, from which a session "
            f"learns the prompt and its batch; it has: "
            f"{', '.join(inspect.signature(encode_prompt).parameters) or 'nothing'}.",
            "Call the plain pipeline of the family with the same parts.",
        )

    # -- the denoiser -----------------------------------------------------------------------

    def _component(self) -> Any:
        return getattr(self.pipe, self.port_class.component)

    def check_denoiser(self) -> None:
        """See that the denoiser is the one that this adapter knows, and runs as it is written.

        Raises:
            UnsupportedPipeline: if it was replaced, or if it or a part of it is compiled.
        """
        if self._component() is not self.denoiser:
            raise UnsupportedPipeline(
                "The pipeline's denoiser was replaced after the session was opened.",
                "Set it first, then open the session.",
            )
        refuse_compiled(self.denoiser)

    def check_gradients(self) -> None:
        """See that a gradient can be taken through the denoiser.

        Raises:
            UnsupportedPipeline: with the reason why not.
        """
        check_gradients(self.denoiser)
