"""Adapters: everything that is true of one pipeline family, so that nothing else has to ask."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.layers import Layer
from t2ictl.errors import UnsupportedPipeline
from t2ictl.families.text_depth import truncated_encoder
from t2ictl.families.text_masking import masked_tokens
from t2ictl.families.text_positions import position_offset
from t2ictl.families.text_states import PromptEmbeds
from t2ictl.families.unet import unet_layers
from t2ictl.prompts.prompt import Prompt

__all__ = ["Adapter", "Encoded"]


# Arguments of encode_prompt that say how, and not what, is encoded.
_HOW = ("device", "lora_scale", "clip_skip")

# What a session reads of a call of encode_prompt.
_NEEDED = ("prompt", "num_images_per_prompt", "do_classifier_free_guidance")

# Names under which diffusers registers its hooks of group offloading and of layerwise casting.
WEIGHTS_AWAY = {"group_offloading", "lazy_prefetch_group_offloading", "layerwise_casting"}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What one call of ``encode_prompt`` was asked for.

    Args:
        texts: for each prompt the text of each encoder; None if the caller gave embeddings only.
        embeddings: the embeddings that the caller gave, or None.
        batch: the rows of the batch that the denoiser will see.
        negatives: for each prompt the negative text of each encoder; empty where the caller gave none.
    """

    texts: tuple[tuple[str, ...], ...] | None
    embeddings: Tensor | None
    batch: BatchLayout
    negatives: tuple[tuple[str, ...], ...] = ()


