"""Sessions: put controls on the user's own pipeline, and leave it exactly as it was found.

Inside a session the user calls the pipeline as always. The session learns the prompt and
the batch layout from the pipeline's own ``encode_prompt``, moves latents through a hook on the
denoiser and a wrap of ``scheduler.step``, and acts on attention through processors at the
layers that are needed.
"""

from __future__ import annotations

import functools
import inspect
import time
import warnings
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from t2ictl.adapters import find_adapter
from t2ictl.adapters.base import Encoded
from t2ictl.attention import Switch
from t2ictl.calls import PipelineCall
from t2ictl.controls import Control, Plan, PlanContext
from t2ictl.cost import Cost, peak_bytes, start_peak
from t2ictl.errors import (
    BadSetting,
    ControlConflict,
    ForeignCall,
    MoveLost,
    NotRecorded,
    PromptUnknown,
    UnsupportedPipeline,
)
from t2ictl.hooks import DenoiserHook
from t2ictl.installation import ProcessorInstallation
from t2ictl.measures import Measured, Onlooker
from t2ictl.objectives import one_rule
from t2ictl.optimize import MoveTrace
from t2ictl.probes import AttentionRecord, Recording
from t2ictl.schedulers import StepWrap
from t2ictl.sites import Site, select
from t2ictl.spans import Prompt

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
) -> Session:
    """Put controls on a pipeline for the length of a ``with`` block.

    Args:
        pipe: any stock diffusers pipeline of a supported family; its calls stay as they are.
        controls: what to do; their order is part of the settings.
        record: keep the attention maps of words (nothing is recorded otherwise).
        prompt: the words, where the pipeline is called with ``prompt_embeds`` only.
        parser: how objects and attributes are found: ``"grammar"`` or ``"spacy"``.
        on_nonfinite: skip the update of a picture whose loss is not finite, with a warning, or raise.
        measure: controls that only look on: their losses on the maps of the pass that makes the picture are
            in ``session.measured``, at no further pass; they move and edit nothing.

    Returns:
        The session, to be used in a ``with`` statement.

    Raises:
        UnsupportedPipeline: if the pipeline is of no supported family.
        BadSetting: if one of ``controls`` or ``measure`` is not a control, or ``on_nonfinite`` is neither of the two.

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
    ) -> None:
        self.adapter = find_adapter(pipe)
        self.controls, self._measure = controls, measure
        self.cost = Cost()
        self._pipe, self._recording, self._parser = pipe, recording, parser
        self._words = (words,) if isinstance(words, str) else words
        self._raise_nonfinite, self._truncate = raise_nonfinite, truncate
        self._switch = Switch()
        self._hook = DenoiserHook(self._before, self._after)
        self._call: PipelineCall | None = None
        self._wrap: StepWrap | None = None
        self._processors = ProcessorInstallation(self.adapter.denoiser, self._switch)
        self._known: list[tuple[weakref.ref[Tensor], tuple[Prompt, ...]]] = []
        self._check()

    def _check(self) -> None:
        """Everything that can be said before the pipeline is called."""
        for control in (*self.controls, *self._measure):
            if self.adapter.family not in control.families:
                raise UnsupportedPipeline(
                    f"{type(control).__name__} does not act on the family {self.adapter.family!r}.",
                    f"It acts on: {', '.join(control.families)}.",
                )
        self._record_sites: tuple[Site, ...] = ()
        if self._recording is not None:
            where = self._recording.sites or f"cross@{self.adapter.semantic_factor}"
            # The maps of self-attention are over places, not over words.
            self._record_sites = select([site for site in self.adapter.sites if site.kind == "cross"], where)

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
    def measured(self) -> tuple[Measured, ...]:
        """What the controls of ``measure=`` found in the last pipeline call, one entry a control and evaluation."""
        return () if self._call is None else tuple(entry for each in self._call.onlookers for entry in each.found)

    # -- entry and exit ---------------------------------------------------------------------

    def __enter__(self) -> Session:
        pipe = self._pipe
        if isinstance(getattr(pipe, "encode_prompt", None), _Learner) or self.adapter.denoiser.__dict__.get("_t2ictl"):
            raise ControlConflict(
                "This pipeline, or another one with the same denoiser, already has an open session.",
                "Give all controls to one session: controlled(pipe, [first, second]).",
            )
        start_peak(self.adapter.device)
        self._started = time.perf_counter()
        try:
            self._had_encoder = pipe.__dict__.get("encode_prompt")
            pipe.encode_prompt = _Learner(pipe.encode_prompt, self)
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
        if isinstance(self._pipe.__dict__.get("encode_prompt"), _Learner):
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

    def begin_call(self, encoded: Encoded) -> None:
        """Start a pipeline call: learn its prompt, make the plans, install what they need.

        Args:
            encoded: what the pipeline is about to encode.
        """
        if self._call is not None:
            self._close_call(self._call)
        self._call = None
        self._processors.remove()
        self.adapter.check_denoiser()
        prompts = self._prompts(encoded)
        context = PlanContext(adapter=self.adapter, prompts=prompts or (), lanes=encoded.lanes)
        plans = self._plans(prompts, context)
        onlookers = tuple(Onlooker(control, control.plan(context)) for control in self._measure)
        self._call = PipelineCall(
            adapter=self.adapter,
            lanes=encoded.lanes,
            prompts=_by_picture(prompts, encoded),
            plans=plans,
            onlookers=onlookers,
            switch=self._switch,
            hook=self._hook,
            cost=self.cost,
            recording=self._recording,
            record_sites=self._record_sites,
            truncate=self._truncate,
            raise_nonfinite=self._raise_nonfinite,
        )
        self._hook.install(self.adapter.denoiser)
        self._processors.place(self._needed_sites(plans).union(*(each.sites for each in onlookers)))
        self._unwrap_scheduler()
        self._wrap = StepWrap(self._pipe.scheduler, self._call.replace)

    def end_encoding(self, embeddings: Tensor) -> None:
        """Remember what ``encode_prompt`` returned: the denoiser must be called with it.

        Args:
            embeddings: the conditional embeddings, one row a picture.
        """
        assert self._call is not None
        self._call.embeddings = embeddings
        if self._call.prompts is not None:
            # The user may come back with this tensor; nothing is kept alive for it.
            self._known = [pair for pair in self._known if pair[0]() is not None]
            self._known.append((weakref.ref(embeddings), self._call.prompts))

    def _prompts(self, encoded: Encoded) -> tuple[Prompt, ...] | None:
        """The parsed prompt of each text that the pipeline was given, or None where nobody knows the words."""
        if encoded.texts is not None:
            return tuple(self.adapter.parse(texts, self._parser) for texts in encoded.texts)
        assert encoded.embeddings is not None
        rows, tokens = encoded.embeddings.shape[:2]
        for embeddings, prompts in self._known:
            if embeddings() is encoded.embeddings:
                return prompts
        if self._words is None:
            return None
        found = tuple(self.adapter.parse((text,), self._parser) for text in self._words)
        lengths = {len(encoding.ids) for prompt in found for encoding in prompt.encodings}
        if len(found) not in (1, rows) or lengths != {tokens}:
            raise PromptUnknown(
                f"prompt= names {len(found)} prompts of {sorted(lengths)} tokens, and the embeddings have "
                f"{rows} rows of {tokens}.",
                "Give the prompts from which the embeddings were made, one for each row.",
            )
        return found * (rows // len(found))

    def _plans(self, prompts: tuple[Prompt, ...] | None, context: PlanContext) -> tuple[Plan, ...]:
        controls = (*self.controls, *self._measure)
        wanting = [type(control).__name__ for control in controls if control.needs_words]
        if self._recording is not None:
            wanting.append("record=")
        if prompts is None and wanting:
            raise PromptUnknown(
                f"The pipeline was called with prompt_embeds only, and {', '.join(wanting)} needs the words.",
                "Name them: controlled(..., prompt='...'), or encode them inside the session with pipe.encode_prompt.",
            )
        plans = tuple(control.plan(context) for control in self.controls)
        self._check_owners(plans)
        objectives = [objective for plan in plans for objective in plan.objectives]
        one_rule(objectives)
        if objectives:
            self.adapter.check_gradients()
            if torch.is_inference_mode_enabled():
                raise UnsupportedPipeline(
                    "The pipeline is called under torch.inference_mode(), where no gradient can be taken.",
                    "Call it under torch.no_grad(), or as it is: pipelines switch gradients off themselves.",
                )
        return plans

    def _check_owners(self, plans: Sequence[Plan]) -> None:
        owners: dict[str, str] = {}
        for control, plan in zip(self.controls, plans, strict=True):
            for thing in plan.owns:
                if thing in owners:
                    raise ControlConflict(
                        f"{owners[thing]} and {control.name} both set {thing}.", "Use one of them in a session."
                    )
                owners[thing] = control.name

    def _needed_sites(self, plans: Sequence[Plan]) -> set[Site]:
        edited = {site for plan in plans for sites, _ in plan.edits for site in sites}
        probed = {site for plan in plans for objective in plan.objectives for site in objective.sites}
        return edited | probed | set(self._record_sites)

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


class _Learner:
    """Stands at ``pipe.encode_prompt`` for the length of a session and tells it what is encoded."""

    def __init__(self, original: Any, session: Session) -> None:
        self._original, self._session = original, session
        self._signature = inspect.signature(original)
        functools.update_wrapper(self, original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        self._session.begin_call(self._session.adapter.encoded(bound.arguments))
        result = self._original(*args, **kwargs)
        self._session.end_encoding(result[0])
        return result


def _by_picture(prompts: tuple[Prompt, ...] | None, encoded: Encoded) -> tuple[Prompt, ...] | None:
    if prompts is None:
        return None
    return tuple(prompts[lane.prompt] for lane in encoded.lanes.only("cond").lanes)
