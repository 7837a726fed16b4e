"""One line from prompt to image: seeds, settings inside the file, replay, progress and cancelling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from t2ictl.controls.base import Control
from t2ictl.errors import BadSetting, Cancelled, ControlConflict
from t2ictl.generation import Progress, Request, generate, replay
from t2ictl.guidance.rules import StepSize
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.session.session import controlled
from t2ictl.settings.files import read_settings
from tests.tiny import sd, sdxl

PROMPT = "a red circle and a blue square"
SMALL: dict[str, Any] = {"steps": 3, "width": 64, "height": 64}


def controls() -> list[Control]:
    return [AttentionSegregation(step=StepSize(mode="normalized", scale=0.05))]


def same(first: Image.Image, second: Image.Image) -> bool:
    return first.tobytes() == second.tobytes()


def test_an_image_of_a_batch_is_the_one_of_its_own_seed() -> None:
    pipe = sd()
    batch = generate(pipe, [PROMPT, "a cat"], seed=5, images_per_prompt=2, **SMALL)
    assert len(batch.images) == 4
    for number, prompt in enumerate([PROMPT, PROMPT, "a cat", "a cat"]):
        alone = generate(pipe, prompt, seed=5 + number, **SMALL)
        worst = max(abs(a - b) for a, b in zip(alone.image.tobytes(), batch.images[number].tobytes(), strict=True))
        assert worst <= 1  # one gray level: a batch sums in another order
    assert not same(batch.images[0], batch.images[1])


def test_the_global_random_state_is_not_touched() -> None:
    before = torch.get_rng_state()
    generate(sd(), PROMPT, controls(), **SMALL)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("make", [sd, sdxl])
def test_a_saved_image_can_be_made_again_from_itself(make: Any, tmp_path: Path) -> None:
    pipe = make()
    first = generate(pipe, PROMPT, controls(), seed=3, guidance_scale=4.0, negative_prompt="a dog", **SMALL)
    path = first.save(tmp_path / "one.png")
    again = replay(pipe, path)
    assert same(first.image, again.image)
    assert again.save(tmp_path / "two.png").read_bytes() == path.read_bytes()
    assert not same(first.image, generate(pipe, PROMPT, seed=3, guidance_scale=4.0, **SMALL).image)


def test_the_settings_name_everything_that_made_the_image(tmp_path: Path) -> None:
    pipe = sd()
    path = generate(pipe, PROMPT, controls(), seed=3, **SMALL).save(tmp_path / "one.png")
    settings = read_settings(path)
    assert settings["request"] == {
        "prompt": PROMPT,
        "negative_prompt": "",
        "seed": 3,
        "steps": 3,
        "width": 64,
        "height": 64,
        "guidance_scale": 7.5,
        "images_per_prompt": 1,
        "parser": "grammar",
    }
    assert settings["controls"][0]["control"] == "attention_segregation"
    assert settings["controls"][0]["step"] == {
        "scale": 0.05,
        "final_scale_sq": 0.5,
        "mode": "normalized",
        "max_norm": None,
        "every": 1,
    }
    assert settings["pipeline"]["scheduler"] == type(pipe.scheduler).__name__
    assert settings["pipeline"]["scheduler_config"]["beta_end"] == 0.012
    assert settings["versions"]["torch"] == torch.__version__
    assert settings["parser"]["version"]


def test_replay_says_what_is_not_as_it_was(tmp_path: Path) -> None:
    pipe = sd()
    settings = generate(pipe, PROMPT, seed=3, **SMALL).settings
    changed = json.loads(json.dumps(settings))
    changed["pipeline"]["scheduler"] = "SomeOtherScheduler"
    changed["versions"]["torch"] = "1.0"
    with pytest.warns(UserWarning, match=r"pipeline.scheduler was 'SomeOtherScheduler'.*versions.torch was '1.0'"):
        replay(pipe, changed)


def test_replay_of_something_else_is_refused() -> None:
    with pytest.raises(BadSetting, match="request"):
        replay(sd(), {"schema": 1})


def test_progress_counts_the_steps_and_false_stops() -> None:
    pipe, seen = sd(), []

    def watch(progress: Progress) -> bool:
        seen.append((progress.step, progress.total))
        return progress.step < 2

    with pytest.raises(Cancelled, match="step 2 of 3"):
        generate(pipe, PROMPT, controls(), on_step=watch, **SMALL)
    assert seen == [(1, 3), (2, 3)]
    assert "encode_prompt" not in pipe.__dict__ and "step" not in pipe.scheduler.__dict__


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", " "), ("prompt", ()), ("steps", 0), ("width", 4), ("guidance_scale", float("nan")), ("sede", 1)],
)
def test_a_bad_request_is_named_before_any_work(field: str, value: Any) -> None:
    with pytest.raises(BadSetting):
        Request(**{"prompt": PROMPT, field: value})


def test_an_open_session_is_not_entered_twice() -> None:
    pipe = sd()
    with controlled(pipe), pytest.raises(ControlConflict, match="already has an open session"):
        generate(pipe, PROMPT, **SMALL)
    assert len(generate(pipe, PROMPT, **SMALL).images) == 1
