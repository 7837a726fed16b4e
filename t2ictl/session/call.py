"""One pipeline call under control, from ``encode_prompt`` to the last scheduler step.

The pipeline's own loop drives everything; nothing of it is repeated here. Before each evaluation of the denoiser the
guard checks it, text embeddings and latents may move, and listeners are set; after it they get their maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from t2ictl.attention.edits import Edit
from t2ictl.attention.passes import ActivePass, DenoiserPass
from t2ictl.errors import MoveLost, NonFiniteLoss
from t2ictl.families.schedulers import discards_sample
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.session.cost import Cost
from t2ictl.session.extra_passes import Evaluation, ExtraPasses
from t2ictl.session.guard import EvaluationGuard
from t2ictl.session.listeners import MapListeners
from t2ictl.session.mover import LatentMover
from t2ictl.session.planning import IdleCheck
from t2ictl.session.text_embeds import EmbedsState
from t2ictl.settings.windows import Step

__all__ = ["MoveLog", "PipelineCall"]

_INPUTS = ("sample", "timestep", "encoder_hidden_states")


@dataclass(kw_only=True)
class MoveLog:
    """The trace of one pipeline call.

    Args:
        raise_nonfinite: raise at a loss that is not finite, where its update would otherwise be skipped.
        on_move: called with each entry as soon as it is there, or None.
        entries: the trace so far.
    """

    raise_nonfinite: bool = False
    on_move: Callable[[MoveTrace], None] | None = None
    entries: list[MoveTrace] = field(default_factory=list)

    def add(self, trace: Sequence[MoveTrace], step: Step) -> None:
        """Keep and report some moves, then check them: the trace of a call that the check ends says where.

        Args:
            trace: the moves.
            step: the evaluation.

        Raises:
            NonFiniteLoss: if that was asked for.
        """
        self.entries.extend(trace)
        if self.on_move is not None:
            for entry in trace:
                self.on_move(entry)
        if not self.raise_nonfinite or not trace:
            return
        bad = [row for row, skipped in enumerate(torch.stack([t.skipped for t in trace]).any(dim=0)) if skipped]
        if bad:
            raise NonFiniteLoss(
                f"The loss or its gradient is not finite at evaluation {step.index} for images {bad}.",
                "Use bfloat16 or float32, a smaller step, or on_nonfinite='skip'.",
            )


@dataclass(kw_only=True)
class PipelineCall:
    """State of one pipeline call. A session makes one each time the pipeline encodes a prompt.

    Args:
        guard: checks and numbers the evaluations.
        mover: moves the latents.
        listeners: read the maps of the passes that make the image.
        log: the trace.
        edits: edits of attention by the address of their layer, in the order of the controls.
        active_pass: tells the attention processors which pass is in progress.
        passes: extra passes through the denoiser.
        cost: counter of the session.
        idle: warns of controls with nothing to do.
        text: what a control does to the text embeddings, or None.
    """

    guard: EvaluationGuard
    mover: LatentMover
    listeners: MapListeners
    log: MoveLog
    edits: Mapping[str, Sequence[Edit]]
    active_pass: ActivePass
    passes: ExtraPasses
    cost: Cost
    idle: IdleCheck
    text: EmbedsState | None = None
    _step: Step | None = None

    @property
    def is_lost(self) -> bool:
        """Whether a move was not taken up, though the pass it was made for came to its end.

        A call that was broken off inside that pass lost nothing that anybody would miss.
        """
        return self.mover.is_waiting and self._step is None

    def before(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Handle one evaluation that the pipeline asks for: check it, move the latents, set the taps.

        Args:
            *args: positional arguments of the denoiser (sample, timestep, text embeddings).
            **kwargs: its keyword arguments.

        Returns:
            The arguments to use.

        Raises:
            ForeignCall: if the evaluation is not the next one of this call.
            MoveLost: if the last move was never taken up by a scheduler step.
        """
        inputs = {**dict(zip(_INPUTS, args, strict=False)), **kwargs}
        self._check_taken_up()
        step = self.guard.next_step(inputs)
        now = Evaluation(step=step, batch=self.guard.batch, inputs=inputs, rest=args[len(_INPUTS) :])
        sample = inputs["sample"]
        latent_size = (sample.shape[-2], sample.shape[-1])
        if step.index == 0:
            self.listeners.start(now.cond, step.total, latent_size)
            self.idle.warn(self.guard.steps(step), latent_size, inputs["encoder_hidden_states"].shape[1])
        if self.text is not None:
            self.log.add(self.text.update(now, self.passes), step)
            inputs |= self.text.inputs(now)
        acting = self.mover.acting(step)
        if step.index == step.total - 1:
            self.idle.warn_discarded(self.mover.acted, type(self.guard.adapter.pipe.scheduler).__name__)
        inputs["sample"] = self.mover.move(acting, now)
        self.cost.forwards += len(sample)
        is_discarded = discards_sample(self.guard.adapter.pipe.scheduler)
        taps = self.listeners.begin(acting, step, now.cond, is_discarded=is_discarded)
        self.active_pass.begin(
            DenoiserPass(batch=now.batch, latent_size=latent_size, step=step, edits=self.edits, taps=taps)
        )
        self._step = step
        return (*(inputs.pop(name) for name in _INPUTS), *now.rest), inputs

    def _check_taken_up(self) -> None:
        if self.is_lost:
            self.mover.forget()  # told once
            raise MoveLost(
                f"The latents moved at evaluation {self.guard.evaluations - 1} were not taken up by a scheduler step.",
                "Set the scheduler before the call; the pipeline must step after each evaluation.",
            )

    def after(self) -> None:
        """End the pass that made the image: hand its maps to those who asked for them."""
        self.active_pass.end()
        step, self._step = self._step, None
        assert step is not None
        self.listeners.end(step)

    def replace(self, sample: Tensor) -> Tensor:
        """Hand the scheduler the moved latents.

        Args:
            sample: the latents that the pipeline holds, unscaled.

        Returns:
            The same, moved if a move is waiting.
        """
        return self.mover.take_up(sample)
