"""Stopping: heard between two passes of a control's own, however many of them one step has."""

from __future__ import annotations

from typing import Any

import pytest

from t2ictl.controls.base import Control
from t2ictl.errors import BadSetting, Cancelled
from t2ictl.generation import generate
from t2ictl.guidance.rules import MOST_UPDATES, NoiseSearch, Refinement
from t2ictl.processors.attend_and_excite import AttendAndExcite
from t2ictl.processors.initial_noise import InitialNoise
from t2ictl.processors.token_merging import TokenMerging
from tests.tiny import sd

PROMPT = "a red cat and a blue dog"
ENDLESS = Refinement(thresholds=((0.0, 1.0),), max_iterations=MOST_UPDATES)


@pytest.mark.parametrize(
    "control",
    [
        AttendAndExcite(refinement=ENDLESS),
        InitialNoise(search=NoiseSearch(max_steps=MOST_UPDATES, target=1.0)),
        TokenMerging(merge=True, binding_steps=MOST_UPDATES),
    ],
)
def test_stopping_is_heard_between_two_passes(control: Control) -> None:
    pipe, asked, passes = sd(), list[int](), list[int]()
    forward = type(pipe.unet).forward

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        return forward(self, *args, **kwargs)

    def is_cancelled() -> bool:
        asked.append(1)
        return len(asked) > 3

    pipe.unet.forward = count.__get__(pipe.unet)
    with pytest.raises(Cancelled, match="between two passes"):
        generate(pipe, PROMPT, control, steps=2, is_cancelled=is_cancelled)
    assert len(asked) == 4 and len(passes) <= 3
    del pipe.unet.forward
    assert "encode_prompt" not in vars(pipe) and "step" not in vars(pipe.scheduler)
    plain = generate(sd(), PROMPT, steps=1).image.tobytes()
    assert generate(pipe, PROMPT, steps=1).image.tobytes() == plain  # nobody asks any more


@pytest.mark.parametrize(
    ("make", "field"),
    [(Refinement, "max_iterations"), (Refinement, "check_every"), (NoiseSearch, "max_steps"),
     (TokenMerging, "binding_steps"), (TokenMerging, "entropy_steps")],
)  # fmt: skip
def test_numbers_of_updates_have_an_end(make: Any, field: str) -> None:
    assert getattr(make(**{field: MOST_UPDATES}), field) == MOST_UPDATES
    for value in (MOST_UPDATES + 1, 10**9, 10**400):
        with pytest.raises(BadSetting, match=field):
            make(**{field: value})
