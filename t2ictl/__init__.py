"""Control of text-to-image diffusion at inference time, on your own diffusers pipeline.

The public verbs, and nothing else. They are imported when they are first used, so that
``import t2ictl`` loads no torch. Methods contribute verbs of their own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ictl.adapters import parse
    from t2ictl.checkpoints import Checkpointing
    from t2ictl.controls import Control, Plan, PlanContext, control_from_dict, control_to_dict, list_controls
    from t2ictl.fields import describe
    from t2ictl.generation import Generation, Request, generate, replay
    from t2ictl.layouts import Region
    from t2ictl.loading import load
    from t2ictl.probes import AttentionRecord, Recording
    from t2ictl.scenes import Scene
    from t2ictl.sessionless import MapRecorder
    from t2ictl.sessions import Session, controlled
    from t2ictl.settings import SCHEMA_VERSION, read_settings
    from t2ictl.spans import Prompt
    from t2ictl.stories import Story
    from t2ictl.subjects import Subject
    from t2ictl.windows import Window

__version__ = "0.1.0"

_HOME = {
    "AttentionRecord": "probes",
    "Checkpointing": "checkpoints",
    "Control": "controls",
    "Generation": "generation",
    "MapRecorder": "sessionless",
    "Plan": "controls",
    "PlanContext": "controls",
    "Prompt": "spans",
    "Recording": "probes",
    "Region": "layouts",
    "Request": "generation",
    "SCHEMA_VERSION": "settings",
    "Scene": "scenes",
    "Session": "sessions",
    "Story": "stories",
    "Subject": "subjects",
    "Window": "windows",
    "control_from_dict": "controls",
    "control_to_dict": "controls",
    "controlled": "sessions",
    "describe": "fields",
    "generate": "generation",
    "list_controls": "controls",
    "load": "loading",
    "parse": "adapters",
    "read_settings": "settings",
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
    "control_from_dict",
    "control_to_dict",
    "controlled",
    "describe",
    "generate",
    "list_controls",
    "load",
    "parse",
    "read_settings",
    "replay",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"t2ictl.{_HOME[name]}"), name)
    if not name.startswith("_"):
        from t2ictl.contributions import contributed

        if name in contributed("verbs"):
            return contributed("verbs")[name].load()
    raise AttributeError(f"module 't2ictl' has no attribute {name!r}")


def __dir__() -> list[str]:
    from t2ictl.contributions import contributed

    return sorted({*globals(), *_HOME, *contributed("verbs")})
