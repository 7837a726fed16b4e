"""However often a pipeline calls its transformer in a step: each call sees the moved sample, and so does the scheduler.

Legend: ``B`` image, ``R`` row of the transformer's batch, ``N`` token of packed latents, ``C`` channels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ChromaPipeline
from torch import Tensor

import t2ictl
from t2ictl.errors import UnsupportedPipeline
from t2ictl.settings.windows import Window
from tests.families.transformers.cases import (
    FAMILIES,
    PIPELINES,
    PROMPT,
    STEPS,
    Seen,
    distance,
    excite,
    held,
    seen,
    shared,
)
from tests.tiny_transformers import run

CONTROL = excite(0.05, window=Window())
NEGATIVE = "a green frog"
SKIPPED: dict[str, Any] = {
    "skip_guidance_layers": [1],
    "skip_layer_guidance_start": 0.0,
    "skip_layer_guidance_stop": 1.0,
}

# The pipeline, arguments of the call, and rows of each image in each call of the transformer in a step.
CALLS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    **{name: (name, {}, (2,)) for name in ("pixart_alpha", "pixart_sigma", "sana", "hunyuan_dit", "sd3", "sd35")},
    "flux": ("flux", {}, (1,)),
    "flux_schnell": ("flux_schnell", {}, (1,)),
    "flux true": ("flux", {"true_cfg_scale": 3.0, "negative_prompt": NEGATIVE}, (1, 1)),
    "flux true, same": ("flux", {"true_cfg_scale": 3.0, "negative_prompt": PROMPT}, (1, 1)),
    "flux_kontext true": ("flux_kontext", {"true_cfg_scale": 3.0, "negative_prompt": NEGATIVE}, (1, 1)),
    "flux_img2img true": ("flux_img2img", {"true_cfg_scale": 3.0, "negative_prompt": NEGATIVE, "steps": 4}, (1, 1)),
    "flux_controlnet true": ("flux_controlnet", {"true_cfg_scale": 3.0, "negative_prompt": NEGATIVE}, (1, 1)),
    "chroma": ("chroma", {}, (1, 1)),
    "chroma negative": ("chroma", {"negative_prompt": NEGATIVE}, (1, 1)),
    "chroma same": ("chroma", {"negative_prompt": PROMPT}, (1, 1)),
    "chroma unguided": ("chroma", {"guidance_scale": 1.0}, (1,)),
    "sd3 skip": ("sd3", SKIPPED, (2, 1)),
    "sd35 skip": ("sd35", SKIPPED, (2, 1)),
    "sd3 same": ("sd3", {"negative_prompt": PROMPT}, (2,)),
    "sd3 unguided": ("sd3", {"guidance_scale": 1.0}, (1,)),
    "pixart same": ("pixart_sigma", {"negative_prompt": PROMPT}, (2,)),
    "sana unguided": ("sana", {"guidance_scale": 1.0}, (1,)),
    "hunyuan_dit same": ("hunyuan_dit", {"negative_prompt": PROMPT}, (2,)),
}


def samples(calls: list[dict[str, Any]], like: Tensor) -> list[Tensor]:
    """The latents of each call, as many tokens and channels as the scheduler's sample has; the rest are conditions."""
    parts = [each["hidden_states"] for each in calls]
    return [each[:, : like.shape[1], : like.shape[2]] if like.ndim == 3 else each[:, : like.shape[1]] for each in parts]


def check_step(step: Seen, rows: tuple[int, ...]) -> None:
    """All rows of all calls are the moved sample, which is another one than the pipeline's."""
    images = len(step.sample)
    # The first call of a skipped layer comes one step later than that of the others.
    assert [len(each) for each in samples(step.reached, step.sample)] == [each * images for each in rows]
    assert distance(step.sample, step.plain) == pytest.approx(0.05, rel=1e-3)
    for given, reached in zip(samples(step.given, step.sample), samples(step.reached, step.sample), strict=True):
        for first in range(0, len(given), images):
            assert torch.equal(given[first : first + images], step.plain)
            # The scheduler's sample is the sum of the plain one and the move; here the move was added first.
            assert torch.allclose(reached[first : first + images], step.sample, atol=1e-5, rtol=1e-5)


