"""Requests as calls: what a pipeline takes, which values it can use, and how it refuses the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from t2ictl.errors import BadSetting, OutOfMemory, UnsupportedPipeline
from t2ictl.families.calls import named_refusals
from t2ictl.generation import generate, replay
from t2ictl.processors.attend_and_excite import AttendAndExcite
from tests import tiny

PROMPT = "a red cat and a blue dog"
Make = Callable[..., Any]


def picture(mode: str = "RGB") -> Image.Image:
    return Image.linear_gradient("L").resize((64, 64)).convert(mode)


@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl, tiny.sd_lcm])
@pytest.mark.parametrize(("side", "size"), [("height", (64, 96)), ("width", (96, 64))])
def test_one_side_leaves_the_other_as_it_is(make: Make, side: str, size: tuple[int, int]) -> None:
    made = generate(make(), PROMPT, steps=1, **{side: 96})
    assert made.image.size == size
    assert (made.settings["request"]["width"], made.settings["request"]["height"]) == size


def test_one_side_beside_an_image() -> None:
    made = generate(tiny.sd_controlnet(), PROMPT, steps=1, height=96, image=picture())
    assert made.image.size == (64, 96)


CASES: list[tuple[Make, dict[str, Any]]] = [
    (tiny.sd_img2img, {"image": picture(), "strength": 0.8}),
    (tiny.sd_inpaint, {"image": picture(), "mask_image": picture("L")}),
    (tiny.sd_controlnet, {"image": picture(), "controlnet_conditioning_scale": 0.5}),
    (tiny.sdxl_img2img, {"image": picture("RGBA").convert("RGB"), "strength": 0.8}),
]


@pytest.mark.parametrize(("make", "more"), CASES)
def test_arguments_of_the_pipeline_are_passed_and_recorded(make: Make, more: dict[str, Any]) -> None:
    control = AttendAndExcite(refinement=None)
    first = generate(make(), PROMPT, control, steps=2, seed=3, **more)
    assert first.trace and set(first.settings["arguments"]) == set(more)
    again = replay(make(), first.settings)
    assert again.image.tobytes() == first.image.tobytes()
    assert again.image.tobytes() != generate(make(), PROMPT, steps=2, seed=3, **more).image.tobytes()


def test_what_is_too_large_for_a_file_is_asked_for() -> None:
    noise = torch.randn(1, 4, 16, 16, generator=tiny.generator())
    first = generate(tiny.sd(), PROMPT, steps=1, latents=noise)
    assert str(first.settings["arguments"]["latents"]).startswith("sha256:")
    with pytest.raises(BadSetting, match="do not hold latents"):
        replay(tiny.sd(), first.settings)
    assert replay(tiny.sd(), first.settings, latents=noise).image.tobytes() == first.image.tobytes()


@pytest.mark.parametrize("controls", ["attend_and_excite", AttendAndExcite, 3, [AttendAndExcite]])
def test_what_is_no_control_is_named(controls: Any) -> None:
    with pytest.raises(BadSetting, match="no control|not a control"):
        generate(tiny.sd(), PROMPT, controls, steps=1)


def test_one_control_stands_for_a_list_of_one() -> None:
    control = AttendAndExcite(refinement=None)
    alone, listed = (generate(tiny.sd(), PROMPT, each, steps=1) for each in (control, [control]))
    assert alone.image.tobytes() == listed.image.tobytes() and alone.settings == listed.settings
    assert generate(tiny.sd(), PROMPT, None, steps=1).settings["controls"] == []


REFUSED: list[tuple[Make, dict[str, Any], str]] = [
    (tiny.sd, {"width": 513}, "no multiple of 8"),
    (tiny.sd, {"height": 65, "width": 64}, "Use 64 or 72"),
    (tiny.sd, {"width": 10**9}, "width"),
    (tiny.sd, {"steps": 1001}, "more than the 1000 steps"),
    (tiny.sd_lcm, {"steps": 51}, "cannot make 51 steps"),
    (tiny.sd_lcm, {"negative_prompt": "a dog"}, "takes no negative_prompt"),
    (tiny.sd_img2img, {"image": picture(), "width": 64}, "takes no width"),
    (tiny.sd_img2img, {"image": picture(), "strength": 0.1, "steps": 3}, "leaves no step"),
    (tiny.sd_img2img, {"image": picture(), "strength": 9}, "strength"),
    (tiny.sd_img2img, {}, "refuses"),
    (tiny.sd_inpaint, {"image": picture(), "mask_image": "mask.png"}, "refuses"),
    (tiny.sd, {"sede": 3}, "sede"),
    (tiny.sd, {"generator": 3}, "There are: seed"),
    (tiny.sd, {"output_type": "latent"}, "output_type"),
    (tiny.sd, {"prompt_embeds": torch.zeros(1, 16, 32)}, "refuses"),
    (tiny.sd, {"seed": 2**64}, "seed"),
    (tiny.sd, {"seed": 2**64 - 1, "images_per_prompt": 2}, "seed"),
    (tiny.sd, {"seed": 10**310}, "seed 10000"),
    (tiny.sd, {"guidance_scale": 10**310}, "guidance_scale"),
    (tiny.sd, {"guidance_scale": float("inf")}, "guidance_scale"),
    (tiny.sd, {"negative_prompt": "\ud800"}, "negative_prompt"),
]


@pytest.mark.parametrize(("make", "more", "message"), REFUSED)
def test_what_cannot_be_done_is_named_before_any_pass(make: Make, more: dict[str, Any], message: str) -> None:
    pipe = make()
    passes: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    with pytest.raises(BadSetting, match=message) as caught:
        generate(pipe, PROMPT, [AttendAndExcite()], **{"steps": 2, **more})
    assert not passes and "\n" not in str(caught.value)
    assert "encode_prompt" not in vars(pipe) and "step" not in vars(pipe.scheduler)


def test_no_pipeline_is_named() -> None:
    with pytest.raises(UnsupportedPipeline):
        generate(object(), PROMPT)


def test_an_error_of_the_users_own_stays_as_it_is() -> None:
    def fail(progress: Any) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="^mine$"):
        generate(tiny.sd(), PROMPT, steps=2, on_step=fail)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 9")])
def test_memory_that_runs_out_is_named(error: Exception) -> None:
    with pytest.raises(OutOfMemory, match="not enough memory"), named_refusals(None, lambda: True):
        raise error
