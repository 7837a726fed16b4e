"""The toy pipelines are what the other tests take them for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import tiny

FAMILIES: list[Callable[..., Any]] = [tiny.sd, tiny.sd2, tiny.sdxl]
VARIANTS: list[Callable[..., Any]] = [
    tiny.sd_img2img,
    tiny.sd_inpaint,
    lambda: tiny.sd_inpaint(9),
    tiny.sd_controlnet,
    tiny.sd_lcm,
    tiny.sdxl_img2img,
    tiny.sdxl_inpaint,
    lambda: tiny.sdxl_inpaint(9),
    tiny.sdxl_controlnet,
]


def test_listed_words_are_one_token() -> None:
    tokenizer = tiny.tokenizer()
    found = {word: tokenizer.tokenize(word) for word in tiny.WORDS}
    assert found == {word: [f"{word}</w>"] for word in tiny.WORDS}


def test_other_words_split_and_offsets_cover_them() -> None:
    encoded = tiny.tokenizer()("a snowboard!", return_offsets_mapping=True)
    assert tiny.tokenizer().tokenize("a snowboard!") == ["a</w>", "snow", "board</w>", "!</w>"]
    assert encoded["offset_mapping"][1:-1] == [(0, 1), (2, 6), (6, 11), (11, 12)]


def test_padding_is_the_end_token_only_in_sd1() -> None:
    sd, sd2, sdxl = tiny.sd(), tiny.sd2(), tiny.sdxl()
    assert sd.tokenizer.pad_token == tiny.EOS
    assert (sd2.tokenizer.pad_token, sdxl.tokenizer_2.pad_token) == ("!", "!")


@pytest.mark.parametrize("build", FAMILIES)
def test_repeatable_and_silent_about_randomness(build: Any) -> None:
    before = torch.get_rng_state()
    first = tiny.run(build(), "a red circle and a blue square")
    assert torch.equal(first, tiny.run(build(), "a red circle and a blue square"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("build", FAMILIES + VARIANTS)
def test_words_matter(build: Any) -> None:
    pipe = build()
    circle = tiny.run(pipe, "a red circle and a blue square")
    cat = tiny.run(pipe, "a red circle and a blue cat")
    assert torch.isfinite(circle).all()
    assert (cat - circle).norm() > 0.02 * circle.norm()


@pytest.mark.parametrize("name", tiny.SCHEDULERS)
@pytest.mark.parametrize("build", FAMILIES)
def test_every_scheduler_runs(build: Any, name: str) -> None:
    pipe = build()
    pipe.scheduler = tiny.scheduler(name, pipe)
    assert pipe.scheduler.config.prediction_type == ("v_prediction" if build is tiny.sd2 else "epsilon")
    assert torch.isfinite(tiny.run(pipe, "a cat", steps=3)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions(dtype: torch.dtype) -> None:
    assert tiny.run(tiny.sd(dtype=dtype), "a cat", steps=2).dtype == dtype


def test_controlnet_has_an_effect() -> None:
    pipe = tiny.sd_controlnet()
    with_control = tiny.run(pipe, "a cat")
    without = tiny.run(pipe, "a cat", controlnet_conditioning_scale=0.0)
    assert (with_control - without).norm() > 0.01 * without.norm()
