"""One pipeline call under control, from ``encode_prompt`` to the last scheduler step.

The pipeline's own loop drives everything; nothing of it is repeated here. Before each evaluation of the denoiser the
guard checks it, text embeddings and latents may move, and listeners are set; after it they get their maps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.edits import Edit
from t2ictl.attention.passes import ActivePass, DenoiserPass, Tap
from t2ictl.errors import MoveLost, NonFiniteLoss, UnsupportedPipeline
from t2ictl.families.evaluations import several_evaluations
from t2ictl.families.schedulers import discarded_samples
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.maps.recorder import Recorder
from t2ictl.ports.base import Inputs
from t2ictl.prompts.prompt import Prompt
from t2ictl.session.cost import Cost
from t2ictl.session.extra_passes import Evaluation, ExtraPasses
from t2ictl.session.guard import EvaluationGuard
from t2ictl.session.hooks import warn_of_other_listeners
from t2ictl.session.installation import AttnProcessorPatch
from t2ictl.session.listeners import MapListeners
from t2ictl.session.mover import LatentMover
from t2ictl.session.observers import LossMonitor
from t2ictl.session.planning import IdleCheck
from t2ictl.session.text_embeds import EmbedsState
from t2ictl.settings.windows import Step

__all__ = ["CallResults", "MoveLog", "PipelineCall"]


@dataclass(kw_only=True)
class MoveLog:
    """The trace of one pipeline call.

    Args:
        raise_nonfinite: raise at a loss that is not finite, where its update would otherwise be skipped.
        on_move: called with each entry as soon as it is there, or None.
        entries: the trace so far.
        overflows: for each pass after a move, ``bool_B``, the rows whose predicted noise is not finite.
    """

    raise_nonfinite: bool = False
    on_move: Callable[[MoveTrace], None] | None = None
    entries: list[MoveTrace] = field(default_factory=list)
    overflows: list[Tensor] = field(default_factory=list)

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
                f"Loss, gradient or moved latent is not finite at evaluation {step.index} for images {bad}.",
                "Use bfloat16 or float32, a smaller step, or on_nonfinite='skip'.",
            )

    def check_noise(self, noise_BCYX: Tensor, step: Step) -> None:
        """Check what the denoiser makes of moved latents: half precision may hold these, and nothing behind them.

        Args:
            noise_BCYX: its result.
            step: the evaluation.

        Raises:
            NonFiniteLoss: if it is not finite, and that was asked for.
        """
        self.overflows.append(~torch.isfinite(noise_BCYX).flatten(1).all(1))
        if self.raise_nonfinite and self.overflows[-1].any():
            raise NonFiniteLoss(
                f"The denoiser's result for the moved latent is not finite at evaluation {step.index}.",
                "Use bfloat16 or float32, or a smaller step.",
            )

    def warn(self) -> None:
        """Warn at the end of a call of what was left out, and what came out wrong."""
        # One number each, so that a GPU is waited for once, and not for every entry.
        skipped = int(torch.cat([entry.skipped for entry in self.entries]).sum()) if self.entries else 0
        overflows = int(torch.stack([each.any() for each in self.overflows]).sum()) if self.overflows else 0
        told = [f"{skipped} updates were skipped because the loss, its gradient or the moved latent was not finite"]
        told += [f"the denoiser's result was not finite at {overflows} evaluations after a move"]
        told = [text for text, count in zip(told, (skipped, overflows), strict=True) if count]
        if told:
            warnings.warn(
                f"{'; '.join(told)}. Use bfloat16 or float32, or a smaller step.", RuntimeWarning, stacklevel=4
            )


@dataclass(kw_only=True)
class CallResults:
    """What can be asked of a pipeline call, also when it is over.

    Args:
        log: the trace.
        listeners: who has read the maps.
    """

    log: MoveLog = field(default_factory=MoveLog)
    listeners: MapListeners | None = None

    @property
    def recorder(self) -> Recorder | None:
        """What has filled the record."""
        return None if self.listeners is None else self.listeners.recorder

    @property
    def monitors(self) -> Sequence[LossMonitor]:
        """The controls that were measured."""
        return () if self.listeners is None else self.listeners.monitors


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
        processors: puts ours at the layers, for the length of an evaluation.
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
    processors: AttnProcessorPatch
    passes: ExtraPasses
    cost: Cost
    idle: IdleCheck
    text: EmbedsState | None = None
    _step: Step | None = None
    _last_step: Step | None = None
    _plain: Tensor | None = None
    _is_further: bool = False
    _discarded: tuple[bool, ...] = ()
    _others: list[tuple[Tensor, tuple[Prompt, ...]]] = field(default_factory=list)
    _states: Tensor | None = None

    @property
    def has_begun(self) -> bool:
        """Whether there was an evaluation."""
        return self.guard.evaluations > 0

    @property
    def is_lost(self) -> bool:
        """Whether a move was not taken up, though the pass it was made for came to its end.

        A call that was broken off inside that pass lost nothing that anybody would miss.
        """
        return self.mover.is_waiting and self._step is None

    def before(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Handle one evaluation that the pipeline asks for: check it, move the latents, set the taps.

        Args:
            *args: positional arguments of the denoiser.
            **kwargs: its keyword arguments.

        Returns:
            The arguments to use.

        Raises:
            ForeignCall: if the evaluation is not the next one of this call.
            UnsupportedPipeline: if the pipeline calls its denoiser in another way than its family.
            MoveLost: if the last move was never taken up by a scheduler step.
        """
        port = self.guard.adapter.port
        inputs = port.bind(args, kwargs)
        if self._step is None and self.guard.goes_on(inputs):
            return port.arguments(self._again(inputs), len(args))
        self._check_taken_up()
        step = self.guard.next_step(inputs)
        if not self.guard.batch.indices("cond"):
            raise UnsupportedPipeline(
                f"{type(self.guard.adapter.pipe).__name__} calls its denoiser for the negative prompt first.",
                "Call the plain pipeline of the family with the same parts.",
            )
        now = Evaluation(
            step=step, batch=self.guard.batch, inputs=inputs, positional=len(args), timestep=self._timestep(inputs)
        )
        x_BCYX = port.latents(inputs)
        latent_size = (x_BCYX.shape[-2], x_BCYX.shape[-1])
        if step.index == 0:
            self._start(now, latent_size)
        self._notice_text(now)
        is_discarded = any(self._discarded[step.index : step.index + 1])
        self.processors.place(self.passes.layers)
        if self.text is not None:
            self.log.add(self.text.update(now, self.passes), step)
            inputs |= self.text.inputs(now)
        acting = self.mover.acting(step, is_discarded=is_discarded)
        self._plain = x_BCYX[now.cond]
        taps = self.listeners.begin(acting, step, now.cond, is_discarded=is_discarded)
        moved = self.mover.move(acting, now)
        self._run(step, now.batch, latent_size, moved, taps)
        return port.arguments(moved, len(args))

    def _start(self, now: Evaluation, latent_size: tuple[int, int]) -> None:
        """What is done once, before the first evaluation."""
        step, port = now.step, self.guard.adapter.port
        self.guard.warn_of_masks()
        self.listeners.start(now.cond, step.total, latent_size)
        self._discarded = self._discarded_samples(now.timestep, step.total)
        self.idle.warn(self.guard.all_steps(step), latent_size, port.text_length(now.inputs), self._discarded)
        if any(plan.objectives or (plan.text is not None and plan.text.objectives) for plan in self.mover.plans):
            warn_of_other_listeners(self.guard.adapter.denoiser)

    def _timestep(self, inputs: Inputs) -> Any:
        """The time of this evaluation, as the scheduler is asked with it."""
        return self.guard.timestep if self.guard.adapter.port.several_calls else inputs["timestep"]

    def _again(self, inputs: Inputs) -> Inputs:
        """Handle a further call of the denoiser in the same evaluation: it gets the latents that the first one got."""
        port, step = self.guard.adapter.port, self._last_step
        batch, plain_BCYX = self.guard.layout(inputs), self._plain
        assert step is not None and plain_BCYX is not None
        x_BCYX = port.latents(inputs)
        if not torch.equal(x_BCYX[: len(plain_BCYX)], plain_BCYX):
            raise several_evaluations(self.guard.adapter.pipe)
        self.processors.place(self.passes.layers)
        moved = self.mover.moved(inputs)
        self._run(step, batch, (x_BCYX.shape[-2], x_BCYX.shape[-1]), moved, ())
        self._is_further = True
        return moved

    def _run(
        self, step: Step, batch: BatchLayout, latent_size: tuple[int, int], inputs: Inputs, taps: Sequence[Tap]
    ) -> None:
        """Tell the processors of the pass that the pipeline is about to run."""
        port = self.guard.adapter.port
        self.cost.forwards += len(inputs[port.sample_name])
        self.active_pass.begin(
            DenoiserPass(
                batch=batch,
                latent_size=latent_size,
                step=step,
                edits=self.edits,
                taps=taps,
                text_length=port.text_length(inputs),
            )
        )
        self._step = self._last_step = step
        self._is_further = False

    def learn(self, embeds_BTC: Tensor, prompts: tuple[Prompt, ...]) -> None:
        """Learn the words of embeddings that a callback has made, for which those of the call may be exchanged.

        Args:
            embeds_BTC: one row an image.
            prompts: the prompt of each image.
        """
        self._others.append((embeds_BTC, prompts))

    def _notice_text(self, now: Evaluation) -> None:
        """Warn if the call goes on with another prompt, in which the words stand elsewhere or not at all."""
        states, before = self.guard.adapter.port.texts(now.inputs)[0], self._states
        self._states, own = states, self.listeners.prompts
        if before is None or before is states or own is None or not self.passes.layers:
            return
        rows_BTC = states[now.cond]
        for embeds_BTC, prompts in self._others:
            is_this = embeds_BTC.shape == rows_BTC.shape and torch.equal(embeds_BTC.to(rows_BTC), rows_BTC)
            pairs = [pair for pair in zip(own, prompts, strict=False) if not _has_words_of(*pair)]
            if is_this and pairs:
                warnings.warn(
                    f"From evaluation {now.step.index} on the call has another prompt, {pairs[0][1].text!r}, and words "
                    f"are still sought at their places in {pairs[0][0].text!r}.",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _discarded_samples(self, timestep: Any, total: int) -> tuple[bool, ...]:
        """Measured only where it matters."""
        if not self.listeners.monitors and not any(plan.objectives for plan in self.mover.plans):
            return (False,) * total
        return discarded_samples(self.guard.adapter.pipe.scheduler, timestep, total)

    def _check_taken_up(self) -> None:
        if self.is_lost:
            self.mover.forget()  # told once
            raise MoveLost(
                f"The latents moved at evaluation {self.guard.evaluations - 1} were not taken up by a scheduler step.",
                "Set the scheduler before the call; the pipeline must step after each evaluation.",
            )

    def after(self, noise: Any) -> None:
        """End the pass that made the image: hand its maps to those who asked for them.

        Args:
            noise: what the denoiser returned.

        Raises:
            UnsupportedPipeline: if it left layers out.
            NonFiniteLoss: if it could not stand a move, and that was asked for.
        """
        over = self.active_pass.current
        self.active_pass.end()
        self.processors.remove()
        step, self._step = self._step, None
        assert step is not None and over is not None
        if not self._is_further:  # a further call may leave layers out on purpose, and nobody listens to it
            over.check_visited(self.passes.layers)
            self.listeners.end(step)
        if self.mover.is_waiting:
            self.log.check_noise(noise[0], step)

    def explain(self, error: BaseException) -> None:
        """Name the cause of an error that the denoiser raised, where it is known.

        Args:
            error: what it raised.

        Raises:
            UnsupportedPipeline: if tensors did not fit after passes of the session's own.
        """
        over = self.active_pass.current
        left_out = over is not None and any(layer.address not in over.visited for layer in self.passes.layers)
        if left_out and self.cost.extra_forwards and isinstance(error, RuntimeError) and "size" in str(error).lower():
            raise UnsupportedPipeline(
                f"The denoiser failed in its pass after the session's own ({str(error).splitlines()[0]}): something "
                "seems to keep features of one pass for the next.",
                "Take such a cache out for the length of the session (diffusers' own: its disable_cache()).",
            ) from error

    def warn(self) -> None:
        """Warn at the end of the call of what came to nothing."""
        self.log.warn()
        self.idle.warn_still(self.mover.still)

    def replace(self, sample: Tensor) -> Tensor:
        """Hand the scheduler the moved latents.

        Args:
            sample: the latents that the pipeline holds, unscaled.

        Returns:
            The same, moved if a move is waiting.
        """
        self.guard.steps += 1
        self._plain = None
        return self.mover.take_up(sample)


def _has_words_of(first: Prompt, second: Prompt) -> bool:
    """Whether a prompt has all tokens of another one, in their places."""
    pairs = zip(first.encodings, second.encodings, strict=True)
    return all(
        one.ids[place] == other.ids[place]
        for one, other in pairs
        for place, role in enumerate(one.roles)
        if role == "item"
    )
