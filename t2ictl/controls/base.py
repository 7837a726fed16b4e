"""Controls: frozen settings of a method, the plan they make, and the registry that finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from t2ictl.errors import BadSetting, NeedsSession
from t2ictl.settings.fields import setting, settings_class

if TYPE_CHECKING:
    from torch import Tensor

    from t2ictl.attention.batch import BatchLayout
    from t2ictl.attention.edits import Edit
    from t2ictl.attention.layers import Layer
    from t2ictl.families.base import Adapter, Offer
    from t2ictl.families.text_states import Encode, PromptEmbeds
    from t2ictl.guidance.objectives import Objective
    from t2ictl.guidance.text_objectives import TextEdit
    from t2ictl.prompts.prompt import Prompt
    from t2ictl.settings.windows import Step

__all__ = ["Control", "Idle", "MapHook", "Plan", "PlanContext", "Preset"]

Preset = Literal["auto", "published", "none"]


@dataclass(frozen=True, kw_only=True)
class PlanContext:
    """What a control may know when it makes its plan, before the pipeline has computed anything.

    Args:
        adapter: the pipeline's family: its layers, its sizes, its text encoders.
        prompts: the parsed prompts of this call, one for each prompt that the user gave.
        batch: the rows of the batch.
        encode: encodes other texts as the pipeline encodes its prompt in this call; None: as it would by itself.
        negative_prompts: the parsed negative prompts, one for each prompt; empty where there are none.
    """

    adapter: Adapter
    prompts: tuple[Prompt, ...]
    batch: BatchLayout
    encode: Encode | None = None
    negative_prompts: tuple[Prompt, ...] = ()

    def encoded(self, texts: Sequence[str], first: Sequence[int] | None = None) -> PromptEmbeds:
        """Encode texts of a control's own, in one batch.

        Args:
            texts: any texts.
            first: for each text the position from which on its words are read; None: from 1, as any text.

        Returns:
            Their states, one row a text.

        Raises:
            UnsupportedPipeline: if a text encoder was taken out of the pipeline.
        """
        if self.encode is not None:
            return self.encode(texts, first)
        return self.adapter.encode(self.adapter.pipe.encode_prompt, {"device": self.adapter.device}, texts, first)

    @property
    def row_prompts(self) -> tuple[Prompt, ...]:
        """The prompt of each image."""
        return tuple(self.prompts[row.prompt] for row in self.batch.only("cond").rows)


@dataclass(frozen=True, kw_only=True)
class MapHook:
    """Reads the maps of the passes that make the image, and changes nothing in them.

    Args:
        layers: the cross-attention layers whose mean map it wants.
        take: gets ``maps_BYXT`` of the conditional rows and the step, at the end of each evaluation.
    """

    layers: tuple[Layer, ...]
    take: Callable[[Tensor, Step], None]


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Why a control leaves images alone, where only the control knows it.

    The session adds what can be read from the plan: a window without a step, losses without a gradient, and so on.

    Args:
        reason: a clause in lower case without a full stop: ``"it found no objects"``.
        remedy: what would make it act, one sentence.
        images: the images it leaves alone; None: all.
        is_wanted: whether the user asked for just that, with an empty list for a prompt: no reason to warn.
    """

    reason: str
    remedy: str
    images: tuple[int, ...] | None = None
    is_wanted: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a control does in one pipeline call. All state of the call lives behind it.

    Args:
        objectives: what moves the latents.
        edits: pairs of the layers of an edit and the edit.
        owns: things that only one control can set (``"cross.values"``, ...); two owners conflict.
        perturb: moves the latents without reading maps. Gets the scaled latents ``x_BCYX``, one row a
            image, and the step; gives the moves ``dx_BCYX`` to make one after the other, or none. They are made where
            objectives would make theirs, after these.
        fixed_latents: puts other latents in the place of some images'. Gets the scaled latents ``x_BCYX``, one row an
            image, and the step; gives all of them, the others as they were. It comes last, at every evaluation.
        text: what is done to the text states; only one control of a session can.
        map_hooks: who reads the maps of the passes that make the image.
        idle: why it leaves some images alone, or all of them. The session warns of it before the first step.
    """

    objectives: tuple[Objective, ...] = ()
    edits: tuple[tuple[tuple[Layer, ...], Edit], ...] = ()
    owns: tuple[str, ...] = ()
    perturb: Callable[[Tensor, Step], Sequence[Tensor]] | None = None
    fixed_latents: Callable[[Tensor, Step], Tensor] | None = None
    text: TextEdit | None = None
    map_hooks: tuple[MapHook, ...] = ()
    idle: tuple[Idle, ...] = ()


@settings_class
class Control:
    """Base of all controls: frozen settings, and ``plan``, which turns them into a plan.

    A subclass is a settings class registered with :func:`register_control`. With strength 0 a
    control must give an empty plan: then the image is bit-equal to the plain one.

    Args:
        preset: what fields mean that are left open. ``"auto"``: what was measured for this model, if it was, else the
            defaults; ``"published"``: the published form; ``"none"``: the defaults. A session fills them in as it
            opens, and its controls have the preset ``"none"``.
    """

    preset: Preset = setting(default="auto", help="fields left open: measured for the model, as published, or defaults")

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[Offer]] = frozenset()
    """What a pipeline family must offer for it to act (:data:`t2ictl.families.base.Offer`)."""
    needs_words: ClassVar[bool] = True
    moves_words: ClassVar[bool] = False
    """Whether its plan gives words other places in the text rows; such a control plans before the others."""
    published_settings: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """What the published form sets otherwise than the defaults."""
    has_losses: ClassVar[bool] = True
    """Whether its plan has losses, by which something moves; a control without edits attention only."""
    wants_effect: ClassVar[bool] = True
    """Whether it is there to change images, so that a session warns where it changes none."""

    def plan(self, context: PlanContext) -> Plan:
        """Make the plan for one pipeline call.

        Args:
            context: adapter, prompts and batch layout of the call.

        Returns:
            The plan; an empty one leaves the image alone, and a warning tells the user (:class:`Idle` says why).
        """
        raise NotImplementedError

    @classmethod
    def published(cls, **settings: Any) -> Self:
        """Return the control as its published code has it: preparation of maps, weights, thresholds, windows.

        docs/published.md says what the defaults do otherwise, and what of the published code cannot be had.

        Args:
            **settings: fields to choose otherwise, or the words that the control is about.

        Raises:
            BadSetting: if the control is not of a paper, or for a field that it does not have.

        Example:
            >>> from t2ictl.processors import AttendAndExcite
            >>> AttendAndExcite.published(concepts=("cat",)).window.by
            'steps'
        """
        if not cls.paper:
            raise BadSetting(f"{cls.__name__} has no published form.", "It is of no paper; set its fields.")
        return cls(**{**cls.published_settings, "preset": "none", **settings})

    @classmethod
    def attn_processors(cls, pipe: Any, prompts: Sequence[str], **settings: Any) -> dict[str, Any]:
        """Return plain attention processors that work without a session, where the method allows it.

        Args:
            pipe: a diffusers pipeline.
            prompts: the prompts that it will be called with.
            **settings: the control's fields.

        Returns:
            A dict for ``unet.set_attn_processor``.

        Raises:
            NeedsSession: if the method moves latents, which no attention processor can do.
        """
        raise NeedsSession(
            f"{cls.__name__} acts on the latents between steps, which an attention processor cannot reach.",
            f"Use it in a session: with t2ictl.controlled(pipe, [{cls.__name__}()]): ...",
        )

    @classmethod
    def embeds(cls, pipe: Any, prompts: Sequence[str], **settings: Any) -> dict[str, Any]:
        """Return text embeddings that work without a session, where the method allows it.

        Args:
            pipe: a diffusers pipeline.
            prompts: the prompts.
            **settings: the control's fields.

        Returns:
            Keyword arguments for a call of the pipeline.

        Raises:
            NeedsSession: if the method does not act on text embeddings.
        """
        raise NeedsSession(
            f"{cls.__name__} does not act on text embeddings.",
            f"Use it in a session: with t2ictl.controlled(pipe, [{cls.__name__}()]): ...",
        )