class Adapter(ABC):
    """One pipeline family.

    Args:
        pipe: the user's pipeline. The adapter reads from it and changes nothing.

    Raises:
        UnsupportedPipeline: if something about this pipeline keeps a session from working.
    """

    family: ClassVar[str]
    text_is_causal: ClassVar[bool] = True
    """Whether a word of the text reads only those before it, as in CLIP."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.denoiser: UNet2DConditionModel = pipe.unet
        self.check_denoiser()

    @staticmethod
    @abstractmethod
    def matches(pipe: Any) -> bool:
        """Return whether a pipeline is of this family."""

    @property
    @abstractmethod
    def tokenizers(self) -> tuple[Any, ...]:
        """The tokenizers whose rows the cross-attention reads, in order."""

    @abstractmethod
    def encoded(self, arguments: Mapping[str, Any]) -> Encoded:
        """Read the bound arguments of a call of the pipeline's ``encode_prompt``."""

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The attention layers, in the order in which the denoiser runs them."""
        return unet_layers(self.denoiser)

    @cached_property
    def semantic_stride(self) -> int:
        """Latent cells per cell of the maps in which words have shape.

        Published methods read 16 x 16 maps of SD 1.x and 32 x 32 of SDXL: a quarter of the
        latent's side. A model of smaller latents (the embedded one) keeps at least 16 cells a
        side. It depends on the model alone, so that another image size reads the same layers.
        """
        sample = self.denoiser.config.sample_size or 64
        side = min(sample) if isinstance(sample, Sequence) else sample
        factors = sorted({layer.stride for layer in self.layers if layer.kind == "cross"})
        fitting = [factor for factor in factors if factor <= 4 and side / factor >= 16]
        return max(fitting, default=factors[0])

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width (pixels) of the images that the pipeline makes when it is not told a size."""
        own, factor = self.denoiser.config.sample_size, int(self.pipe.vae_scale_factor)
        height, width = (own, own) if isinstance(own, int) else own
        return height * factor, width * factor

    def cells(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Height and width of the latent of an image.

        Args:
            size: height and width of the image (pixels); None for the model's own.

        Returns:
            Cells.
        """
        height, width = self.native_size if size is None else size
        factor = int(self.pipe.vae_scale_factor)
        return height // factor, width // factor

    @property
    def pads_with_end(self) -> bool:
        """Whether empty positions repeat the end token, as in SD 1.x, or hold another one, as in SD 2.x."""
        tokenizer = self.tokenizers[0]
        return bool(tokenizer.pad_token_id == tokenizer.eos_token_id)

    @property
    def latent_channels(self) -> int:
        """Channels of the latent; a denoiser for inpainting gets more, of which these come first."""
        return int(self.denoiser.config.out_channels)

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes; under offloading its weights may wait elsewhere."""
        found = getattr(self.pipe, "_execution_device", None)  # goes through all modules, so it is not asked for twice
        return torch.device(self.denoiser.device if found is None else found)

    def parse(self, texts: Sequence[str], parser: str = "grammar") -> Prompt:
        """Parse one prompt.

        Args:
            texts: the text of each encoder; one text stands for all.
            parser: the grouping of objects and attributes.

        Returns:
            The prompt with its tokens in each encoder. Multi-vector placeholders of textual
            inversion are expanded first, as the pipeline itself does.
        """
        own = [texts[min(number, len(texts) - 1)] for number in range(len(self.tokenizers))]
        convert = getattr(self.pipe, "maybe_convert_prompt", None)
        if convert is not None:
            own = [convert(text, tokenizer) for text, tokenizer in zip(own, self.tokenizers, strict=True)]
        return Prompt.parse(own[0], self.tokenizers, texts=own, parser=parser)

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
        names = ("text_encoder", "text_encoder_2")
        encoders = [each for name in names if (each := getattr(self.pipe, name, None)) is not None]
        with torch.no_grad(), ExitStack() as reading:
            if first is not None:
                reading.enter_context(position_offset(encoders, first))
            if seen is not None:
                reading.enter_context(masked_tokens(encoders, seen, is_causal=self.text_is_causal))
            if depth < 1:
                reading.enter_context(truncated_encoder(encoders, depth))
            result = encode_prompt(
                prompt=list(texts), num_images_per_prompt=1, do_classifier_free_guidance=False, **kept
            )
        return self.text_states(result)

    @property
    def can_encode(self) -> bool:
        """Whether every tokenizer still has its text encoder."""
        both = ((f"tokenizer{each}", f"text_encoder{each}") for each in ("", "_2"))
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
            if set(_NEEDED) <= signature.parameters.keys():
                return signature
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
                break
        raise UnsupportedPipeline(
            f"{type(self.pipe).__name__}.encode_prompt has no {', '.join(_NEEDED)}, from which a session learns the "
            f"prompt and its batch; it has: {', '.join(inspect.signature(encode_prompt).parameters) or 'nothing'}.",
            "Call the plain pipeline of the family with the same parts.",
        )

    def check_denoiser(self) -> None:
        """See that the denoiser is the one that this adapter knows, and runs as it is written.

        Raises:
            UnsupportedPipeline: if it was replaced, or if it or a part of it is compiled.
        """
        if self.pipe.unet is not self.denoiser:
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
        if any(parameter.is_meta for parameter in self.denoiser.parameters()):
            raise UnsupportedPipeline(
                "The denoiser's weights are not in memory (sequential CPU offload), so no gradient can pass through.",
                "Use pipe.enable_model_cpu_offload(), which keeps one whole model at a time.",
            )
        hooks = {name for each in self.denoiser.modules() for name in hook_names(each)}
        if hooks & WEIGHTS_AWAY:
            found = ", ".join(sorted(hooks & WEIGHTS_AWAY))
            raise UnsupportedPipeline(
                f"The denoiser's weights are moved or cast away after each layer ({found}), "
                "and the backward pass would not find them.",
                "Use pipe.enable_model_cpu_offload() in place of group offloading or layerwise casting.",
            )


def hook_names(module: nn.Module) -> tuple[str, ...]:
    """Name the hooks of diffusers that a module carries.

    Args:
        module: any module.

    Returns:
        Their names, in the order in which they were put there.

    Example:
        >>> hook_names(nn.Linear(1, 1))
        ()
    """
    registry = module.__dict__.get("_diffusers_hook")
    return () if registry is None else tuple(registry.hooks)


def has_clip(pipe: Any, suffix: str, kind: type) -> bool:
    """Return whether a pipeline has a CLIP text encoder, or had one and was left only its tokenizer.

    Args:
        pipe: a diffusers pipeline.
        suffix: ``""`` for the first encoder, ``"_2"`` for the second.
        kind: class of the encoder.

    Returns:
        True also where the encoder was dropped to save memory, since the words are read by the tokenizer.
    """
    encoder = getattr(pipe, f"text_encoder{suffix}", None)
    return isinstance(encoder, kind) or (
        encoder is None and isinstance(getattr(pipe, f"tokenizer{suffix}", None), CLIPTokenizer)
    )


def refuse_compiled(denoiser: Any) -> None:
    """Raise for a denoiser that ``torch.compile`` runs, as a whole or in parts.

    Args:
        denoiser: what stands at ``pipe.unet``.

    Raises:
        UnsupportedPipeline: if it is compiled.
    """
    if isinstance(denoiser, torch._dynamo.OptimizedModule):
        remedy = "Take the model itself for the session: pipe.unet = pipe.unet._orig_mod."
    elif any(each._compiled_call_impl is not None for each in denoiser.modules()):
        remedy = "Load the model anew for the session, and compile another copy."
    else:
        return
    raise UnsupportedPipeline(
        "The denoiser is compiled (torch.compile), and a compiled forward pass cannot be controlled.", remedy
    )


def listed(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return a prompt argument as a tuple: one string, a list of strings, or nothing."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def negative_texts(arguments: Mapping[str, Any], prompts: int) -> tuple[tuple[str, ...], ...]:
    """Read the negative prompts of a call of ``encode_prompt``: one for each prompt, one text stands for all.

    Args:
        arguments: its bound arguments.
        prompts: number of prompts.

    Returns:
        For each prompt the texts of the encoders; nothing where the caller gave none, or embeddings in their place.
    """
    first = listed(arguments.get("negative_prompt"))
    if not first or arguments.get("negative_prompt_embeds") is not None:
        return ()
    second = listed(arguments.get("negative_prompt_2") or None) or first
    both = [one * (prompts if len(one) == 1 else 1) for one in (first, second)]
    return tuple(zip(*both, strict=True)) if {len(one) for one in both} == {prompts} else ()


def batch_layout(arguments: Mapping[str, Any], prompts: int) -> BatchLayout:
    """Lay out the rows of a call from the arguments of its ``encode_prompt``."""
    return BatchLayout.from_counts(
        prompts=prompts,
        images_per_prompt=int(arguments["num_images_per_prompt"]),
        guided=bool(arguments["do_classifier_free_guidance"]),
    )
