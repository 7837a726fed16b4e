"""Who reads the attention maps of the passes that make the image: the record, monitors of losses, hooks of controls.

Listeners compute their columns beside the fused kernels and touch nothing.

Legend: ``B`` batch row, ``T`` prompt token, ``Y`` ``X`` map rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from t2ictl.attention.layers import Layer
from t2ictl.attention.passes import Tap
from t2ictl.controls.base import MapHook, Plan
from t2ictl.guidance.objectives import Objective
from t2ictl.maps.recorder import MapTap, Recorder, Recording, recorded_columns
from t2ictl.prompts.prompt import Prompt
from t2ictl.session.observers import LossMonitor
from t2ictl.settings.windows import Step

__all__ = ["MapListeners"]


@dataclass(kw_only=True)
class MapListeners:
    """The listeners of one pipeline call.

    Args:
        plans: what the controls do; their map hooks listen.
        monitors: controls whose losses are measured, and which do nothing.
        prompts: the prompt of each image; None if nobody needs words and none are known.
        recording: what to record, or None.
        record_layers: the layers to record.
        recorder: fills the record; made at the first evaluation.
    """

    plans: Sequence[Plan]
    monitors: Sequence[LossMonitor]
    prompts: tuple[Prompt, ...] | None
    recording: Recording | None = None
    record_layers: Sequence[Layer] = ()
    recorder: Recorder | None = None
    _hooked: list[tuple[Callable[[Tensor, Step], None], MapTap]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.recording is not None and self.prompts is not None:
            recorded_columns(self.prompts, self.recording.words)  # raises for a missing word, before any pass

    @property
    def layers(self) -> set[Layer]:
        """All layers that are listened to, whatever acts in a step."""
        hooked = {layer for plan in self.plans for hook in plan.map_hooks for layer in hook.layers}
        return hooked.union(self.record_layers, *(each.layers for each in self.monitors))

    def start(self, rows: slice, total: int, latent_size: tuple[int, int]) -> None:
        """Make room for the record, before the first evaluation.

        Args:
            rows: the conditional rows.
            total: evaluations to come.
            latent_size: height and width of the latent (cells).
        """
        if self.recording is not None and self.prompts is not None:
            self.recorder = Recorder(
                self.record_layers, rows, self.prompts, self.recording, total=total, latent_size=latent_size
            )

    def begin(self, acting: Sequence[Objective], step: Step, rows: slice, *, is_discarded: bool) -> list[Tap]:
        """List the taps of the pass that is about to run.

        Args:
            acting: the objectives that move latents now; some listen to what came of it.
            step: the evaluation.
            rows: the conditional rows.
            is_discarded: whether the scheduler throws the sample away.

        Returns:
            The taps.
        """
        hooks = [MapHook(layers=each.layers, take=each.on_maps) for each in acting if each.on_maps is not None]
        hooks += [hook for plan in self.plans for hook in plan.map_hooks]
        self._hooked = [(hook.take, MapTap(hook.layers, rows)) for hook in hooks]
        taps: list[Tap] = [tap for _, tap in self._hooked]
        taps += [tap for each in self.monitors for tap in each.begin(step, rows, is_discarded)]
        if self.recorder is not None:
            self.recorder.rows = rows
            taps += self.recorder.taps
        return taps

    def end(self, step: Step) -> None:
        """Hand the maps of the pass to those who asked for them.

        Args:
            step: the evaluation.
        """
        for take, tap in self._hooked:
            take(tap.mean(), step)
        self._hooked = []
        for monitor in self.monitors:
            monitor.end(step)
        if self.recorder is not None:
            self.recorder.end_step()
