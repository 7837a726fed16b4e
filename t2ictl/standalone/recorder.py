"""Without a session: attention processors that recognize their prompts by content.

A plain attention processor sees neither the prompt nor the timestep. It does see the text
states of each batch row, and those of a prompt are always the same numbers: a row whose text
states equal a prompt's own encoding is a conditional row of that prompt, and any other row is
somebody else's and passes through.

Legend: ``P`` prompt, ``B`` batch row, ``K`` text token, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from t2ictl.attention.batch import BatchLayout, BatchRow
from t2ictl.attention.edits import AttentionCall, Edit
from t2ictl.attention.layers import Layer, select_layers
from t2ictl.attention.passes import ActivePass, DenoiserPass
from t2ictl.attention.processor import ControlledAttention, Inputs, edited_attention
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.controls.idle import CallOutline, warn_idle
from t2ictl.controls.presets import with_preset
from t2ictl.errors import ControlConflict, NeedsSession, NotRecorded, ShapeMismatch
from t2ictl.families import find_adapter
from t2ictl.families.arguments import listed
from t2ictl.families.base import Adapter
from t2ictl.maps.record import AttentionRecord
from t2ictl.maps.recorder import Recorder, Recording
from t2ictl.settings.windows import Step
from t2ictl.standalone.by_content import MatchedLayout, RowMatcher

__all__ = [
    "MapRecorder",
    "WithoutSession",
    "attention_processors",
    "check_free",
    "edits_by_layer",
    "encode",
    "plan_context",
    "standing",
    "text_embeds",
]


def check_free(adapter: Adapter) -> None:
    """An open session would take the encoding for the beginning of a call; processors alone know U-Nets only."""
    if adapter.port.component != "unet":
        raise NeedsSession(
            f"Forms without a session are for U-Nets, and {type(adapter.pipe).__name__} has a transformer.",
            "Use t2ictl.controlled(pipe, ..., record=True).",
        )
    if adapter.denoiser.__dict__.get("_t2ictl"):
        raise ControlConflict(
            "This pipeline has an open session.",
            "Make what is used without a session before it opens, or use it alone.",
        )


def encode(adapter: Adapter, prompts: Sequence[str]) -> Tensor:
    """Encode prompts as their pipeline does.

    Args:
        adapter: the pipeline's family.
        prompts: the prompts.

    Returns:
        ``encoded_PKC``, the text states that the denoiser gets.
    """
    return adapter.encode(adapter.pipe.encode_prompt, {"device": adapter.device}, prompts).embeds


def text_embeds(pipe: Any, control: Control, prompts: Sequence[str], parser: str = "grammar") -> dict[str, Tensor]:
    """Return the text states that a control makes of prompts, for a call without a session.

    Args:
        pipe: a diffusers pipeline.
        control: a control whose plan rewrites text states.
        prompts: the prompts.
        parser: how objects and attributes are found.

    Returns:
        ``prompt_embeds``, and ``pooled_prompt_embeds`` where the family has them, one row a prompt.

    Raises:
        UnsupportedPipeline: if the pipeline is of no supported family.
        ControlConflict: if it has an open session.
    """
    adapter, prompts = find_adapter(pipe), listed(prompts)
    check_free(adapter)
    arguments = {"device": adapter.device}
    found = tuple(adapter.parse((text,), parser) for text in prompts)
    batch = BatchLayout.from_counts(prompts=len(found), images_per_prompt=1, guided=False)
    context = PlanContext(adapter=adapter, prompts=found, batch=batch)
    (control,) = with_preset([control], adapter)
    plan = control.plan(context)
    states = given = adapter.encode(pipe.encode_prompt, arguments, prompts)
    if plan.text is not None:
        dtype = states.embeds.dtype
        states = plan.text.rewrite(states, partial(adapter.encode, pipe.encode_prompt, arguments))
        states = replace(states, embeds=states.embeds.to(dtype))
    warn_idle(control, plan, CallOutline(context=context, same_text=states.same_images(given)))
    pooled = {} if states.pooled is None else {"pooled_prompt_embeds": states.pooled}
    return {"prompt_embeds": states.embeds, **pooled}


def attention_processors(pipe: Any, control: Control, prompts: Sequence[str]) -> dict[str, Any]:
    """Return plain attention processors that make a control's edits on the rows of some prompts.

    Args:
        pipe: a diffusers pipeline.
        control: a control whose plan edits attention, and neither latents nor text states.
        prompts: the prompts that the pipeline will be called with, one or several.

    Returns:
        A new dict with one processor for each attention layer (diffusers empties the one that it is given); those that
        are not edited are the ones set now.

    Raises:
        UnsupportedPipeline: if the pipeline is of no supported family.
        ControlConflict: if it has an open session.
    """
    adapter, prompts = find_adapter(pipe), listed(prompts)
    check_free(adapter)
    context = plan_context(adapter, prompts, 1)
    (control,) = with_preset([control], adapter)
    plan = control.plan(context)
    warn_idle(control, plan, CallOutline(context=context))
    current = standing(adapter)
    edits = edits_by_layer(plan)
    if edits:
        rows = MatchedLayout(RowMatcher(encode(adapter, prompts)))
        for layer, own in edits.items():
            name = f"{layer.module}.processor"
            current[name] = _Editor(layer, current[name], own, rows)
    return current


def plan_context(adapter: Adapter, prompts: Sequence[str], images_per_prompt: int) -> PlanContext:
    """What a plan for processors knows: the prompts, and conditional rows alone.

    Args:
        adapter: the pipeline's family.
        prompts: the prompts.
        images_per_prompt: images of each.

    Returns:
        The context.
    """
    found = tuple(adapter.parse((text,)) for text in prompts)
    batch = BatchLayout.from_counts(prompts=len(found), images_per_prompt=images_per_prompt, guided=False)
    return PlanContext(adapter=adapter, prompts=found, batch=batch)


def standing(adapter: Adapter) -> dict[str, Any]:
    """The processors that new ones stand upon: those set now, without those of an earlier call of this kind."""
    return {
        name: each.previous if isinstance(each, WithoutSession) else each
        for name, each in adapter.denoiser.attn_processors.items()
    }


def edits_by_layer(plan: Plan) -> dict[Layer, list[Edit]]:
    """The edits of a plan by layer."""
    edits: dict[Layer, list[Edit]] = {}
    for layers, edit in plan.edits:
        for layer in layers:
            edits.setdefault(layer, []).append(edit)
    return edits


class WithoutSession(ControlledAttention):
    """Base of processors that edit without a session; new ones take the place of those that are set.

    A processor comes by once in an evaluation, and sees no timestep: its calls are the only count of steps there is.

    Args:
        layer: address of the layer it stands at.
        previous: the processor that was there.
        edits: the edits of the layer.
    """

    def __init__(self, layer: Layer, previous: Any, edits: Sequence[Edit]) -> None:
        super().__init__(layer, previous, ActivePass())
        self.edits, self._evaluations = edits, 0

    def edited(self, inputs: Inputs, batch: BatchLayout, size: tuple[int, int]) -> Tensor:
        """Run the layer with its edits.

        Args:
            inputs: the arguments of the call.
            batch: what each batch row is.
            size: height and width of the image positions.

        Returns:
            The layer's result, shape of its image states.
        """
        step = Step(index=self._evaluations, total=1, timestep=0.0)
        self._evaluations += 1
        call = AttentionCall(layer=self.layer, size=size, batch=batch, step=step, attention=inputs.attn)
        return edited_attention(self.previous, call, self.edits, inputs)


class _Editor(WithoutSession):
    """A processor that edits the rows it recognizes, and hands over to the one before it where there is none."""

    def __init__(self, layer: Layer, previous: Any, edits: Sequence[Edit], batch: MatchedLayout) -> None:
        super().__init__(layer, previous, edits)
        self._batch = batch

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        inputs = Inputs(attn, hidden_states, encoder_hidden_states, attention_mask, kwargs)
        context = encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
        batch = self._batch(context)
        if not batch.indices("cond"):
            return inputs.send(self.previous)
        # A row of positions: a processor cannot know the image's shape.
        return self.edited(inputs, batch, (1, hidden_states.shape[1]))


class MapRecorder:
    """Records word maps through plain attention processors, for those who cannot open a session.

    The maps are means over everything that the pipeline does while the processors are set; make
    a new recorder for a new call. Images are bit-equal to those without it.

    Args:
        pipe: a diffusers pipeline.
        prompts: the prompts that it will be called with.
        words: words or phrases to record; empty for every word.
        layers: layer filter; empty for cross-attention at the model's semantic size.
        size: height and width of the image (pixels); None for the model's own. A processor
            sees a row of positions and cannot know it.
        budget_mb: most memory that the maps may take (MiB).

    Raises:
        UnsupportedPipeline: if the pipeline is of no supported family.
        SpanNotFound: if a word is in none of the prompts.
        NoLayerMatched: if the filter matches no cross-attention layer.

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes", device="cpu")
        >>> recorder, before = MapRecorder(pipe, ["a red circle"]), pipe.unet.attn_processors
        >>> pipe.unet.set_attn_processor(recorder.processors())
        >>> image = pipe("a red circle", num_inference_steps=2).images[0]
        >>> pipe.unet.set_attn_processor(dict(before))
        >>> recorder.record.map("circle").shape
        torch.Size([16, 16])
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        *,
        words: Sequence[str] = (),
        layers: Sequence[str] = (),
        size: tuple[int, int] | None = None,
        budget_mb: float = 512.0,
    ) -> None:
        self._adapter, prompts = find_adapter(pipe), listed(prompts)
        check_free(self._adapter)
        self._prompts = tuple(self._adapter.parse((text,)) for text in prompts)
        self._settings = Recording(words=tuple(words), per_step=False, budget_mb=budget_mb)
        for word in words if len(prompts) == 1 else ():
            self._prompts[0].find(word)
        self._layers = (
            select_layers(self._adapter.word_layers, tuple(layers)) if layers else self._adapter.semantic_layers
        )
        self._match = RowMatcher(encode(self._adapter, prompts))
        self._latent_size = self._adapter.cells(size)
        self._active_pass = ActivePass()
        self._recorder: Recorder | None = None
        self._numbers: tuple[int, ...] = ()

    @property
    def record(self) -> AttentionRecord:
        """The word maps, one image for each conditional row that was recognized.

        Raises:
            NotRecorded: if no row of any batch belonged to one of the prompts.
        """
        if self._recorder is None or not self._recorder.record.steps:
            raise NotRecorded(
                "No batch row with one of these prompts passed by.",
                "Set the processors on the pipeline's U-Net, and call it with the very same prompts.",
            )
        return self._recorder.record

    def processors(self) -> dict[str, Any]:
        """Return processors for ``unet.set_attn_processor``: listening where words are recorded, else those set.

        Returns:
            A new dict with one processor for each attention layer (diffusers empties the one that it is given).
        """
        current: dict[str, Any] = dict(self._adapter.denoiser.attn_processors)
        for layer in self._layers:
            name = f"{layer.module}.processor"
            current[name] = _Listener(layer, current[name], self._active_pass, self)
        return current

    def begin(self, context_BKC: Tensor) -> None:
        """Start an evaluation: recognize the rows.

        Args:
            context_BKC: the text states of all rows.

        Raises:
            ShapeMismatch: if the images of this batch are not those of the one before.
        """
        self._active_pass.end()  # an evaluation that an error broke off never came to its end
        numbers = self._match(context_BKC)
        rows = [row for row, number in enumerate(numbers) if number is not None]
        if not rows:
            return
        known = tuple(number for number in numbers if number is not None)
        if self._recorder is None:
            self._numbers = known
            prompts = [self._prompts[number] for number in known]
            self._recorder = Recorder(
                self._layers, slice(None), prompts, self._settings, total=1, latent_size=self._latent_size
            )
        elif known != self._numbers:
            raise ShapeMismatch(
                f"This batch holds the prompts {known}, and the recorder began with {self._numbers}.",
                "Make a new MapRecorder for a new call.",
            )
        self._recorder.rows = rows
        batch = [
            BatchRow(image=place, prompt=number or 0, role="uncond" if number is None else "cond")
            for place, number in enumerate(numbers)
        ]
        self._active_pass.begin(
            DenoiserPass(
                batch=BatchLayout(rows=tuple(batch)),
                latent_size=self._latent_size,
                step=Step(index=self._recorder.record.steps, total=1, timestep=0.0),
                taps=[self._recorder],
            )
        )

    def end(self) -> None:
        """End an evaluation: file its maps."""
        if self._active_pass.current is not None and self._recorder is not None:
            self._recorder.end_step()
        self._active_pass.end()

    def is_first(self, layer: Layer) -> bool:
        """Return whether the denoiser comes to this layer first."""
        return layer == self._layers[0]

    def is_last(self, layer: Layer) -> bool:
        """Return whether the denoiser comes to this layer last."""
        return layer == self._layers[-1]


class _Listener(ControlledAttention):
    """A processor that opens the evaluation at the first recorded layer and closes it at the last."""

    def __init__(self, layer: Layer, previous: Any, active_pass: ActivePass, owner: MapRecorder) -> None:
        super().__init__(layer, previous, active_pass)
        self._owner = owner

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, *rest: Any, **more: Any
    ) -> Tensor:
        context = encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
        if self._owner.is_first(self.layer):
            self._owner.begin(context)
        result = super().__call__(attn, hidden_states, encoder_hidden_states, *rest, **more)
        if self._owner.is_last(self.layer):
            self._owner.end()
        return result
