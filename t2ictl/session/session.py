"""Sessions: put controls on the user's own pipeline, and leave it exactly as it was found.

Inside a session the user calls the pipeline as always. The session learns the prompt and
the batch layout from the pipeline's own ``encode_prompt``, moves latents through a hook on the
denoiser and a wrap of ``scheduler.step``, and acts on attention through processors at the
layers that are needed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import torch

from t2ictl.attention.layers import Layer, select_layers
from t2ictl.attention.passes import ActivePass
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.errors import (
    BadSetting,
    ControlConflict,
    ForeignCall,
    MoveLost,
    NotRecorded,
    PromptUnknown,
    UnsupportedPipeline,
)
from t2ictl.families import find_adapter
from t2ictl.families.base import Encoded
from t2ictl.families.schedulers import SchedulerPatch
from t2ictl.families.text_states import Encode
from t2ictl.guidance.objectives import check_one_step_size
from t2ictl.guidance.optimize import MoveTrace
from t2ictl.maps.record import AttentionRecord, Recording
from t2ictl.prompts.prompt import Prompt
from t2ictl.session.call import PipelineCall
from t2ictl.session.checkpoints import Checkpointing, check_checkpointing
from t2ictl.session.cost import Cost, peak_bytes, start_peak
from t2ictl.session.hooks import DenoiserHook, EncoderWrap
from t2ictl.session.installation import AttnProcessorPatch
from t2ictl.session.known_prompts import PromptCache
from t2ictl.session.observers import LossEntry, LossMonitor
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
        parser: how objects and attributes are found: ``"grammar"`` or ``"spacy"``.
        on_nonfinite: skip the update of an image whose loss is not finite, with a warning, or raise.
        measure: controls that only look on: their losses on the maps of the pass that makes the image are
            in ``session.measured``, at no further pass; they move and edit nothing.
        checkpointing: compute ``"feed_forward"`` layers, or ``"all"`` in which nobody listens, a second time in place
            of keeping them for the backward pass: the same images, less memory, more work (docs/speed.md).
        on_move: called with the trace of each move of latents or text rows, its step included, before the denoiser
            runs on what was moved. What it raises ends the call.

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
        2
    """
    for control in (*controls, *measure):
        if not isinstance(control, Control):
            raise BadSetting(f"{control!r} is not a control.", "Pass instances: controls=[AttentionSegregation()].")
    if on_nonfinite not in ("skip", "raise"):
        raise BadSetting(f"on_nonfinite cannot be {on_nonfinite!r}.", "Use 'skip' or 'raise'.")
    recording = Recording() if record is True else (record or None)
    return Session(
        pipe,
        tuple(controls),
        recording=recording,
        words=prompt,
        parser=parser,
        raise_nonfinite=on_nonfinite == "raise",
        measure=tuple(measure),
        checkpointing=checkpointing,
        on_move=on_move,
    )


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
        self.controls, self._measure = controls, measure
        self.cost, self._checkpointing = Cost(), check_checkpointing(checkpointing)
        self._pipe, self._recording = pipe, recording
        self._raise_nonfinite, self._truncate, self._on_move = raise_nonfinite, truncate, on_move
        self._switch = ActivePass()
        self._hook = DenoiserHook(self._before, self._after)
        self._call: PipelineCall | None = None
        self._wrap: SchedulerPatch | None = None
        self._processors = AttnProcessorPatch(self.adapter.denoiser, self._switch)
        self._words = PromptCache(self.adapter, (words,) if isinstance(words, str) else words, parser)
        self._prompts: tuple[Prompt, ...] | None = None
        self._check()

    def _check(self) -> None:
        """Everything that can be said before the pipeline is called."""
        for control in (*self.controls, *self._measure):
            if self.adapter.family not in control.families:
                raise UnsupportedPipeline(
                    f"{type(control).__name__} does not act on the family {self.adapter.family!r}.",
                    f"It acts on: {', '.join(control.families)}.",
                )
        self._record_layers: tuple[Layer, ...] = ()
        if self._recording is not None:
            where = self._recording.layers or f"cross@{self.adapter.semantic_stride}"
            # The maps of self-attention are over places, not over words.
            self._record_layers = select_layers(
                [layer for layer in self.adapter.layers if layer.kind == "cross"], where
            )

    # -- results ----------------------------------------------------------------------------

    @property
    def record(self) -> AttentionRecord:
        """The word maps of the last pipeline call.

        Raises:
            NotRecorded: if the session was opened without ``record=`` or made no call yet.
        """
        if self._call is None or self._call.recorder is None:
            raise NotRecorded("This session recorded no maps.", "Open it with record=True and call the pipeline.")
        return self._call.recorder.record

    @property
    def trace(self) -> tuple[MoveTrace, ...]:
        """Losses and moves of the last pipeline call, one entry a pass."""
        return () if self._call is None else tuple(self._call.trace)

    @property
    def measured(self) -> tuple[LossEntry, ...]:
        """What the controls of ``measure=`` found in the last pipeline call, one entry a control and evaluation."""
        return () if self._call is None else tuple(entry for each in self._call.loss_monitors for entry in each.found)

    # -- entry and exit ---------------------------------------------------------------------

    def __enter__(self) -> Session:
        pipe = self._pipe
        if isinstance(getattr(pipe, "encode_prompt", None), EncoderWrap) or self.adapter.denoiser.__dict__.get(
            "_t2ictl"
        ):
            raise ControlConflict(
                "This pipeline, or another one with the same denoiser, already has an open session.",
                "Give all controls to one session: controlled(pipe, [first, second]).",
            )
        start_peak(self.adapter.device)
        self._started = time.perf_counter()
        try:
            self._had_encoder = pipe.__dict__.get("encode_prompt")
            pipe.encode_prompt = EncoderWrap(pipe.encode_prompt, self)
            self.adapter.denoiser.__dict__["_t2ictl"] = True
            self._hook.install(self.adapter.denoiser)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        self.cost.seconds += time.perf_counter() - self._started
        self.cost.peak_bytes = max(self.cost.peak_bytes, peak_bytes(self.adapter.device))
        if kind is None and self._call is not None:
            self._close_call(self._call)

    def _restore(self) -> None:
        """Put everything back. Runs to its end on every exit; each part undoes itself only."""
        self._switch.current = None
        self._processors.remove()
        self._unwrap_scheduler()
        self._hook.remove()
        self.adapter.denoiser.__dict__.pop("_t2ictl", None)
        if isinstance(self._pipe.__dict__.get("encode_prompt"), EncoderWrap):
            if self._had_encoder is None:
                del self._pipe.__dict__["encode_prompt"]
            else:
                self._pipe.encode_prompt = self._had_encoder

    def _close_call(self, call: PipelineCall) -> None:
        if call.is_lost:
            raise MoveLost(
                "The latents moved at the last evaluation were not taken up by a scheduler step.",
                "The scheduler was replaced in the middle of the call.",
            )
        skipped = sum(int(entry.skipped.sum()) for entry in call.trace)
        if skipped:
            warnings.warn(
                f"{skipped} updates were skipped because the loss or its gradient was not finite. "
                "Use bfloat16 or float32, or a smaller step.",
                RuntimeWarning,
                stacklevel=3,
            )

    # -- one pipeline call ------------------------------------------------------------------

    def begin_call(self, encoded: Encoded, encode: Encode) -> None:
        """Start a pipeline call: learn its prompt, make the plans, install what they need.

        Args:
            encoded: what the pipeline is about to encode.
            encode: encodes other texts in the same way.
        """
        if self._call is not None:
            self._close_call(self._call)
        self._call = None
        self._processors.remove()
        self.adapter.check_denoiser()
        self._prompts = prompts = self._words.prompts_of(encoded)
        context = PlanContext(
            adapter=self.adapter,
            prompts=prompts or (),
            batch=encoded.batch,
            encode=encode,
            negative_prompts=tuple(self.adapter.parse(each, self._words.parser) for each in encoded.negatives),
        )
        plans, context = self._plans(prompts, context)
        loss_monitors = tuple(LossMonitor(control, control.plan(context)) for control in self._measure)
        text = next((plan.text for plan in plans if plan.text is not None), None)
        self._call = PipelineCall(
            adapter=self.adapter,
            batch=encoded.batch,
            prompts=_by_image(prompts if text is None else text.prompts, encoded),
            plans=plans,
            text=None if text is None else EmbedsState(text),
            loss_monitors=loss_monitors,
            active_pass=self._switch,
            hook=self._hook,
            cost=self.cost,
            recording=self._recording,
            record_layers=self._record_layers,
            truncate=self._truncate,
            checkpointing=self._checkpointing,
            raise_nonfinite=self._raise_nonfinite,
            on_move=self._on_move,
        )
        self._hook.install(self.adapter.denoiser)
        self._processors.place(self._needed_layers(plans).union(*(each.layers for each in loss_monitors)))
        self._unwrap_scheduler()
        self._wrap = SchedulerPatch(self._pipe.scheduler, self._call.replace)

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
            states = text.edit.rewrite(self.adapter.text_states(result), encode)
            result = self.adapter.with_text_states(result, states)
        elif text is not None and (text.edit.objectives or text.edit.during is not None):
            # Not edited a second time; but what acts on the way learns from the words what it needs.
            words = _by_image(self._prompts, encoded)
            assert words is not None
            text.edit.rewrite(encode([each.text for each in words]), encode)
        self._call.embeddings = result[0]
        self._words.remember(result[0], _by_image(self._prompts, encoded), is_edited=text is not None)
        return result

    def _plans(self, prompts: tuple[Prompt, ...] | None, context: PlanContext) -> tuple[tuple[Plan, ...], PlanContext]:
        """The plans of all controls, and the context with the words where the plans have put them."""
        controls = (*self.controls, *self._measure)
        wanting = [type(control).__name__ for control in controls if control.needs_words]
        if self._recording is not None:
            wanting.append("record=")
        if prompts is None and wanting:
            raise PromptUnknown(
                f"The pipeline was called with prompt_embeds only, and {', '.join(wanting)} needs the words.",
                "Name them: controlled(..., prompt='...'), or encode them inside the session with pipe.encode_prompt.",
            )
        made: dict[int, Plan] = {}
        unmoved = context  # what all that move words see, so that two of them are refused as owners of one thing
        for place, control in sorted(enumerate(self.controls), key=lambda pair: not pair[1].moves_words):
            made[place] = control.plan(unmoved if control.moves_words else context)
            if (text := made[place].text) is not None:
                context = replace(context, prompts=text.prompts)
        plans = tuple(made[place] for place in range(len(self.controls)))
        self._check_owners(plans)
        objectives = [objective for plan in plans for objective in plan.objectives]
        check_one_step_size(objectives)
        if objectives or any(plan.text is not None and plan.text.objectives for plan in plans):
            self.adapter.check_gradients()
            if torch.is_inference_mode_enabled():
                raise UnsupportedPipeline(
                    "The pipeline is called under torch.inference_mode(), where no gradient can be taken.",
                    "Call it under torch.no_grad(), or as it is: pipelines active_pass gradients off themselves.",
                )
        return plans, context

    def _check_owners(self, plans: Sequence[Plan]) -> None:
        owners: dict[str, str] = {}
        for control, plan in zip(self.controls, plans, strict=True):
            for thing in (*plan.owns, *(("the text states",) if plan.text is not None else ())):
                if thing in owners:
                    raise ControlConflict(
                        f"{owners[thing]} and {control.name} both set {thing}.", "Use one of them in a session."
                    )
                owners[thing] = control.name

    def _needed_layers(self, plans: Sequence[Plan]) -> set[Layer]:
        edited = {layer for plan in plans for layers, _ in plan.edits for layer in layers}
        probed = {layer for plan in plans for objective in plan.objectives for layer in objective.all_layers}
        watched = {layer for plan in plans for watch in plan.map_hooks for layer in watch.layers}
        texts = [plan.text for plan in plans if plan.text is not None]
        passed = {layer for text in texts for objective in text.objectives for layer in objective.layers}
        return edited | probed | watched | passed | set(self._record_layers)

    def _unwrap_scheduler(self) -> None:
        if self._wrap is not None:
            self._wrap.remove()
            self._wrap = None

    # -- the denoiser's hook ----------------------------------------------------------------

    def _before(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._call is None:
            raise ForeignCall(
                "The denoiser was called before this session's pipeline encoded a prompt.",
                "Another pipeline shares this denoiser: call it outside the session, or give it its own.",
            )
        return self._call.before(*args, **kwargs)

    def _after(self) -> None:
        if self._call is not None:
            self._call.after()


def _by_image(prompts: tuple[Prompt, ...] | None, encoded: Encoded) -> tuple[Prompt, ...] | None:
    if prompts is None:
        return None
    return tuple(prompts[row.prompt] for row in encoded.batch.only("cond").rows)
