"""What a judge is, and how one is named on a command line.

Legend: ``I`` image, ``Q`` question.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t2ictl.errors import BadSetting

__all__ = ["Judge", "Probabilities", "open_judge"]

Probabilities = NDArray[np.float64]

# Where each kind of judge is; loaded when it is asked for.
_HOME = {
    "shapes": ("t2ictl.evaluation.judges.shapes", "ShapesJudge"),
    "clip": ("t2ictl.evaluation.judges.clip_margin", "ClipMarginJudge"),
    "vlm": ("t2ictl.evaluation.judges.questions", "YesNoJudge"),
    "choice": ("t2ictl.evaluation.judges.questions", "ChoiceJudge"),
    "detector": ("t2ictl.evaluation.judges.detector", "DetectorJudge"),
}


@runtime_checkable
class Judge(Protocol):
    """Judges whether things are to be seen in images. Any callable with a name will do.

    ``judge(images, things)`` gives ``p_IQ`` in [0, 1], one row an image and one column a thing. The same image must
    get the same answer whatever else is asked for in the call.
    """

    name: str

    def __call__(self, images: Sequence[Image.Image], things: Sequence[str]) -> Probabilities:
        """Return ``p_IQ``, the probability that each thing is to be seen in each image."""


def open_judge(judge: str | Judge, **options: Any) -> Judge:
    """Find a judge by name.

    Args:
        judge: ``"shapes"``; ``"clip:PATH"``, ``"vlm:PATH"``, ``"choice:PATH"`` or ``"detector:PATH"`` with a folder or
            hub id of a model of transformers; or a judge, which is given back.
        **options: further arguments of the judge's class.

    Returns:
        The judge.

    Raises:
        BadSetting: for an unknown kind, or one that needs a model and has none.

    Example:
        >>> open_judge("shapes").name
        'shapes'
    """
    if not isinstance(judge, str):
        return judge
    kind, _, path = judge.partition(":")
    if kind not in _HOME:
        raise BadSetting(f"There is no judge {kind!r}.", f"Use one of: {', '.join(_HOME)}.")
    if (kind == "shapes") == bool(path):
        raise BadSetting(f"The judge {judge!r} cannot be opened.", f"Write 'shapes', or '{kind}:FOLDER' with a model.")
    module, name = _HOME[kind]
    made: Judge = getattr(importlib.import_module(module), name)(*([path] if path else []), **options)
    return made
