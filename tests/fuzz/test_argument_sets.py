"""No argument of a verb ends in an error that is not of this library, and none leaves a trace in the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import t2ictl
from t2ictl.errors import BadSetting, T2ictlError, UnsupportedPipeline, shown
from tests import tiny
from tests.fuzz.argument_sets import ArgumentSet, Rude, argument_sets
from tests.fuzz.calling import call, faults_of_call
from tests.fuzz.places import good_settings
from tests.fuzz.tally import IS_SEARCH, Tally

FAST, FULL = 60, 1000


def try_sets(count: int, *, is_same: bool) -> Tally:
    """Make that many calls, always the same ones or others each time."""
    tally = Tally("calls")

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=is_same, suppress_health_check=list(HealthCheck)
    )
    @given(argument_sets())
    def each(arguments: ArgumentSet) -> None:
        called = call(arguments)
        tally.add("ok" if called.error is None else type(called.error).__name__)
        assert faults_of_call(called) == []

    each()
    tally.show()
    return tally


def test_sixty_calls() -> None:
    tally = try_sets(FAST, is_same=True)
    assert tally.share("ok") > 0.15 and tally.share("BadSetting") > 0.15


@pytest.mark.slow
def test_many_calls() -> None:
    tally = try_sets(FULL, is_same=not IS_SEARCH)
    assert tally.share("ok") > 0.15 and tally.share("BadSetting") > 0.15


@pytest.mark.parametrize(
    "prompt", [None, 3, b"a", [b"a"], [1], [], [["a"]], {"a": 1}, {"a"}, np.array(2), Rude(), torch]
)
def test_what_is_no_prompt_is_named(sd_pipe: Any, prompt: Any) -> None:
    with pytest.raises(BadSetting, match="prompt"):
        t2ictl.generate(sd_pipe, prompt, steps=1)


@pytest.mark.parametrize("prompt", [np.array(["a cat", "a dog"]), np.str_("a cat"), (each for each in ["a cat"])])
def test_texts_of_any_sequence_are_prompts(sd_pipe: Any, prompt: Any) -> None:
    assert t2ictl.generate(sd_pipe, prompt, steps=1).images


@pytest.mark.parametrize(
    "more",
    [{"record": "circle"}, {"record": Rude()}, {"record": t2ictl.Recording}, {"on_step": 3}, {"is_cancelled": "no"},
     {"checkpointing": np.zeros(2)}, {"checkpointing": Rude()}, {"controls": np.array(3)}, {"controls": [Rude()]},
     {"controls": Rude()}, {"eta": "x"}, {"seed": Rude()}, {"steps": 10**5000}],
)  # fmt: skip
def test_what_is_no_option_is_named(sd_pipe: Any, more: dict[str, Any]) -> None:
    with pytest.raises(BadSetting) as caught:
        t2ictl.generate(sd_pipe, "a cat", **{"steps": 1, **more})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("settings", [None, 3, b"{}", [1], torch, Rude(), {"request": Rude(), "controls": []}])
def test_what_holds_no_settings_is_named(sd_pipe: Any, settings: Any) -> None:
    with pytest.raises(BadSetting):
        t2ictl.replay(sd_pipe, settings)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "/proc/self/mem", Path("x" * 300), "."])
def test_a_file_that_cannot_be_read_is_named(sd_pipe: Any, path: Any) -> None:
    with pytest.raises(BadSetting):
        t2ictl.replay(sd_pipe, path)


def test_tables_of_strangers_are_not_made(sd_pipe: Any) -> None:
    scheduler = {"scheduler": "DDPMScheduler", "scheduler_config": {"num_train_timesteps": 10**10}}
    with pytest.warns(UserWarning, match="num_train_timesteps is too large"):
        assert t2ictl.replay(sd_pipe, {**good_settings(), "pipeline": scheduler}).image


@pytest.mark.parametrize("place", ["request", "controls", "pipeline", "arguments", "image", "versions"])
@pytest.mark.parametrize("value", [np.array(["a", "b"]), np.zeros((2, 2))])
def test_arrays_in_settings_are_named(sd_pipe: Any, place: str, value: np.ndarray) -> None:
    good = good_settings()
    changes = {
        "request": {**good["request"], "guidance_scale": value},
        "controls": [{"control": "attention_segregation", "strength": value, "window": {"stop": 0.5}}],
        "arguments": {"eta": value},
        "versions": {"torch": value},
        "pipeline": {**good["pipeline"], "scheduler": value},
    }
    with pytest.raises(BadSetting):
        t2ictl.replay(sd_pipe, {**good, place: changes.get(place, value)})


def test_deep_lists_in_settings_are_named(sd_pipe: Any) -> None:
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    for part in ({"arguments": {"eta": deep}}, {"versions": {"torch": deep}}, {"pipeline": {"model": {3}}}):
        with pytest.raises(BadSetting):
            t2ictl.replay(sd_pipe, {**good_settings(), **part})


@pytest.mark.parametrize("name", ["record", "seed", "prompt", "controls", "on_step", "pipe"])
def test_settings_hold_no_argument_of_ours(sd_pipe: Any, name: str) -> None:
    with pytest.raises(BadSetting, match=name):
        t2ictl.replay(sd_pipe, {**good_settings(), "arguments": {name: 1}})


@pytest.mark.parametrize("pipe", [None, True, "shapes", torch, torch.nn.Linear(1, 1), Rude()])
def test_what_is_no_pipeline_is_named(pipe: Any) -> None:
    for use in (lambda: t2ictl.replay(pipe, good_settings()), lambda: t2ictl.generate(pipe, "a cat", steps=1)):
        with pytest.raises(UnsupportedPipeline):
            use()


@pytest.mark.parametrize("name", [None, 3, b"shapes", ["shapes"], Rude(), torch, "x" * 5000])
def test_what_names_no_model_is_named(name: Any) -> None:
    with pytest.raises(BadSetting, match="no model|could not be loaded"):
        t2ictl.load(name)


def test_an_image_that_does_not_fit_is_named_at_any_time() -> None:
    with pytest.raises(BadSetting, match="channels"):
        t2ictl.generate(tiny.sd(), "a cat", steps=1, latents=torch.zeros(1, 3, 16, 16))
    pipe = tiny.sd_inpaint()
    late = {"image": torch.zeros(1, 3, 64, 64), "mask_image": torch.zeros(1, 3, 64, 64), "strength": 1.0, "steps": 1}
    early = {**late, "image": np.zeros((64, 64)), "mask_image": np.zeros((64, 64))}
    for more in (late, early):
        with pytest.raises(BadSetting, match="refuses"):
            t2ictl.generate(pipe, "a cat", **more)


def test_messages_are_short_whatever_is_in_them() -> None:
    assert len(str(T2ictlError("x" * 10**6, "y" * 10**6))) < 2000
    assert shown(Rude()) == "a Rude that cannot be shown" and len(shown("x" * 1000)) < 220
    assert shown(10**5000) == "a int that cannot be shown"
