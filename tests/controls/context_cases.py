"""What a control is told of a call, made without one."""

from __future__ import annotations

from typing import Any

import t2ictl
from t2ictl.attention.batch import BatchLayout
from t2ictl.controls.base import PlanContext
from t2ictl.families import find_adapter


def context(pipe: Any, *prompts: str, images: int = 1, guided: bool = True) -> PlanContext:
    return PlanContext(
        adapter=find_adapter(pipe),
        prompts=tuple(t2ictl.parse(pipe, each) for each in prompts),
        batch=BatchLayout.from_counts(prompts=len(prompts), images_per_prompt=images, guided=guided),
    )