def others(call: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call but the latents, which no session changes."""
    return {key: value for key, value in call.items() if key != "hidden_states"}


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@pytest.mark.parametrize("which", CALLS)
def test_all_calls_see_the_moved_sample(which: str) -> None:
    name, call, rows = CALLS[which]
    pipe = PIPELINES[name]()
    steps = seen(pipe, [CONTROL], **{"num_images_per_prompt": 2} | call)
    assert len(steps) == (3 if "steps" in call else STEPS)
    for number, step in enumerate(steps):
        # Stock SD3 leaves no layers out at its very first step.
        check_step(step, rows[: 1 if "skip" in which and number == 0 else None])
        assert [len(each["hidden_states"]) for each in step.own] == [2]  # conditional rows of both images
        for given, reached in zip(step.given, step.reached, strict=True):
            assert others(given).keys() == others(reached).keys()
            assert all(same(value, others(reached)[key]) for key, value in others(given).items())


@pytest.mark.parametrize("which", [which for which, (_, _, rows) in CALLS.items() if rows != (1,)])
def test_recorded_under_guidance(which: str) -> None:
    name, call, _ = CALLS[which]
    plain = run(shared(name), PROMPT, **{"steps": STEPS} | call)
    assert torch.equal(held(shared(name), [], record=True, **call)[0], plain)


UNGUIDED = {
    "flux true": "true_cfg_scale",
    "chroma": "guidance_scale",
    "sd3": "guidance_scale",
    "sana": "guidance_scale",
}


@pytest.mark.parametrize("which", UNGUIDED)
def test_maps_are_those_of_the_prompt(which: str) -> None:
    """Before the first step guidance has changed nothing: maps are those of a call that has none."""
    name, call, _ = CALLS[which]
    pipe, call = shared(name), {**call, "negative_prompt": NEGATIVE}
    guided, alone = (held(pipe, [], record=True, **given)[1].record for given in (call, {UNGUIDED[which]: 1.0}))
    for word in ("circle", "blue square"):
        first, last = (torch.stack([each.map(word, step=step) for each in (guided, alone)]) for step in (0, -1))
        assert float(first.diff(dim=0).abs().max()) < 1e-5 < float(last.diff(dim=0).abs().max())


def test_a_further_call_has_the_rows_of_the_prompt() -> None:
    pipe = FAMILIES["sd3"]()
    for step in seen(pipe, [CONTROL], **SKIPPED)[1:]:
        whole, skipped = step.reached
        assert torch.equal(whole["encoder_hidden_states"][1:], skipped["encoder_hidden_states"])
        assert skipped["skip_layers"] == [1]


@pytest.mark.parametrize(("name", "key"), [("flux", "true_cfg_scale"), ("chroma", "guidance_scale")])
def test_guidance_acts_on_the_moved_image(name: str, key: str) -> None:
    pipe = shared(name)
    images = [held(pipe, [CONTROL], negative_prompt=NEGATIVE, **{key: scale})[0] for scale in (2.0, 6.0)]
    assert distance(*images) > 1e-2


class Backwards(ChromaPipeline):
    """A pipeline that calls its transformer for the negative prompt first."""

    def __call__(self, prompt: str, **more: Any) -> Any:
        rows, ids, mask, negative, _, negative_mask = self.encode_prompt(prompt, max_sequence_length=8)
        self.scheduler.set_timesteps(1)
        for each in (negative, rows):
            self.transformer(
                hidden_states=torch.zeros(1, 4, 16),
                timestep=torch.ones(1),
                encoder_hidden_states=each,
                img_ids=torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]),
                txt_ids=ids,
            )


def test_a_pipeline_that_calls_for_the_negative_prompt_first_is_refused() -> None:
    pipe = Backwards(**FAMILIES["chroma"]().components)
    with pytest.raises(UnsupportedPipeline, match="negative prompt first"), t2ictl.controlled(pipe, [CONTROL]):
        pipe(PROMPT)
