"""An edit of attention of your own as a control."""

from __future__ import annotations

from collections.abc import Sequence

from t2ictl.attention.edits import Edit
from t2ictl.attention.layers import LayerFilter, select_layers
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.errors import BadSetting, shown

__all__ = ["AttentionEdit"]


class AttentionEdit(Control):
    """Put an edit at some attention layers, without a registered class.

    Args:
        layers: pattern, list of patterns, or predicate, as for :func:`select_layers`: ``"cross"``, ``"up.*.cross@2"``.
        edit: overrides the stages that it needs.
        owns: things that only one control can set (``"cross.values"``); two owners are refused.

    Raises:
        BadSetting: if ``edit`` is not an :class:`Edit`.

    Example:
        >>> import t2ictl
        >>> class Sharpen(Edit):
        ...     def scores(self, call, scores_BHQK):
        ...         return 1.5 * scores_BHQK
        >>> pipe = t2ictl.load("shapes")
        >>> with t2ictl.controlled(pipe, [AttentionEdit("up.*.cross", Sharpen())]) as session:
        ...     image = pipe("a red circle", num_inference_steps=2).images[0]
        >>> session.cost.extra_forwards
        0
    """

    has_losses = False
    needs_words = False

    def __init__(self, layers: LayerFilter, edit: Edit, *, owns: Sequence[str] = ()) -> None:
        if not isinstance(edit, Edit):
            raise BadSetting(
                f"{shown(edit)} is not an edit.", "Pass an instance of a subclass of t2ictl.controls.Edit."
            )
        self.name = type(edit).__name__  # type: ignore[misc]
        self._layers, self._edit, self._owns = layers, edit, tuple(owns)

    def __repr__(self) -> str:
        return f"AttentionEdit({self._layers!r}, {self._edit!r})"

    def plan(self, context: PlanContext) -> Plan:
        """Find the layers."""
        return Plan(edits=((select_layers(context.adapter.layers, self._layers), self._edit),), owns=self._owns)
