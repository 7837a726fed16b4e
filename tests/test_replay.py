"""Making an image again: which image of its call, with which scheduler, and what differs from its file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from t2ictl.errors import BadSetting
from t2ictl.generation import generate, replay
from t2ictl.processors.attend_and_excite import AttendAndExcite
from tests.tiny import sd

PROMPT = "a red cat and a blue dog"
SMALL: dict[str, Any] = {"steps": 2, "seed": 3}


@pytest.mark.parametrize("number", [1, 3])
def test_an_image_of_a_batch_is_made_again(number: int, tmp_path: Path) -> None:
    pipe = sd()
    batch = generate(pipe, [PROMPT, "a cat"], AttendAndExcite(refinement=None), images_per_prompt=2, **SMALL)
    path = batch.save(tmp_path / "one.png", number)
    again = replay(pipe, path)
    assert again.image.tobytes() == batch.images[number].tobytes() != batch.images[0].tobytes()
    assert again.save(tmp_path / "two.png").read_bytes() == path.read_bytes()


def test_the_last_image_may_be_counted_from_the_end(tmp_path: Path) -> None:
    pipe = sd()
    batch = generate(pipe, PROMPT, images_per_prompt=2, **SMALL)
    assert replay(pipe, batch.save(tmp_path / "one.png", -1)).number == 1
    with pytest.raises(BadSetting, match="no image 2"):
        batch.save(tmp_path / "one.png", 2)


@pytest.mark.parametrize("number", [2, -1, True, "1", 10**400, 0.5])
def test_a_number_of_no_image_is_refused(number: Any) -> None:
    settings = generate(sd(), PROMPT, images_per_prompt=2, **SMALL).settings
    with pytest.raises(BadSetting, match="of image|settings are"):
        replay(sd(), {**settings, "image": number})


def test_the_scheduler_is_that_of_the_file(tmp_path: Path) -> None:
    pipe = sd()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    path = generate(pipe, PROMPT, **SMALL).save(tmp_path / "one.png")
    other = sd()
    own, config = other.scheduler, dict(other.config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = replay(other, path)
    assert again.save(tmp_path / "two.png").read_bytes() == path.read_bytes()
    assert other.scheduler is own and isinstance(own, DDIMScheduler) and dict(other.config) == config


def test_the_configuration_counts_too(tmp_path: Path) -> None:
    pipe = sd()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    first = generate(pipe, PROMPT, **SMALL)
    assert first.image.tobytes() != generate(sd(), PROMPT, **SMALL).image.tobytes()
    assert replay(sd(), first.settings).image.tobytes() == first.image.tobytes()


@pytest.mark.parametrize(
    ("scheduler", "config"),
    [("NoSuchScheduler", {}), ("StableDiffusionPipeline", {}), ("os", {}), ("DDIMScheduler", {"beta_schedule": "x"})],
)
def test_a_scheduler_that_cannot_be_made_is_said(scheduler: str, config: dict[str, Any]) -> None:
    pipe = sd()
    own, first = pipe.scheduler, generate(pipe, PROMPT, **SMALL)
    settings = json.loads(json.dumps(first.settings))
    settings["pipeline"] |= {"scheduler": scheduler, "scheduler_config": config}
    with pytest.warns(UserWarning) as found:
        again = replay(pipe, settings)
    told = " ".join(str(each.message) for each in found)
    assert "The image may differ: pipeline.scheduler" in told
    assert ("cannot be made" in told) == (scheduler == "DDIMScheduler")
    assert pipe.scheduler is own and again.image.tobytes() == first.image.tobytes()


def test_another_model_is_said_before_the_work() -> None:
    settings = generate(sd(), PROMPT, **SMALL).settings
    settings["pipeline"]["model"] = "owner/other"
    with warnings.catch_warnings(), pytest.raises(UserWarning, match=r"pipeline.model was 'owner/other', is ''"):
        warnings.simplefilter("error")
        replay(sd(), settings)


def test_changes_come_before_what_the_file_says() -> None:
    pipe = sd()
    settings = generate(pipe, PROMPT, AttendAndExcite(refinement=None), **SMALL).settings
    changed = replay(pipe, settings, controls=(), seed=9, steps=3)
    plain = generate(pipe, PROMPT, seed=9, steps=3)
    assert changed.settings == plain.settings and changed.image.tobytes() == plain.image.tobytes()


@pytest.mark.parametrize(
    "damage",
    [
        {"request": None}, {"request": []}, {"request": {}}, {"request": {"prompt": 3}}, {"controls": None},
        {"controls": "ab"}, {"controls": [1]}, {"controls": [{}]}, {"controls": [{"control": ["x"]}]},
        {"request": {"prompt": "a", "seed": 10**400}}, {"request": {"prompt": "\ud800"}},
        {"request": {"prompt": "a", "sede": 1}}, {"request": {"prompt": "a", "guidance_scale": 10**400}},
        {"arguments": []}, {"arguments": {"image": "data:image/png;base64,AAAA"}},
        {"arguments": {"latents": "sha256:"}},
    ],
)  # fmt: skip
def test_damaged_settings_are_named(damage: dict[str, Any]) -> None:
    good = {"schema": 2, "request": {"prompt": PROMPT, "steps": 1}, "controls": []}
    with pytest.raises(BadSetting):
        replay(sd(), {**good, **damage})
