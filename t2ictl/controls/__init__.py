"""All that the author of a control or of a loss needs, in one import.

>>> from t2ictl.controls import Control, LossControl, Plan, PlanContext, register_control

The names are imported when they are first used, so that the package stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ictl.attention.edits import AttentionCall as AttentionCall
    from t2ictl.attention.edits import Edit as Edit
    from t2ictl.attention.edits import Heads as Heads
    from t2ictl.attention.grouped import AttentionGroup as AttentionGroup
    from t2ictl.attention.grouped import Grouping as Grouping
    from t2ictl.attention.grouped import grouped_attention as grouped_attention
    from t2ictl.attention.layers import Layer as Layer
    from t2ictl.attention.layers import select_layers as select_layers
    from t2ictl.controls.attention_edit import AttentionEdit as AttentionEdit
    from t2ictl.controls.attributes import resolve_concepts as resolve_concepts
    from t2ictl.controls.base import Control as Control
    from t2ictl.controls.base import Idle as Idle
    from t2ictl.controls.base import MapHook as MapHook
    from t2ictl.controls.base import Plan as Plan
    from t2ictl.controls.base import PlanContext as PlanContext
    from t2ictl.controls.concepts import Concepts as Concepts
    from t2ictl.controls.concepts import NormalizeOver as NormalizeOver
    from t2ictl.controls.concepts import Smoothing as Smoothing
    from t2ictl.controls.concepts import chosen_concepts as chosen_concepts
    from t2ictl.controls.layouts import Layout as Layout
    from t2ictl.controls.layouts import Region as Region
    from t2ictl.controls.loss_control import LossControl as LossControl
    from t2ictl.controls.planning import loss_plan as loss_plan
    from t2ictl.controls.registry import control_from_dict as control_from_dict
    from t2ictl.controls.registry import control_to_dict as control_to_dict
    from t2ictl.controls.registry import get_control as get_control
    from t2ictl.controls.registry import list_controls as list_controls
    from t2ictl.controls.registry import register_control as register_control
    from t2ictl.families.text_states import PromptEmbeds as PromptEmbeds
    from t2ictl.guidance.objectives import Losses as Losses
    from t2ictl.guidance.objectives import Objective as Objective
    from t2ictl.guidance.rules import NoiseSearch as NoiseSearch
    from t2ictl.guidance.rules import Refinement as Refinement
    from t2ictl.guidance.rules import StepSize as StepSize
    from t2ictl.guidance.text_objectives import EmbedObjective as EmbedObjective
    from t2ictl.guidance.text_objectives import EmbedStep as EmbedStep
    from t2ictl.guidance.text_objectives import TextEdit as TextEdit
    from t2ictl.settings.fields import setting as setting
    from t2ictl.settings.fields import settings_class as settings_class
    from t2ictl.settings.windows import Step as Step
    from t2ictl.settings.windows import Window as Window

_HOME = {
    "t2ictl.attention.edits": ("AttentionCall", "Edit", "Heads"),
    "t2ictl.attention.grouped": ("AttentionGroup", "Grouping", "grouped_attention"),
    "t2ictl.attention.layers": ("Layer", "select_layers"),
    "t2ictl.controls.attention_edit": ("AttentionEdit",),
    "t2ictl.controls.attributes": ("resolve_concepts",),
    "t2ictl.controls.base": ("Control", "Idle", "MapHook", "Plan", "PlanContext"),
    "t2ictl.controls.concepts": ("Concepts", "NormalizeOver", "Smoothing", "chosen_concepts"),
    "t2ictl.controls.layouts": ("Layout", "Region"),
    "t2ictl.controls.loss_control": ("LossControl",),
    "t2ictl.controls.planning": ("loss_plan",),
    "t2ictl.controls.registry": (
        "control_from_dict",
        "control_to_dict",
        "get_control",
        "list_controls",
        "register_control",
    ),
    "t2ictl.families.text_states": ("PromptEmbeds",),
    "t2ictl.guidance.objectives": ("Losses", "Objective"),
    "t2ictl.guidance.rules": ("NoiseSearch", "Refinement", "StepSize"),
    "t2ictl.guidance.text_objectives": ("EmbedObjective", "EmbedStep", "TextEdit"),
    "t2ictl.settings.fields": ("setting", "settings_class"),
    "t2ictl.settings.windows": ("Step", "Window"),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
