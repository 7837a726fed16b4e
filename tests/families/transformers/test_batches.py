"""Batches are real: rows are known by what they hold, and an image of a batch is the one that it is alone."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import t2ictl
from t2ictl.controls.base import Control
from tests.families.transformers.cases import (
    DISTINCT,
    FAMILIES,
    MASKS_IN_WRONG_ORDER,
    MOVES,
    OTHER,
    PROMPT,
    STEPS,
    distance,
    excite,
    families,
    shared,
)
from tests.session.session_cases import generators, rows_apart
from tests.tiny_transformers import run

PROMPTS = (PROMPT, OTHER)
#: As long as the first one in every tokenizer.
TWIN = "a green frog and a white bench"
WORDS = {PROMPT: ("red", "circle", "blue square"), OTHER: ("cat", "big green frog", "bench"), TWIN: ("frog", "bench")}
IMAGES = 2
REPEATED = "batched prompts of unlike length"


def batch(pipe: Any, prompts: tuple[str, ...], controls: list[Control] | None, **call: Any) -> tuple[Tensor, Any]:
    """All prompts in one call, two images each, one generator an image."""
    seeds = generators(range(len(prompts) * IMAGES))
    return made(pipe, list(prompts), controls, generator=seeds, num_images_per_prompt=IMAGES, **call)


def single(
    pipe: Any, prompts: tuple[str, ...], row: int, controls: list[Control] | None, **call: Any
) -> tuple[Tensor, Any]:
    """One image of that batch in a call of its own."""
    return made(pipe, prompts[row // IMAGES], controls, generator=generators([row]), **call)


def made(pipe: Any, prompt: Any, controls: list[Control] | None, **call: Any) -> tuple[Tensor, Any]:
    if controls is None:
        return run(pipe, prompt, steps=STEPS, **call), None
    with t2ictl.controlled(pipe, controls, record=True) as session:
        return run(pipe, prompt, steps=STEPS, **call), session


def check_rows(pipe: Any, prompts: tuple[str, ...], controls: list[Control], **call: Any) -> None:
    """Compare latents and maps of each row with those of a call of its own."""
    plain, _ = batch(pipe, prompts, None, **call)
    together, session = batch(pipe, prompts, controls, **call)
    assert [each.text for each in session.record.prompts] == [each for each in prompts for _ in range(IMAGES)]
    for row in range(len(prompts) * IMAGES):
        plain_alone, _ = single(pipe, prompts, row, None, **call)
        alone, own = single(pipe, prompts, row, controls, **call)
        allowed = 5 * rows_apart(plain[row : row + 1], plain_alone)[0] + 1e-3
        assert rows_apart(together[row : row + 1], alone)[0] <= allowed
        assert not controls or rows_apart(alone, plain_alone)[0] > 10 * allowed
        for word in WORDS[prompts[row // IMAGES]]:
            map_YX, map_alone_YX = session.record.map(word, image=row), own.record.map(word)
            assert torch.allclose(map_YX, map_alone_YX, atol=1e-4)
            assert float(map_alone_YX.std()) > 1e-3
    # Two images of a prompt have maps of their own.
    first, second = (session.record.map(WORDS[prompts[0]][0], image=row) for row in range(IMAGES))
    assert float((first - second).abs().max()) > 1e-3


@pytest.mark.parametrize("control", [None, MOVES], ids=["recorded", "moved"])
@pytest.mark.parametrize("name", [name for name in DISTINCT if name not in MASKS_IN_WRONG_ORDER])
def test_rows_are_the_images_they_are_alone(name: str, control: Control | None) -> None:
    check_rows(shared(name), PROMPTS, [] if control is None else [control])


def test_rows_of_guidance_in_calls_of_its_own() -> None:
    more = {"true_cfg_scale": 3.0, "negative_prompt": "a bird"}
    pipe, plain = shared("flux"), batch(shared("flux"), PROMPTS, None)[0]
    negative = ["a bird", "a clock in a bowl"]
    together, session = batch(pipe, PROMPTS, [MOVES], true_cfg_scale=3.0, negative_prompt=negative)
    assert min(rows_apart(together, plain)) > 1e-2
    for row in range(len(PROMPTS) * IMAGES):
        own = {**more, "negative_prompt": negative[row // IMAGES]}
        alone, _ = single(pipe, PROMPTS, row, [MOVES], **own)
        assert rows_apart(together[row : row + 1], alone)[0] < 1e-3


# -- a fault of some stock pipelines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS_IN_WRONG_ORDER)
def test_rows_whose_prompts_have_one_length(name: str) -> None:
    check_rows(shared(name), (PROMPT, TWIN), [MOVES])


@pytest.mark.parametrize("name", MASKS_IN_WRONG_ORDER)
def test_masks_in_another_order_than_their_rows_are_told(name: str) -> None:
    """The plain pipeline itself makes another image of a prompt in such a batch."""
    pipe = shared(name)
    plain, _ = batch(pipe, PROMPTS, None)
    alone = [single(pipe, PROMPTS, row, None)[0] for row in range(len(PROMPTS) * IMAGES)]
    apart = [distance(plain[row : row + 1], each) for row, each in enumerate(alone)]
    assert max(apart) > 1e-3
    for controls in ([], [MOVES]):
        with pytest.warns(RuntimeWarning, match=REPEATED) as told:
            latents, _ = batch(pipe, PROMPTS, controls)
        assert len([each for each in told if REPEATED in str(each.message)]) == 1
        assert torch.equal(latents, plain) == (not controls)  # nothing is corrected
    with pytest.warns(RuntimeWarning, match=REPEATED), t2ictl.controlled(pipe):
        assert torch.equal(batch(pipe, PROMPTS, None)[0], plain)


@families
def test_other_batches_are_not_told(name: str) -> None:
    pipe = shared(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        made(pipe, list(PROMPTS), [MOVES])  # one image each
        batch(pipe, (PROMPT, TWIN), [MOVES])
        batch(pipe, (PROMPT,), [MOVES])
        if name not in MASKS_IN_WRONG_ORDER:
            batch(pipe, PROMPTS, [MOVES])


# -- order ------------------------------------------------------------------------------------------------------------


@families
def test_order_of_the_prompts_does_not_matter(name: str) -> None:
    pipe = FAMILIES[name](dtype=torch.float64)
    forwards, _ = made(pipe, list(PROMPTS), [excite()], generator=generators([0, 1]))
    backwards, _ = made(pipe, list(PROMPTS[::-1]), [excite()], generator=generators([1, 0]))
    assert max(rows_apart(forwards, backwards.flip(0))) < 1e-8


def test_prompts_are_as_long_as_they_are_meant_to_be() -> None:
    for name in FAMILIES:
        adapter = t2ictl.controlled(shared(name)).adapter
        lengths = [[each.end for each in adapter.parse((text,)).encodings] for text in (PROMPT, TWIN, OTHER)]
        assert lengths[0] == lengths[1] and min(map(int.__sub__, lengths[2], lengths[0])) > 1
