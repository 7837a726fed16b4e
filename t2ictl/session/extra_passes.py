"""Extra passes through the denoiser: what an objective asks of the model, beside the passes that make the image.

Two kinds. ``maps`` runs the conditional rows up to the last layer whose attention maps are needed; the
gradient is that of a whole pass, since nothing after that layer reaches the maps. ``noise`` runs
rows of its own, with text states of its own, to the end.

Legend: ``B`` image, ``G`` row of a pass (any image, any text), ``C`` channels, ``Y`` ``X`` rows and columns,
``T`` prompt token, ``K`` position of the text row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.cache import TensorCache
from t2ictl.attention.edits import Edit
from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import ActivePass, DenoiserPass, PassKind, StopForward
from t2ictl.families import Adapter
from t2ictl.maps.recorder import MapTap
from t2ictl.ports.base import Inputs, Rows
from t2ictl.session.cancelling import check_cancelled
from t2ictl.session.checkpoints import Recomputed
from t2ictl.session.cost import Cost
from t2ictl.session.hooks import DenoiserHook, Frozen
from t2ictl.settings.windows import Step

__all__ = ["Evaluation", "MapsOf", "ExtraPasses"]


class MapsOf(Protocol):
    """From latents ``x_BCYX`` and text states to the maps of some images, one a group."""

    def __call__(
        self, x_BCYX: Tensor, rows: Sequence[int] | None = None, *, embeds_BTC: Tensor | None = None
    ) -> list[Tensor]:
        """Return one ``maps_BYXT`` a group; without ``rows`` for all images, without states for the pipeline's."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation that the pipeline asked for.

    Args:
        step: which one.
        batch: the rows of its batch.
        inputs: the denoiser's arguments by name, all rows.
        positional: how many of them are passed by position.
        timestep: what the scheduler calls this time.
    """

    step: Step
    batch: BatchLayout
    inputs: Inputs
    positional: int = 0
    timestep: Any = 0.0

    @property
    def cond(self) -> slice:
        """The conditional rows, which lie together."""
        rows = self.batch.indices("cond")
        return slice(rows[0], rows[-1] + 1)


@dataclass(kw_only=True)
class ExtraPasses:
    """Runs the denoiser for objectives.

    Args:
        adapter: the pipeline's family.
        active_pass: tells the attention processors which pass is in progress.
        hook: runs the denoiser past the session's own hook.
        cost: counter of the session.
        edits: edits of attention by layer address.
        layers: all layers that have one of our processors, in the order in which they run.
        frozen: holds the flags of weights.
        recomputed: holds layers that are computed again for the backward pass.
        truncate: end passes for maps after the last layer that is needed.
    """

    adapter: Adapter
    active_pass: ActivePass
    hook: DenoiserHook
    cost: Cost
    edits: Mapping[str, Sequence[Edit]]
    layers: Sequence[Layer]
    frozen: Frozen
    recomputed: Recomputed
    truncate: bool = True
    _context: TensorCache = field(default_factory=TensorCache)

    def maps(self, groups: Sequence[tuple[Layer, ...]], now: Evaluation) -> MapsOf:
        """Make the function from latents and text states to attention maps.

        Args:
            groups: for each map that is wanted, the layers whose mean it is.
            now: the evaluation that the passes stand for.

        Returns:
            A function from ``x_BCYX``, ``rows`` (None: all images) and ``embeds_BTC`` (None: those of the evaluation)
            to one ``maps_BYXT`` a group.
        """
        last = max((layer for layers in groups for layer in layers), key=lambda layer: layer.order)

        def maps(
            x_BCYX: Tensor, rows: Sequence[int] | None = None, *, embeds_BTC: Tensor | None = None
        ) -> list[Tensor]:
            """Run one pass, and give the mean map of each group."""
            if rows is not None and self.edits:  # an edit may want all images of a batch, which read each other
                return [each[rows] for each in self.maps(groups, now)(x_BCYX, embeds_BTC=embeds_BTC)]
            own: slice | list[int] = now.cond
            if rows is not None:
                x_BCYX, own = x_BCYX[rows], [now.cond.start + row for row in rows]
            taps = {layers: MapTap(layers, slice(None)) for layers in groups}
            this = DenoiserPass(
                batch=_batch(now.batch, own),
                latent_size=(x_BCYX.shape[-2], x_BCYX.shape[-1]),
                text_length=self.adapter.port.text_length(now.inputs),
                step=now.step,
                edits=self.edits,
                taps=list(taps.values()),
                stop_after=last.address if self.truncate else None,
                kind=PassKind.MAPS,
            )
            self.cost.extra_forwards += len(x_BCYX)
            # Objectives on text embeddings count their gradients themselves: not every pass takes one.
            self.cost.backwards += len(x_BCYX) if embeds_BTC is None else 0
            with contextlib.suppress(StopForward), self.active_pass.use(this):
                self._run(x_BCYX, embeds_BTC, own, now)
            this.check_visited(self.layers)
            return [taps[layers].mean() for layers in groups]

        return maps

    def noise(self, states_GKC: Tensor, rows_G: Tensor, now: Evaluation) -> Tensor:
        """Predict the noise of some images under other texts: whole passes, without edits or other inputs of text.

        A text of one position takes the short way through cross-attention (its softmax is 1). Pooled text
        states are zero, on which nothing can lean but the row itself.

        Args:
            states_GKC: text states, one row for each prediction.
            rows_G: the image of each.
            now: the evaluation.

        Returns:
            ``noise_GCYX``, in the terms of the model (noise, or velocity).
        """
        rows_G = rows_G + now.cond.start
        x_GCYX = self.adapter.port.latents(now.inputs)[rows_G]
        this = DenoiserPass(
            batch=_batch(now.batch, rows_G.tolist()),
            latent_size=(x_GCYX.shape[-2], x_GCYX.shape[-1]),
            text_length=states_GKC.shape[1],
            step=now.step,
            kind=PassKind.OTHER_TEXT,
        )
        self.cost.extra_forwards += len(states_GKC)
        with self.active_pass.use(this):
            result = self._run(x_GCYX, states_GKC, rows_G, now, free=True)
        this.check_visited(self.layers)
        noise_GCYX: Tensor = result[0]
        return noise_GCYX

    def _run(self, x_BCYX: Tensor, states: Tensor | None, rows: Rows, now: Evaluation, free: bool = False) -> Any:
        check_cancelled()
        port = self.adapter.port
        name = port.text_names[0]
        # Anew for each pass: the denoiser empties some of these lists (residuals of a T2I-Adapter).
        inputs = port.with_latents(port.take(now.inputs, rows), x_BCYX)
        if free:
            inputs = port.without_text(inputs)
        if states is not None:
            inputs[name] = states.to(inputs[name].dtype)
        elif isinstance(rows, slice):
            # The very tensor of the pass before, by which layers know that they have projected it already.
            whole, own = now.inputs[name], inputs[name]
            inputs[name] = self._context(whole, (rows.start, rows.stop), lambda: own)
        args, kwargs = port.arguments(inputs, now.positional)
        with self.frozen(), self.recomputed():
            return self.hook.forward(*args, **kwargs)


def _batch(batch: BatchLayout, rows: slice | list[int]) -> BatchLayout:
    picked = range(*rows.indices(len(batch))) if isinstance(rows, slice) else rows
    return BatchLayout(rows=tuple(batch.rows[row] for row in picked))
