"""Without a session: attention processors that know the rows of a batch by their order.

Self-attention sees no text, so it cannot recognize a row by it. Stock pipelines lay out their batch in one order:
unconditional rows first if there are any, then the prompts one after the other, images of one together. The order
is taken for granted in self-attention and checked by content in cross-attention, in every pass.

Legend: ``B`` batch row, ``Q`` image position, ``K`` text token, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.cache import TensorCache
from t2ictl.attention.edits import Edit
from t2ictl.attention.layers import Layer
from t2ictl.attention.processor import Inputs
from t2ictl.controls.base import Control, PlanContext
from t2ictl.controls.idle import CallOutline, warn_idle
from t2ictl.controls.presets import with_preset
from t2ictl.errors import NeedsSession, ShapeMismatch, UnsupportedPipeline
from t2ictl.families import find_adapter
from t2ictl.families.arguments import listed
from t2ictl.standalone.by_content import RowMatcher
from t2ictl.standalone.recorder import WithoutSession, check_free, edits_by_layer, encode, plan_context, standing

__all__ = ["OrderedRows", "ordered_processors"]


def ordered_processors(
    pipe: Any,
    control: Control,
    prompts: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    images_per_prompt: int = 1,
) -> dict[str, Any]:
    """Return plain attention processors that make a control's edits in self-attention too.

    Args:
        pipe: a diffusers pipeline.
        control: a control whose plan edits attention and does nothing else.
        prompts: the prompts that the pipeline will be called with, in their order.
        size: height and width of the images (pixels); None for the model's own. A processor sees a row of positions.
        images_per_prompt: images of each prompt.

    Returns:
        A new dict with one processor for each attention layer; those that are not edited are the ones set now.

    Raises:
        UnsupportedPipeline: if the pipeline is of no supported family.
        ControlConflict: if it has an open session.
        NeedsSession: if the plan has to read maps, or moves latents.
    """
    adapter, prompts = find_adapter(pipe), listed(prompts)
    check_free(adapter)
    context = plan_context(adapter, prompts, images_per_prompt)
    (control,) = with_preset([control], adapter)
    plan = control.plan(context)
    if plan.map_hooks:
        raise NeedsSession(
            f"{type(control).__name__} would have to read the maps of words to know where they are.",
            "Give every one a region, or use a session.",
        )
    if plan.objectives or plan.perturb is not None or plan.fixed_latents is not None or plan.text is not None:
        raise NeedsSession(
            f"{type(control).__name__} acts on the latents between steps, which an attention processor cannot reach.",
            f"Use it in a session: with t2ictl.controlled(pipe, [{type(control).__name__}()]): ...",
        )
    warn_idle(control, plan, CallOutline(context=context))
    current, edits = standing(adapter), edits_by_layer(plan)
    if edits:
        rows = OrderedRows(context, encode(adapter, prompts), adapter.cells(size))
        first = min((layer for layer in adapter.layers if layer.kind == "cross"), key=lambda layer: layer.order)
        for layer, own in {first: [], **edits}.items():
            name = f"{layer.module}.processor"
            current[name] = _Ordered(layer, current[name], own, rows)
    return current


class OrderedRows:
    """Identifies each batch row by its position, and finds out whether that is true.

    Args:
        context: prompts and images.
        encoded_PKC: text states of the prompts.
        cells: height and width of the latent.
    """

    def __init__(self, context: PlanContext, encoded_PKC: Tensor, cells: tuple[int, int]) -> None:
        self.cells = cells
        self._texts = [prompt.text for prompt in context.prompts]
        images_per_prompt = context.batch.images // len(self._texts)
        self._layouts = [
            BatchLayout.from_counts(prompts=len(self._texts), images_per_prompt=images_per_prompt, guided=guided)
            for guided in (False, True)
        ]
        self._match, self._latest = RowMatcher(encoded_PKC), TensorCache()

    def batch(self, rows: int) -> BatchLayout:
        """Return what the rows of a batch are.

        Raises:
            UnsupportedPipeline: if it has neither one nor two rows an image.
        """
        for batch in self._layouts:
            if len(batch) == rows:
                return batch
        images = self._layouts[0].images
        raise UnsupportedPipeline(
            f"The batch has {rows} rows; for {images} images these processors expect {images} rows, or {2 * images}.",
            "Call the pipeline with the same prompts and num_images_per_prompt, or make new processors.",
        )

    def check(self, context_BKC: Tensor, batch: BatchLayout) -> None:
        """Compare the text states of all rows with those of the prompts in their order; once a pass.

        Raises:
            UnsupportedPipeline: if a row is another one.
        """
        self._latest(context_BKC, None, lambda: self._compare(context_BKC, batch))

    def _compare(self, context_BKC: Tensor, batch: BatchLayout) -> None:
        for row, (entry, number) in enumerate(zip(batch.rows, self._match(context_BKC), strict=True)):
            wanted = self._texts[entry.prompt] if entry.role == "cond" else None
            found = None if number is None else self._texts[number]
            if found != wanted:
                expected = "an unconditional row" if wanted is None else f"the row of {wanted!r}"
                states = repr(found or "another text")
                raise UnsupportedPipeline(
                    f"Row {row} of the batch should be {expected}, and has the text states of {states}.",
                    "Call the pipeline with the very prompts that the processors were made for, in their order, "
                    "without prompt_2, clip_skip or a changed LoRA scale; images_per_prompt= says how many of each.",
                )


class _Ordered(WithoutSession):
    """A processor that edits rows by their order."""

    def __init__(self, layer: Layer, previous: Any, edits: Sequence[Edit], rows: OrderedRows) -> None:
        super().__init__(layer, previous, edits)
        self._rows = rows

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        inputs = Inputs(attn, hidden_states, encoder_hidden_states, attention_mask, kwargs)
        batch, size = self._rows.batch(len(hidden_states)), self.layer.size(self._rows.cells)
        if hidden_states.ndim != 3 or hidden_states.shape[1] != size[0] * size[1]:
            raise ShapeMismatch(
                f"Layer {self.layer.address} got image states of shape {tuple(hidden_states.shape)} where "
                f"{size[0]} x {size[1]} positions were expected.",
                "Give the height and width of the images (pixels) as size=.",
            )
        if self.layer.kind == "cross":
            context = encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
            self._rows.check(context, batch)
        return self.edited(inputs, batch, size) if self.edits else inputs.send(self.previous)
