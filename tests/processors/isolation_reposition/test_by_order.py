"""Isolation and reposition without a session: equal to the session, rows checked by content, named refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import t2ictl
from t2ictl import Subject
from t2ictl.errors import ControlConflict, NeedsSession, ShapeMismatch, UnsupportedPipeline
from t2ictl.processors.isolation_reposition.control import IsolationReposition
from t2ictl.settings.windows import Window
from tests import tiny
from tests.processors.isolation_reposition.isolation_cases import CAST, CAT, DOG, SCENE
from tests.tiny import run

PROMPTS = [CAT, DOG, SCENE]
OTHER = "a dog beside a cat"


def without(pipe: Any, prompts: list[str], made: dict[str, Any], **call: Any) -> Tensor:
    """Latents of a call with processors, which are then taken out."""
    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(made)
    try:
        return run(pipe, prompts, **call)
    finally:
        pipe.unet.set_attn_processor(before)


def within(pipe: Any, prompts: list[str], settings: dict[str, Any], **call: Any) -> Tensor:
    with t2ictl.controlled(pipe, [IsolationReposition(**settings)]):
        return run(pipe, prompts, **call)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize(
    ("settings", "call"),
    [
        ({}, {}),
        ({"subject_text": "inserted", "cross": 1.0}, {}),
        ({"ref_layers": ("self",), "ref_dropout": 0.25, "ref_strength": 2.0, "cross": 0.0}, {}),
        ({"branch": "cond", "isolation": 0.5, "strength": 0.5, "aspect": "fit"}, {"guidance_scale": 1.0}),
        ({"reposition": "off"}, {"height": 72, "width": 40}),
        ({}, {"height": 56, "width": 88, "num_images_per_prompt": 2}),
    ],
)
def test_it_equals_the_session(family: str, settings: dict[str, Any], call: dict[str, Any]) -> None:
    pipe = tiny.sd() if family == "sd" else tiny.sdxl()
    settings = {**CAST, **settings}
    size = (call["height"], call["width"]) if "height" in call else None
    expected = within(pipe, PROMPTS, settings, **call)
    made = IsolationReposition.attn_processors(
        pipe, PROMPTS, size=size, images_per_prompt=call.get("num_images_per_prompt", 1), **settings
    )
    found = without(pipe, PROMPTS, made, **call)
    assert (found - expected).abs().max() <= 1e-5
    assert (found - run(pipe, PROMPTS, **call)).abs().max() > 1e-3


@pytest.mark.parametrize("scheduler", ["euler_ancestral", "heun", "pndm"])
def test_every_evaluation_is_counted_as_in_the_session(scheduler: str) -> None:
    pipe = tiny.sd()
    pipe.scheduler = tiny.scheduler(scheduler)
    expected = within(pipe, PROMPTS, CAST)
    found = without(pipe, PROMPTS, IsolationReposition.attn_processors(pipe, PROMPTS, **CAST))
    assert (found - expected).abs().max() <= 1e-5
    undropped = without(pipe, PROMPTS, IsolationReposition.attn_processors(pipe, PROMPTS, ref_dropout=0.0, **CAST))
    assert (found - undropped).abs().max() > 1e-4  # what dropped out mattered


def test_a_second_call_draws_anew_unless_nothing_drops_out() -> None:
    pipe = tiny.sd()
    before = dict(pipe.unet.attn_processors)
    for dropout, same in ((0.0, True), (0.5, False)):
        pipe.unet.set_attn_processor(IsolationReposition.attn_processors(pipe, PROMPTS, ref_dropout=dropout, **CAST))
        first, second = run(pipe, PROMPTS), run(pipe, PROMPTS)
        assert torch.equal(first, second) == same
        pipe.unet.set_attn_processor(dict(before))


def test_new_processors_take_the_place_of_those_that_are_set() -> None:
    pipe = tiny.sd()
    alone = without(pipe, PROMPTS, IsolationReposition.attn_processors(pipe, PROMPTS, **CAST))
    pipe.unet.set_attn_processor(IsolationReposition.attn_processors(pipe, PROMPTS, isolation=0.0, cross=0.0, **CAST))
    found = without(pipe, PROMPTS, IsolationReposition.attn_processors(pipe, PROMPTS, **CAST))
    assert torch.equal(found, alone)


def test_strength_zero_is_the_plain_image_and_the_processors_that_were_there() -> None:
    pipe = tiny.sd()
    made = IsolationReposition.attn_processors(pipe, PROMPTS, strength=0.0, **CAST)
    assert all(made[name] is each for name, each in pipe.unet.attn_processors.items())
    assert torch.equal(without(pipe, PROMPTS, made), run(pipe, PROMPTS))


@pytest.mark.parametrize(
    ("prompts", "call", "kind", "message"),
    [
        ([DOG, CAT, SCENE], {}, UnsupportedPipeline, "should be the row of 'photo of a cat'"),
        ([CAT, DOG, OTHER], {}, UnsupportedPipeline, "has the text states of 'another text'"),
        ([CAT, DOG, OTHER], {"guidance_scale": 1.0}, UnsupportedPipeline, "Row 2 of the batch"),
        ([CAT, DOG], {}, UnsupportedPipeline, "4 rows"),
        (PROMPTS, {"num_images_per_prompt": 2}, UnsupportedPipeline, "12 rows"),
        (PROMPTS, {"num_images_per_prompt": 2, "guidance_scale": 1.0}, UnsupportedPipeline, "an unconditional row"),
        (PROMPTS, {"height": 72, "width": 64}, ShapeMismatch, "size="),
    ],
)
@pytest.mark.parametrize("cross", [0.9, 0.0])
def test_other_rows_than_promised_are_refused_in_the_first_pass(
    prompts: list[str], call: dict[str, Any], kind: type[Exception], message: str, cross: float
) -> None:
    pipe, passes = tiny.sd(), []
    made = IsolationReposition.attn_processors(pipe, PROMPTS, cross=cross, **CAST)
    handle = pipe.unet.conv_in.register_forward_pre_hook(lambda *_: passes.append(1))
    with pytest.raises(kind, match=message):
        without(pipe, prompts, made, **call)
    handle.remove()
    assert len(passes) == 1


def test_two_images_without_guidance_are_no_guided_pair() -> None:
    pipe = tiny.sd()
    made = IsolationReposition.attn_processors(pipe, [SCENE], layout=CAST["layout"], concepts=("cat", "dog"))
    with pytest.raises(UnsupportedPipeline, match="an unconditional row"):
        without(pipe, [SCENE], made, num_images_per_prompt=2, guidance_scale=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": Window(start=0.0, stop=0.5)}, "does not see the step"),
        ({"layout": ()}, "maps of words"),
        ({"layout": CAST["layout"][:1]}, "maps of words"),
        ({"subjects": (CAST["subjects"][0], Subject(name="dog", prompt=DOG))}, "maps of words"),
        ({"reposition": "latent"}, "between the steps"),
        (
            {"subjects": (CAST["subjects"][0], Subject(name="dog", prompt=DOG, image=Image.new("RGB", (64, 64))))},
            "between the steps",
        ),
    ],
)
def test_what_needs_a_session_says_so(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(NeedsSession, match=message) as error:
        IsolationReposition.attn_processors(tiny.sd(), PROMPTS, **{**CAST, **settings})
    assert error.value.remedy


def test_an_open_session_is_in_the_way() -> None:
    pipe = tiny.sd()
    with t2ictl.controlled(pipe, []), pytest.raises(ControlConflict, match="open session"):
        IsolationReposition.attn_processors(pipe, PROMPTS, **CAST)
