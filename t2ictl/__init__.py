"""Control of text-to-image diffusion at inference time, on your own diffusers pipeline.

The public verbs, and nothing else. They are imported when they are first used, so that
``import t2ictl`` loads no torch. Methods contribute verbs of their own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from t2ictl._version import __version__

if TYPE_CHECKING:
    from t2ictl.controls.base import Control, Plan, PlanContext
    from t2ictl.controls.layouts import Region
    from t2ictl.controls.registry import control_from_dict, control_to_dict, list_controls
    from t2ictl.families import list_families, own_arguments, parse
    from t2ictl.families.folders import check_model
    from t2ictl.families.loading import load
    from t2ictl.generation import Generation, generate, replay
    from t2ictl.maps.record import AttentionRecord
    from t2ictl.maps.recorder import Recording
    from t2ictl.processors.isolation_reposition.story.result import Story
    from t2ictl.processors.isolation_reposition.story.scenes import Scene
    from t2ictl.processors.isolation_reposition.story.story import story
    from t2ictl.processors.isolation_reposition.subjects import Subject
    from t2ictl.processors.token_flow.analysis.analysis import flow
    from t2ictl.prompts.prompt import Prompt
    from t2ictl.session.checkpoints import Checkpointing
    from t2ictl.session.patches import release
    from t2ictl.session.session import Session, controlled
    from t2ictl.settings.fields import describe
    from t2ictl.settings.files import SCHEMA_VERSION, read_settings
    from t2ictl.settings.request import Request
    from t2ictl.settings.windows import Window
    from t2ictl.standalone.recorder import MapRecorder

_HOME = {
    "AttentionRecord": "maps.record",
    "Checkpointing": "session.checkpoints",
    "Control": "controls.base",
    "Generation": "generation",
    "MapRecorder": "standalone.recorder",
    "Plan": "controls.base",
    "PlanContext": "controls.base",
    "Prompt": "prompts.prompt",
    "Recording": "maps.recorder",
    "Region": "controls.layouts",
    "Request": "settings.request",
    "SCHEMA_VERSION": "settings.files",
    "Session": "session.session",
    "Window": "settings.windows",
    "check_model": "families.folders",
    "control_from_dict": "controls.registry",
    "control_to_dict": "controls.registry",
    "controlled": "session.session",
    "describe": "settings.fields",
    "generate": "generation",
    "list_controls": "controls.registry",
    "list_families": "families",
    "load": "families.loading",
    "own_arguments": "families",
    "parse": "families",
    "read_settings": "settings.files",
    "release": "session.patches",
    "replay": "generation",
}

__all__ = [
    "AttentionRecord",
    "Checkpointing",
    "Control",
    "Generation",
    "MapRecorder",
    "Plan",
    "PlanContext",
    "Prompt",
    "Recording",
    "Region",
    "Request",
    "SCHEMA_VERSION",
    "Scene",
    "Session",
    "Story",
    "Subject",
    "Window",
    "__version__",
    "check_model",
    "control_from_dict",
    "control_to_dict",
    "controlled",
    "describe",
    "flow",
    "generate",
    "list_controls",
    "list_families",
    "load",
    "own_arguments",
    "parse",
    "read_settings",
    "release",
    "replay",
    "story",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"t2ictl.{_HOME[name]}"), name)
    if not name.startswith("_"):
        from t2ictl.cli.contributions import contributed

        if name in contributed("exports"):
            return contributed("exports")[name].load()
    raise AttributeError(f"module 't2ictl' has no attribute {name!r}")


def __dir__() -> list[str]:
    from t2ictl.cli.contributions import contributed

    return sorted({*globals(), *_HOME, *contributed("exports")})
