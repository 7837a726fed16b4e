"""Everything that an open session has set on a pipeline, and the ways out.

Each part is undone by itself, may be undone twice, and is: a break in the middle of the first time does not keep the
second from finishing. What somebody keeps of ours beyond the end passes everything on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from t2ictl.attention.passes import ActivePass
from t2ictl.errors import ControlConflict, ForeignCall
from t2ictl.families import Adapter
from t2ictl.families.schedulers import SchedulerPatch
from t2ictl.patching import InstanceAttributes
from t2ictl.session.checkpoints import Checkpointing, Recomputed
from t2ictl.session.encoding import EncodePromptWrapper, Encoding
from t2ictl.session.hooks import DenoiserHook, Frozen, copy_without
from t2ictl.session.installation import AttnProcessorPatch, ProcessorsBefore

__all__ = ["PipelinePatches", "release"]

_MARK = "_t2ictl"


class PipelinePatches:
    """What one opening of a session has set on its pipeline.

    Args:
        adapter: the pipeline's family.
        hook: stands around the passes of the denoiser.

    Raises:
        ControlConflict: from ``open``, if the pipeline or its denoiser has an open session.
    """

    def __init__(self, adapter: Adapter, hook: DenoiserHook) -> None:
        self.adapter, self.hook = adapter, hook
        self.active_pass = ActivePass()
        self.processors = AttnProcessorPatch(adapter.port, self.active_pass)
        self.frozen = Frozen(adapter.denoiser)
        self._recomputed: Recomputed | None = None
        self._before: ProcessorsBefore | None = None
        self._attributes = InstanceAttributes()
        self._scheduler: SchedulerPatch | None = None
        self._undo, self._lock = ExitStack(), threading.RLock()
        self.is_open = False
        for undo in (
            self._unmark,
            self._attributes.undo,
            hook.remove,
            self._unpatch_scheduler,
            self.frozen.restore,
            self._let_go,
            self.active_pass.end,
            self.processors.remove,
            self._restore_broken,
        ):
            self._undo.callback(undo)
            self._undo.callback(undo)

    def open(self, session: Encoding) -> None:
        """Set what stays for the length of the session: the wrapper of ``encode_prompt`` and the denoiser's hook.

        Args:
            session: is told of each call of ``encode_prompt``.
        """
        pipe, denoiser = self.adapter.pipe, self.adapter.denoiser
        original = pipe.encode_prompt
        while isinstance(original, EncodePromptWrapper) and not original.is_open:  # kept from a session before
            original = original.original
        # One step, so that of two threads one is refused.
        if isinstance(original, EncodePromptWrapper) or vars(denoiser).setdefault(_MARK, self) is not self:
            raise ControlConflict(
                "This pipeline, or another one with the same denoiser, already has an open session.",
                "Give all controls to one session: controlled(pipe, [first, second]). If a session was broken off and "
                "left something behind, t2ictl.release(pipe) takes it out.",
            )
        try:
            self._attributes.set(denoiser, "__deepcopy__", copy_without(denoiser, (_MARK, "__deepcopy__")))
            self._attributes.set(pipe, "encode_prompt", EncodePromptWrapper(original, session))
            self.hook.install(denoiser)
            self.is_open = True
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take everything out, whatever is raised on the way."""
        with self._lock:
            self.is_open = False
            try:
                self._undo.close()
            finally:
                self._undo.close()  # what a break has left

    def begin_call(self) -> None:
        """Clear what a call before may have left, and note the processors that are there now."""
        self._restore_broken()
        self.processors.remove()
        self._before = ProcessorsBefore(self.adapter.denoiser)

    def start_call(self, replace: Callable[[Tensor], Tensor]) -> None:
        """Set what a call needs: the hook once more, if something has taken it, and the wrap of ``scheduler.step``.

        Args:
            replace: gets the sample of each scheduler step and returns the one to use.

        Raises:
            ForeignCall: if the session was closed while the call was planned, by another thread or task.
        """
        with self._lock:
            if not self.is_open:
                raise ForeignCall(
                    "The session was closed while a call of its pipeline was being prepared.",
                    "Wait for the call before the block ends; a call in another thread does not end with its task.",
                )
            self.hook.install(self.adapter.denoiser)
            self._unpatch_scheduler()
            self._scheduler = SchedulerPatch(self.adapter.pipe.scheduler, replace)

    def recomputed(self, kind: Checkpointing, heard: list[str]) -> Recomputed:
        """Make the holder of layers that are computed again, and keep it for the end.

        Args:
            kind: which layers.
            heard: names of the attention modules in which somebody listens.
        """
        self._let_go()
        self._recomputed = Recomputed(self.adapter.port, kind, heard)
        return self._recomputed

    def break_off(self) -> None:
        """End an evaluation that raised: nothing of it stays, nor processors that were set for this call."""
        self.processors.remove()
        if self._before is not None:
            self._before.restore()
        self.active_pass.end()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Hold a part of an evaluation: whatever is raised in it ends the evaluation."""
        try:
            yield
        except BaseException:
            self.break_off()
            raise

    def _restore_broken(self) -> None:
        if self.active_pass.current is not None:  # the denoiser raised
            self.break_off()

    def _let_go(self) -> None:
        if self._recomputed is not None:
            self._recomputed.restore()

    def _unmark(self) -> None:
        if vars(self.adapter.denoiser).get(_MARK) is self:
            del vars(self.adapter.denoiser)[_MARK]

    def _unpatch_scheduler(self) -> None:
        if self._scheduler is not None:
            self._scheduler.remove()
            self._scheduler = None


def release(pipe: Any) -> bool:
    """Take everything of an open session out of a pipeline: the last way out, where a ``with`` block was not left.

    A session that ends by itself needs none. One that was never left (a notebook cell that was killed, an interrupt at
    the very end of the block) keeps its pipeline from the next one; this ends it from outside.

    Args:
        pipe: the pipeline, or any other one with the same denoiser.

    Returns:
        Whether there was anything to take out.

    Example:
        >>> import t2ictl
        >>> pipe = t2ictl.load("shapes")
        >>> session = t2ictl.controlled(pipe).__enter__()
        >>> t2ictl.release(pipe), t2ictl.release(pipe)
        (True, False)
    """
    parts = (getattr(getattr(pipe, name, None), "__dict__", {}).get(_MARK) for name in ("unet", "transformer"))
    found = [each for each in parts if isinstance(each, PipelinePatches)]
    for each in found:
        each.close()
    return bool(found)
