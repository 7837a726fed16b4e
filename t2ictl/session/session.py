"""Sessions: put controls on the user's own pipeline, and leave it exactly as it was found.

Inside a session the user calls the pipeline as always. The session learns the prompt and
the batch layout from the pipeline's own ``encode_prompt``, moves latents through a hook on the
denoiser and a wrap of ``scheduler.step``, and acts on attention through processors at the
layers that are needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

from t2ictl.attention.layers import Layer
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.controls.presets import with_preset
from t2ictl.errors import (
    BadSetting,
    ForeignCall,
    MoveLost,
    NotRecorded,
    shown,
)
from t2ictl.families import find_adapter
from t2ictl.families.arguments import Encoded
from t2ictl.families.evaluations import evaluates_once, several_evaluations
from t2ictl.families.text_states import Encode
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.maps.record import AttentionRecord
from t2ictl.maps.recorder import Recording
from t2ictl.prompts.prompt import Prompt
from t2ictl.session.call import CallResults, MoveLog, PipelineCall
from t2ictl.session.checkpoints import Checkpointing, check_checkpointing
from t2ictl.session.checks import check_needs, check_words, recorded_layers
from t2ictl.session.cost import Cost, peak_bytes, start_peak
from t2ictl.session.encoding import CallPlace
from t2ictl.session.extra_passes import ExtraPasses
from t2ictl.session.guard import EvaluationGuard
from t2ictl.session.hooks import DenoiserHook
from t2ictl.session.known_prompts import PromptCache, by_image
from t2ictl.session.listeners import MapListeners
from t2ictl.session.mover import LatentMover
from t2ictl.session.observers import LossEntry, LossMonitor
from t2ictl.session.patches import PipelinePatches
from t2ictl.session.planning import IdleCheck, acting_layers, edits_by_layer, make_plans
from t2ictl.session.text_embeds import EmbedsState

__all__ = ["Session", "controlled"]


def controlled(
    pipe: Any,
    controls: Sequence[Control] = (),
    *,
    record: bool | Recording = False,
    prompt: str | Sequence[str] | None = None,
    parser: str = "grammar",
    on_nonfinite: Literal["skip", "raise"] = "skip",
    measure: Sequence[Control] = (),
    checkpointing: Checkpointing = "off",
    on_move: Callable[[MoveTrace], None] | None = None,
) -> Session:
    """Put controls on a pipeline for the length of a ``with`` block.

    Args:
        pipe: any stock diffusers pipeline of a supported family; its calls stay as they are.
        controls: what to do; their order is part of the settings.
        record: keep the attention maps of words (nothing is recorded otherwise).
        prompt: the words, where the pipeline is called with ``prompt_embeds`` only.
        parser: finds objects and attributes: ``"grammar"`` or ``"spacy"``.
        on_nonfinite: skip the update of an image whose loss is not finite, with a warning, or raise.
        measure: controls that only look on: their losses on the maps of the pass that makes the image are
            in ``session.measured``, at no further pass; they move and edit nothing.
        checkpointing: compute layers again in the backward pass in place of keeping them: ``"feed_forward"`` ones, or
            ``"all"`` or every ``"block"`` without a listener; same images, less memory, more work (docs/speed.md).
        on_move: called with the trace of each move, before the denoiser runs on it. What it raises ends the call.

    Returns:
        The session, to be used in a ``with`` statement.

    Raises:
        UnsupportedPipeline: if the pipeline is of no supported family.
        BadSetting: if one of ``controls`` or ``measure`` is not a control, or another argument has no such value.

    Example:
        >>> import t2ictl
        >>> from t2ictl.processors import AttentionSegregation
        >>> pipe = t2ictl.load("shapes")
        >>> with t2ictl.controlled(pipe, [AttentionSegregation()]) as session:
        ...     image = pipe("a red circle and a blue square", num_inference_steps=2).images[0]
        >>> session.cost.extra_forwards
        1
    """
    controls, measure = tuple(controls), tuple(measure)  # once: an iterator is used up by it
    for control in (*controls, *measure):
        if not isinstance(control, Control):
            raise BadSetting(f"{shown(control)} is not a control.", "Pass instances: [AttentionSegregation()].")
    if not isinstance(on_nonfinite, str) or on_nonfinite not in ("skip", "raise"):
        raise BadSetting(f"on_nonfinite cannot be {shown(on_nonfinite)}.", "Use 'skip' or 'raise'.")
    return Session(
        pipe,
        controls,
        recording=_recording(record),
        words=prompt,
        parser=parser,
        raise_nonfinite=on_nonfinite == "raise",
        measure=measure,
        checkpointing=checkpointing,
        on_move=on_move,
    )


def _recording(record: Any) -> Recording | None:
    if not isinstance(record, (bool, Recording)):
        raise BadSetting(f"record cannot be {shown(record)}.", "Use True, False or a Recording(words=...).")
    return record if isinstance(record, Recording) else Recording() if record else None


class Session:
    """Controls at work on a pipeline. Made by :func:`controlled`; installed on entry, taken out on every exit."""

    def __init__(
        self,
        pipe: Any,
        controls: tuple[Control, ...],
        *,
        recording: Recording | None,
        words: str | Sequence[str] | None,
        parser: str,
        raise_nonfinite: bool,
        truncate: bool = True,
        measure: tuple[Control, ...] = (),
        checkpointing: Checkpointing = "off",
        on_move: Callable[[MoveTrace], None] | None = None,
    ) -> None:
        self.adapter = find_adapter(pipe)
        self.controls, measured = with_preset(controls, self.adapter), with_preset(measure, self.adapter)
        self._measure, self._all = tuple(zip(measure, measured, strict=True)), (*self.controls, *measure)
        self.cost, self._checkpointing = Cost(), check_checkpointing(checkpointing)
        self._pipe, self._recording = pipe, recording
        self._raise_nonfinite, self._truncate, self._on_move = raise_nonfinite, truncate, on_move
        self._patches: PipelinePatches | None = None
        self._call: PipelineCall | None = None
        self._results = CallResults()
        self._places: set[CallPlace | None] = set()
        self._began: CallPlace | None = None
        self._encoded: list[Any] = []
        self._words = PromptCache(self.adapter, (words,) if isinstance(words, str) else words, parser)
        self._prompts: tuple[Prompt, ...] | None = None
        self._layers: tuple[Layer, ...] = ()
        self._check()

    def _check(self) -> None:
        """Everything that can be said before the pipeline is called."""
        self.adapter.encode_signature(self._pipe.encode_prompt)
        if not evaluates_once(self._pipe):
            raise several_evaluations(self._pipe)
        check_needs(self._all, self.adapter)
        self._record_layers = recorded_layers(self._recording, self.adapter)

    def __repr__(self) -> str:
        names = ", ".join(type(control).__name__ for control in self.controls) or "no control"
        state = "open" if self.is_open else "closed"
        return f"<Session of {names} on {type(self._pipe).__name__}, {state}, {len(self._layers)} layers touched>"

    # -- results ----------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The attention layers at which the last pipeline call had a processor of ours, in the order they run."""
        return self._layers

    @property
    def record(self) -> AttentionRecord:
        """The word maps of the last pipeline call.

        Raises:
            NotRecorded: if the session was opened without ``record=`` or made no call yet.
        """
        if self._results.recorder is None:
            raise NotRecorded("This session recorded no maps.", "Open it with record=True and call the pipeline.")
        return self._results.recorder.record

    @property
    def trace(self) -> tuple[MoveTrace, ...]:
        """Losses and moves of the last pipeline call, one entry a pass."""
        return tuple(self._results.log.entries)

    @property
    def measured(self) -> tuple[LossEntry, ...]:
        """What the controls of ``measure=`` found in the last pipeline call, one entry a control and evaluation."""
        return tuple(entry for each in self._results.monitors for entry in each.found)

    @property
    def is_open(self) -> bool:
        """Whether the session is at work on its pipeline."""
        return self._patches is not None and self._patches.is_open

    # -- entry and exit ---------------------------------------------------------------------

    def __enter__(self) -> Session:
        patches = PipelinePatches(self.adapter, DenoiserHook(self._before, self._after, self._failed))
        try:
            patches.open(self)
            self._patches = patches
            start_peak(self.adapter.device)
            self._started = time.perf_counter()
        except BaseException:
            patches.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        patches, call = self._patches, self._call
        try:
            if patches is not None:
                patches.close()
        finally:
            if patches is not None:
                patches.close()
            # Nothing leads from a session to itself any more: records go with their last reader.
            self._patches = self._call = None
            self.cost.seconds += time.perf_counter() - self._started
            self.cost.peak_bytes = max(self.cost.peak_bytes, peak_bytes(self.adapter.device))
        if kind is None and call is not None:
            self._close_call(call)

    def _close_call(self, call: PipelineCall) -> None:
        if call.is_lost:
            raise MoveLost(
                "The latents moved at the last evaluation were not taken up by a scheduler step.",
                "The scheduler was replaced in the middle of the call.",
            )
        call.warn()

    # -- one pipeline call ------------------------------------------------------------------

    def goes_on_encoding(self, place: CallPlace | None) -> bool:
        """Return whether the call that has just begun encodes once more, at another place of its code."""
        began = self._began
        if not self.adapter.port.several_calls or place is None or began is None or place == began:
            return False
        return place.frame == began.frame and self._call is not None and not self._call.has_begun

    def more_encoded(self, result: Any) -> None:
        """Learn further text rows of the call: the negative prompt's, or those of another encoder."""
        assert self._call is not None
        self._encoded.append(result)
        self._call.guard.known = self.adapter.known_rows(self._encoded)

    def belongs_to_call(self, place: CallPlace | None) -> bool:
        """Return whether a callback of the running call encodes a text; ``place`` is the place in its code."""
        return place is not None and place not in self._places and self._call is not None and self._call.has_begun

    def encoded_on_the_way(self, encoded: Encoded, result: Any) -> None:
        """Remember the words of a text that a callback has encoded."""
        if encoded.texts is not None and self._call is not None:
            prompts = by_image(
                tuple(self.adapter.parse(each, self._words.parser, encoded.how) for each in encoded.texts), encoded
            )
            self._words.remember(result[0], prompts, is_edited=False)
            self._call.learn(result[0], prompts or ())

    def begin_call(self, encoded: Encoded, encode: Encode, place: CallPlace | None = None) -> None:
        """Start a pipeline call: learn its prompt, make the plans, install what they need.

        Args:
            encoded: what the pipeline is about to encode.
            encode: encodes other texts in the same way.
            place: where in its own code the pipeline stands.
        """
        patches, last, self._call = self._patches, self._call, None
        assert patches is not None
        self._places.add(place)
        self._began = place
        patches.begin_call()
        if last is not None:
            self._close_call(last)
        self._results = CallResults()
        self.adapter.check_denoiser()
        self._prompts = prompts = self._words.prompts_of(encoded, encode)
        context = PlanContext(
            adapter=self.adapter,
            prompts=prompts or (),
            batch=encoded.batch,
            encode=encode,
            negative_prompts=tuple(
                self.adapter.parse(each, self._words.parser, encoded.how) for each in encoded.negatives
            ),
        )
        if prompts is None:
            check_words(self._all, self._recording, self._words.window_problem(encoded.embeddings))
        plans, context = make_plans(self.controls, context)
        monitors = tuple(LossMonitor(named, control.plan(context)) for named, control in self._measure)
        measured = tuple((control, each.plan) for (_, control), each in zip(self._measure, monitors, strict=True))
        idle = IdleCheck(context=context, planned=tuple(zip(self.controls, plans, strict=True)), measured=measured)
        call = self._new_call(patches, encoded, prompts, plans, monitors, idle)
        patches.start_call(call.replace)
        self._call = call
        self._results = CallResults(log=call.log, listeners=call.listeners)

    def _new_call(
        self,
        patches: PipelinePatches,
        encoded: Encoded,
        prompts: tuple[Prompt, ...] | None,
        plans: Sequence[Plan],
        monitors: Sequence[LossMonitor],
        idle: IdleCheck,
    ) -> PipelineCall:
        text = next((plan.text for plan in plans if plan.text is not None), None)
        edits = edits_by_layer(plans)
        listeners = MapListeners(
            plans=plans,
            monitors=monitors,
            prompts=by_image(prompts if text is None else text.prompts, encoded),
            recording=self._recording,
            record_layers=self._record_layers,
        )
        self._layers = tuple(sorted(acting_layers(plans) | listeners.layers, key=lambda layer: layer.order))
        # Where anything acts, all layers are watched: one that a feature cache skips would make maps of other latents.
        watched = self.adapter.layers if self._layers else ()
        passes = ExtraPasses(
            adapter=self.adapter,
            active_pass=patches.active_pass,
            hook=patches.hook,
            cost=self.cost,
            edits=edits,
            layers=watched,
            frozen=patches.frozen,
            recomputed=patches.recomputed(self._checkpointing, [layer.module for layer in self._layers]),
            truncate=self._truncate,
        )
        log = MoveLog(raise_nonfinite=self._raise_nonfinite, on_move=self._on_move)
        return PipelineCall(
            guard=EvaluationGuard(adapter=self.adapter, batch=encoded.batch),
            mover=LatentMover(adapter=self.adapter, plans=plans, passes=passes, report=log.add),
            listeners=listeners,
            log=log,
            edits=edits,
            active_pass=patches.active_pass,
            processors=patches.processors,
            passes=passes,
            cost=self.cost,
            idle=idle,
            text=None if text is None else EmbedsState(text),
        )

    def end_encoding(self, encoded: Encoded, result: Any, encode: Encode) -> Any:
        """Edit what ``encode_prompt`` returned, and remember it: the denoiser must be called with it.

        Args:
            encoded: what was encoded.
            result: what ``encode_prompt`` returned.
            encode: encodes other texts in the same way.

        Returns:
            What the pipeline gets.
        """
        assert self._call is not None
        text = self._call.text
        if text is not None and not self._words.are_edited(encoded.embeddings):
            before = self.adapter.text_states(result)
            result = self.adapter.with_text_states(result, text.edit.rewrite(before, encode))
            self._call.idle.same_text = self.adapter.text_states(result).same_images(before)
        elif text is not None and (text.edit.objectives or text.edit.during is not None):
            # Not edited a second time; but what acts on the way learns from the words what it needs.
            words = by_image(self._prompts, encoded)
            assert words is not None
            text.edit.rewrite(encode([each.text for each in words]), encode)
        self._encoded = [result]
        self._call.guard.known = self.adapter.known_rows(self._encoded)
        self._words.remember(result[0], by_image(self._prompts, encoded), is_edited=text is not None)
        return result

    # -- the denoiser's hook ----------------------------------------------------------------

    def _before(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._call is None or self._patches is None:
            raise ForeignCall(
                "The denoiser was called before this session's pipeline encoded a prompt.",
                "Another pipeline shares this denoiser: call it outside the session, or give it its own.",
            )
        with self._patches.whole():
            return self._call.before(*args, **kwargs)

    def _after(self, noise: Any) -> None:
        if self._call is not None and self._patches is not None:
            with self._patches.whole():
                self._call.after(noise)

    def _failed(self, error: BaseException) -> None:
        if self._call is not None and self._patches is not None:
            with self._patches.whole():
                self._call.explain(error)
                raise error
