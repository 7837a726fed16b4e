"""The embedded models: a drawn world, its captions, an exact judge, and trained weights.

They are a test bench with the failure modes of large models, not image generators for
people; see ``docs/shapes.md``. Importing this package loads neither torch nor diffusers::

    from diffusers import StableDiffusionPipeline
    from t2ictl.shapes import judge, model_path

    pipe = StableDiffusionPipeline.from_pretrained(model_path())
    image = pipe("a red circle and a blue square", num_inference_steps=20, guidance_scale=4).images[0]
    print(judge(image, "a red circle and a blue square").failure)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from t2ictl.shapes.embedded import MODELS as MODELS
from t2ictl.shapes.embedded import EmbeddedModel as EmbeddedModel
from t2ictl.shapes.embedded import installed_models as installed_models
from t2ictl.shapes.embedded import model_path as model_path

if TYPE_CHECKING:
    from t2ictl.shapes.captions import Expectation as Expectation
    from t2ictl.shapes.captions import Wanted as Wanted
    from t2ictl.shapes.captions import expect as expect
    from t2ictl.shapes.draw import render as render
    from t2ictl.shapes.instrument import instrument_id as instrument_id
    from t2ictl.shapes.prompts import suite as suite
    from t2ictl.shapes.sampling import sample_scene as sample_scene
    from t2ictl.shapes.seeing import Found as Found
    from t2ictl.shapes.seeing import find_objects as find_objects
    from t2ictl.shapes.verdict import FAILURES as FAILURES
    from t2ictl.shapes.verdict import OUTCOMES as OUTCOMES
    from t2ictl.shapes.verdict import Verdict as Verdict
    from t2ictl.shapes.verdict import judge as judge
    from t2ictl.shapes.verdict import judge_expectation as judge_expectation
    from t2ictl.shapes.world import Look as Look
    from t2ictl.shapes.world import Mark as Mark
    from t2ictl.shapes.world import Placed as Placed
    from t2ictl.shapes.world import Scene as Scene

_HOME = {
    "Expectation": "captions",
    "Wanted": "captions",
    "expect": "captions",
    "instrument_id": "instrument",
    "render": "draw",
    "FAILURES": "verdict",
    "OUTCOMES": "verdict",
    "Verdict": "verdict",
    "judge": "verdict",
    "judge_expectation": "verdict",
    "suite": "prompts",
    "Found": "seeing",
    "find_objects": "seeing",
    "Look": "world",
    "Mark": "world",
    "Placed": "world",
    "Scene": "world",
    "sample_scene": "sampling",
}
__all__ = ["MODELS", "EmbeddedModel", "installed_models", "model_path", *_HOME]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that the package itself stays light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
