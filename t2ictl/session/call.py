"""One pipeline call under control, from ``encode_prompt`` to the last scheduler step.

The pipeline's own loop drives everything. Before each denoiser evaluation the latents may
move; at the scheduler step that follows, the moved latents replace those that the pipeline
holds. Nothing of the loop is repeated here.

Legend: ``B`` batch row, ``C`` channels, ``Y`` ``X`` rows and columns, ``T`` prompt token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from t2ictl.attention.batch import BatchLayout
from t2ictl.attention.edits import Edit
from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import ActivePass, DenoiserPass, Tap
from t2ictl.controls.base import Plan
from t2ictl.errors import ForeignCall, MoveLost, NonFiniteLoss
from t2ictl.families import Adapter
from t2ictl.families.schedulers import discards_sample, input_scale
from t2ictl.guidance.noise_search import optimize_noise
from t2ictl.guidance.objectives import Objective
from t2ictl.guidance.optimize import Move, MoveTrace, optimize, push
from t2ictl.maps.record import MapTap, Recorder, Recording
from t2ictl.prompts.prompt import Prompt
from t2ictl.session.checkpoints import Checkpointing
from t2ictl.session.cost import Cost
from t2ictl.session.extra_passes import Evaluation, ExtraPasses
from t2ictl.session.hooks import DenoiserHook
from t2ictl.session.observers import LossMonitor
from t2ictl.session.text_embeds import EmbedsState
from t2ictl.settings.windows import Step

__all__ = ["PipelineCall"]


def _refined_to(objective: Objective, presence: float, step: Step) -> Objective:
    """The same objective, with a refinement at this step."""
    assert objective.refinement is not None
    now = replace(objective.refinement, thresholds=((step.index / step.total, presence),))
    return replace(objective, refinement=now)


@dataclass(kw_only=True)
class PipelineCall:
    """State of one pipeline call. A session makes one each time the pipeline encodes a prompt.

    Args:
        adapter: the pipeline's family.
        batch: the rows of its batch.
        prompts: the prompt of each image; None if no control needs words and none are known.
        plans: what the controls do.
        loss_monitors: controls whose losses are measured, and which do nothing.
        active_pass: tells the attention processors which pass is in progress.
        hook: runs the denoiser for extra passes.
        text: what a control does to the text states, or None.
        cost: counter of the session.
        recording: what to record, or None.
        record_layers: the layers to record.
        truncate: end extra passes after the last layer that is needed.
        checkpointing: which layers extra passes compute again for the backward pass.
        raise_nonfinite: raise at a loss that is not finite, where it would otherwise be skipped.
        on_move: called with each entry of the trace, or None.
    """

    adapter: Adapter
    batch: BatchLayout
    prompts: tuple[Prompt, ...] | None
    plans: Sequence[Plan]
    loss_monitors: Sequence[LossMonitor]
    active_pass: ActivePass
    hook: DenoiserHook
    cost: Cost
    text: EmbedsState | None = None
    recording: Recording | None = None
    record_layers: Sequence[Layer] = ()
    truncate: bool = True
    checkpointing: Checkpointing = "off"
    raise_nonfinite: bool = False
    on_move: Callable[[MoveTrace], None] | None = None
    embeddings: Tensor | None = None
    trace: list[MoveTrace] = field(default_factory=list)
    recorder: Recorder | None = None
    evaluations: int = 0
    last_timestep: float = float("inf")
    schedule: tuple[Any, Tensor, list[float]] | None = None
    owed: dict[int, float] = field(default_factory=dict)
    pending: Tensor | None = None
    is_in_pass: bool = False
    map_hooks: list[tuple[Callable[[Tensor, Step], None], MapTap]] = field(default_factory=list)

    @property
    def objectives(self) -> list[Objective]:
        """The objectives of all plans."""
        return [objective for plan in self.plans for objective in plan.objectives]

    @property
    def edits(self) -> dict[str, list[Edit]]:
        """The edits of all plans by layer, in the order of the controls."""
        by_layer: dict[str, list[Edit]] = {}
        for plan in self.plans:
            for layers, edit in plan.edits:
                for layer in layers:
                    by_layer.setdefault(layer.address, []).append(edit)
        return by_layer

    @cached_property
    def passes(self) -> ExtraPasses:
        """Extra passes through the denoiser."""
        return ExtraPasses(
            adapter=self.adapter,
            active_pass=self.active_pass,
            hook=self.hook,
            cost=self.cost,
            edits=self.edits,
            truncate=self.truncate,
            checkpointing=self.checkpointing,
        )

    @property
    def cond(self) -> slice:
        """The conditional rows, which lie together."""
        rows = self.batch.indices("cond")
        return slice(rows[0], rows[-1] + 1)

    # -- before a denoiser evaluation -------------------------------------------------------

    def before(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Handle one evaluation that the pipeline asks for: check it, move the latents, set the taps.

        Args:
            *args: positional arguments of the denoiser (sample, timestep, text states).
            **kwargs: its keyword arguments.

        Returns:
            The arguments to use.

        Raises:
            ForeignCall: if the evaluation is not the next one of this call.
            MoveLost: if the last move was never taken up by a scheduler step.
        """
        names = ("sample", "timestep", "encoder_hidden_states")
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        step = self._next_step(inputs)
        now = Evaluation(step=step, batch=self.batch, inputs=inputs, rest=args[len(names) :])
        if self.text is not None:
            self._note(self.text.update(now, self.passes), step)
            inputs |= self.text.inputs(now)
        sample = inputs["sample"]
        acting = self._acting(step)
        if acting or any(plan.perturb is not None or plan.fixed_latents is not None for plan in self.plans):
            inputs["sample"] = sample = self._move(acting, now)
        self.cost.forwards += len(sample)
        self._listen(acting, step, sample)
        self.is_in_pass = True
        leading = (inputs.pop("sample"), inputs.pop("timestep"), inputs.pop("encoder_hidden_states"))
        return (*leading, *now.rest), inputs

    def _acting(self, step: Step) -> list[Objective]:
        """The objectives that move latents now.

        A refinement that falls on an evaluation whose sample the scheduler discards is made at
        the next one: most two-stage schedulers would otherwise never refine.
        """
        acting = [(place, each) for place, each in enumerate(self.objectives) if each.acts(step)]
        if discards_sample(self.adapter.pipe.scheduler):
            late = {place: each.target(step) for place, each in acting if not each.keep_discarded}
            self.owed |= {place: target for place, target in late.items() if target is not None}
            return [each for _, each in acting if each.keep_discarded]
        owed, self.owed = self.owed, {}
        due = [place in owed and each.target(step) is None for place, each in acting]
        return [
            _refined_to(each, owed[place], step) if is_due else each
            for (place, each), is_due in zip(acting, due, strict=True)
        ]

    def _next_step(self, inputs: dict[str, Any]) -> Step:
        """Check that this is the evaluation expected next, and number it."""
        if self.is_lost:
            self.pending = None  # told once
            raise MoveLost(
                f"The latents moved at evaluation {self.evaluations - 1} were not taken up by a scheduler step.",
                "Set the scheduler before the call; the pipeline must step after each evaluation.",
            )
        sample, timestep = inputs["sample"], float(torch.as_tensor(inputs["timestep"]).flatten()[0])
        pipe = self.adapter.pipe
        total = getattr(pipe, "_num_timesteps", None) or len(pipe.scheduler.timesteps)
        if self.evaluations >= total or not self._follows(timestep):
            raise ForeignCall(
                f"The denoiser was called at timestep {timestep:g} after evaluation {self.evaluations} of {total}, "
                "without this pipeline encoding a prompt first.",
                "Another pipeline shares this denoiser: call it outside the session, or give it its own.",
            )
        if self.evaluations == 0:
            self.batch.check_rows(len(sample))
            self._check_embeddings(inputs["encoder_hidden_states"])
            self._start_record(sample, total)
        else:
            self._check_rows(len(sample))
        step = Step(index=self.evaluations, total=total, timestep=timestep)
        self.evaluations += 1
        self.last_timestep = timestep
        return step

    @property
    def is_lost(self) -> bool:
        """Whether a move was not taken up, though the pass it was made for came to its end.

        A call that was broken off inside that pass lost nothing that anybody would miss.
        """
        return self.pending is not None and not self.is_in_pass

    def _follows(self, timestep: float) -> bool:
        """Tell whether an evaluation at this timestep can be the next one of this call.

        After an interrupt or an error another pipeline may go on with the same denoiser, and even
        with the same scheduler. It starts at another place of the schedule, or sets the schedule anew.
        """
        scheduler = self.adapter.pipe.scheduler
        if self.schedule is None:
            self.schedule = (
                scheduler,
                scheduler.timesteps,
                [float(each) for each in torch.as_tensor(scheduler.timesteps).tolist()],
            )
            return True
        own, timesteps, known = self.schedule
        was_reset = scheduler is own and scheduler.timesteps is not timesteps
        was_stopped = bool(getattr(self.adapter.pipe, "_interrupt", False))
        return not was_reset and not was_stopped and (self.last_timestep, timestep) in pairwise(known)

    def _check_rows(self, rows: int) -> None:
        """Compare with the rows that arrive; callbacks may active_pass guidance off for the rest of a call."""
        if rows != len(self.batch) and rows == self.batch.images:
            self.batch = self.batch.only("cond")
            if self.recorder is not None:
                self.recorder.rows = self.cond
        self.batch.check_rows(rows)

    def _check_embeddings(self, states: Tensor) -> None:
        """The text states must be those that this pipeline's own ``encode_prompt`` returned."""
        if self.embeddings is None:
            return
        mine = self.embeddings.to(device=states.device, dtype=states.dtype)
        theirs = states[self.cond]
        if mine.shape != theirs.shape or not torch.equal(mine, theirs):
            raise ForeignCall(
                "The denoiser was called with text states that this pipeline's encode_prompt did not return.",
                "Another pipeline shares this denoiser: call it outside the session, or give it its own.",
            )

    def _start_record(self, sample: Tensor, total: int) -> None:
        if self.recording is None or self.prompts is None:
            return
        self.recorder = Recorder(
            self.record_layers,
            self.cond,
            self.prompts,
            self.recording,
            total=total,
            latent_size=(sample.shape[-2], sample.shape[-1]),
        )

    # -- the move ---------------------------------------------------------------------------

    def _move(self, acting: list[Objective], now: Evaluation) -> Tensor:
        """Move the latents of all images and remember the move for the scheduler step."""
        sample, channels, step = now.inputs["sample"], self.adapter.latent_channels, now.step
        moves: list[Move] = []
        searching = [each for each in acting if each.search is not None]
        moving = [each for each in acting if each.search is None]
        for objectives, find in ((searching, optimize_noise), (moving, optimize)):
            if not objectives:
                continue
            maps = self.passes.maps([layers for each in objectives for layers in each.groups], now)
            found = find(moves[-1].latents if moves else sample[self.cond, :channels], objectives, maps, step)
            self._note(found.trace, step)
            moves.append(found)
        pushes = self._pushes(moves[-1] if moves else None, sample[self.cond, :channels], step)
        self._note([entry for move in pushes for entry in move.trace], step)
        moves += pushes
        moves += self._pins(moves[-1].latents if moves else sample[self.cond, :channels], step)
        if not moves:
            return sample
        # The scheduler steps from its own, unscaled sample: dz = dx / c.
        delta_BCYX = reduce(torch.add, [move.delta for move in moves])
        self.pending = delta_BCYX / input_scale(self.adapter.pipe.scheduler, now.inputs["timestep"])
        copies = len(sample) // self.batch.images
        return torch.cat([moves[-1].latents.repeat(copies, 1, 1, 1), sample[:, channels:]], dim=1)

    def _pushes(self, before: Move | None, x_BCYX: Tensor, step: Step) -> list[Move]:
        """The moves that need no look at the maps, after what the objectives made of the latents."""
        done = len(before.trace) if before else 0
        made: list[Move] = []
        for plan in self.plans:
            now_BCYX = made[-1].latents if made else before.latents if before else x_BCYX
            vectors = plan.perturb(now_BCYX, step) if plan.perturb is not None else ()
            if vectors:
                made.append(push(now_BCYX, vectors, step, first=done))
                done += len(vectors)
        return made

    def _pins(self, x_BCYX: Tensor, step: Step) -> list[Move]:
        """Images that are held somewhere, whatever the others do; no move that anybody would count."""
        made: list[Move] = []
        for plan in self.plans:
            if plan.fixed_latents is not None:
                before_BCYX = made[-1].latents if made else x_BCYX
                held_BCYX = plan.fixed_latents(before_BCYX, step)
                exact = torch.promote_types(x_BCYX.dtype, torch.float32)
                made.append(Move(latents=held_BCYX, delta=held_BCYX.to(exact) - before_BCYX.to(exact), trace=()))
        return made

    def _note(self, trace: Sequence[MoveTrace], step: Step) -> None:
        """Trace moves and report them; then the check, so that the trace of a call that it ends says where."""
        self.trace.extend(trace)
        if self.on_move is not None:
            for entry in trace:
                self.on_move(entry)
        self._check_finite(trace, step)

    def _check_finite(self, trace: Sequence[MoveTrace], step: Step) -> None:
        if not self.raise_nonfinite or not trace:
            return
        bad = [row for row, skipped in enumerate(torch.stack([t.skipped for t in trace]).any(dim=0)) if skipped]
        if bad:
            raise NonFiniteLoss(
                f"The loss or its gradient is not finite at evaluation {step.index} for images {bad}.",
                "Use bfloat16 or float32, a smaller step, or on_nonfinite='skip'.",
            )

    # -- the pass that makes the image ----------------------------------------------------

    def _listen(self, acting: Sequence[Objective], step: Step, sample: Tensor) -> None:
        """Set edits and taps for the pass that the pipeline is about to make."""
        wanted = [(each.on_maps, each.layers) for each in acting if each.on_maps is not None]
        wanted += [(watch.take, watch.layers) for plan in self.plans for watch in plan.map_hooks]
        self.map_hooks = [(take, MapTap(layers, self.cond)) for take, layers in wanted]
        taps: list[Tap] = [tap for _, tap in self.map_hooks]
        is_discarded = discards_sample(self.adapter.pipe.scheduler)
        taps += [tap for each in self.loss_monitors for tap in each.begin(step, self.cond, is_discarded)]
        if self.recorder is not None:
            taps.append(self.recorder)
        self._step = step
        self.active_pass.current = DenoiserPass(
            batch=self.batch,
            latent_size=(sample.shape[-2], sample.shape[-1]),
            step=step,
            edits=self.edits,
            taps=taps,
        )

    def after(self) -> None:
        """End the pass that made the image: hand its maps to those who asked for them."""
        self.active_pass.current = None
        self.is_in_pass = False
        for take, tap in self.map_hooks:
            take(tap.mean(), self._step)
        self.map_hooks = []
        for monitor in self.loss_monitors:
            monitor.end(self._step)
        if self.recorder is not None:
            self.recorder.end_step()

    def replace(self, sample: Tensor) -> Tensor:
        """Give the scheduler the moved latents.

        Args:
            sample: the latents that the pipeline holds, unscaled.

        Returns:
            The same, moved if a move is waiting.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return sample
        return (sample.to(pending.dtype) + pending.to(sample.device)).to(sample.dtype)
