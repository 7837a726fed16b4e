"""Rows that are held at given images: their exact values, the rows beside them, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import t2ictl
from t2ictl.benchmarks.runs.random_direction import RandomDirection
from t2ictl.controls.base import Control, Plan, PlanContext
from t2ictl.errors import NeedsSession, UnsupportedPipeline
from t2ictl.families import find_adapter
from t2ictl.guidance.rules import StepSize
from t2ictl.processors.attention_segregation import AttentionSegregation
from t2ictl.processors.isolation_reposition.by_order import ordered_processors
from t2ictl.processors.isolation_reposition.reference_rows import ReferenceLatents, encode_image
from tests import tiny
from tests.processors.isolation_reposition.image_cases import alpha, clean, inputs
from tests.session.pipeline_cases import state, unreached

PROMPTS = ["a red circle and a blue square", "a cat and a dog", "a lion in a bowl"]
MOVES = AttentionSegregation(step=StepSize(scale=0.05, mode="normalized"))


def photo(seed: int, height: int = 64, width: int = 64) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


class Held(Control):
    """Holds rows at photographs: row and seed of the photograph."""

    name, paper, families, needs_words = "held", "", ("sd", "sdxl"), False

    def __init__(self, rows: Mapping[int, int], seed: int = 0, names: Sequence[str] = ()) -> None:
        self.rows, self.seed, self.names = dict(rows), seed, tuple(names)
        self.asked: list[tuple[int, int, int]] = []

    def give(self, row: int, height: int, width: int) -> Image.Image:
        self.asked.append((row, height, width))
        return photo(self.rows[row], height, width)

    def plan(self, context: PlanContext) -> Plan:
        images = {row: (lambda h, w, row=row: self.give(row, h, w)) for row in self.rows}
        names = {row: self.names[row] if self.names else context.row_prompts[row].text for row in self.rows}
        return Plan(fixed_latents=ReferenceLatents(adapter=context.adapter, images=images, names=names, seed=self.seed))


def heard(pipe: Any, controls: Sequence[Any], prompts: Any = PROMPTS, **call: Any) -> list[tuple[float, Tensor]]:
    with t2ictl.controlled(pipe, controls), inputs(pipe) as found:
        tiny.run(pipe, prompts, **{"steps": 3} | call)
    return found


def noise_of(pipe: Any, x_CYX: Tensor, t: float, seed: int, size: tuple[int, int] = (64, 64)) -> Tensor:
    """What has been added to a photograph, by the alphas of the training schedule."""
    a = alpha(pipe.scheduler, t)
    return (x_CYX - a**0.5 * clean(pipe, photo(seed, *size))) / (1 - a) ** 0.5


# -- exact values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("build", [tiny.sd, tiny.sdxl])
def test_a_held_row_is_its_noised_image_in_every_evaluation(build: Any, guidance_scale: float) -> None:
    """The noise is found from one evaluation of one scheduler, and predicts all others."""
    pipe = build()
    wanted: Tensor | None = None
    for name in tiny.SCHEDULERS:
        pipe.scheduler = tiny.scheduler(name, pipe)
        found = heard(pipe, [Held({1: 5})], guidance_scale=guidance_scale)
        assert len(found) == len(pipe.scheduler.timesteps) and len(found[0][1]) == (6 if guidance_scale > 1 else 3)
        for t, x_BCYX in found:
            for x_CYX in x_BCYX[1::3]:
                noise_CYX = noise_of(pipe, x_CYX, t, 5)
                wanted = noise_CYX if wanted is None else wanted
                torch.testing.assert_close(noise_CYX, wanted, rtol=0, atol=2e-4)
    assert wanted is not None and abs(wanted.mean()) < 0.15 and 0.9 < wanted.std() < 1.1


@pytest.mark.parametrize("name", tiny.SCHEDULERS)
@pytest.mark.parametrize("build", [tiny.sd, tiny.sdxl])
def test_the_other_images_are_bit_equal_to_a_call_without(build: Any, name: str) -> None:
    pipe = build()
    pipe.scheduler = tiny.scheduler(name, pipe)
    plain = tiny.run(pipe, PROMPTS, steps=4)
    with t2ictl.controlled(pipe, [Held({1: 5})]) as session:
        found = tiny.run(pipe, PROMPTS, steps=4)
    assert torch.equal(found[[0, 2]], plain[[0, 2]]) and (found[1] - plain[1]).abs().max() > 0.1
    assert not session.trace and session.cost.extra_forwards == 0


def test_after_its_last_step_a_row_is_what_the_scheduler_makes_of_it() -> None:
    """DDIM's step, from the held sample and what the denoiser says of it: the move reaches the scheduler."""
    pipe = tiny.sd()
    steps: list[Tensor] = []
    step = pipe.scheduler.step

    @functools.wraps(step)
    def listen(*args: Any, **kwargs: Any) -> Any:
        steps.append(args[2])
        return step(*args, **kwargs)

    pipe.scheduler.step = listen
    found = heard(pipe, [Held({1: 5})], guidance_scale=1.0)
    for (_, x_BCYX), sample in zip(found, steps, strict=True):
        torch.testing.assert_close(sample, x_BCYX, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_leave_the_others_bit_equal_too(dtype: torch.dtype) -> None:
    pipe = tiny.sdxl(dtype=dtype)
    plain = tiny.run(pipe, PROMPTS, steps=2)
    with t2ictl.controlled(pipe, [Held({1: 5})]):
        found = tiny.run(pipe, PROMPTS, steps=2)
    assert found.dtype == dtype and torch.equal(found[[0, 2]], plain[[0, 2]])
    assert not torch.equal(found[1], plain[1]) and torch.isfinite(found).all()


@pytest.mark.parametrize("size", [(24, 72), (56, 40)])
def test_sizes_that_are_not_square(size: tuple[int, int]) -> None:
    pipe, held = tiny.sd(), Held({0: 2, 2: 3})
    found = heard(pipe, [held], height=size[0], width=size[1])
    assert sorted(held.asked) == [(0, *size), (2, *size)]  # once a call
    noises = [noise_of(pipe, x[row], t, seed, size) for t, x in found for row, seed in held.rows.items()]
    for place, noise in enumerate(noises):
        torch.testing.assert_close(noise, noises[place % 2], rtol=0, atol=2e-4)


def test_image_to_image_and_masks_beside_the_latents() -> None:
    for build in (tiny.sd_img2img, lambda: tiny.sd_inpaint(9)):
        pipe = build()
        with inputs(pipe) as plain:
            tiny.run(pipe, PROMPTS, steps=4)
        found = heard(pipe, [Held({1: 5})], steps=4)
        first = noise_of(pipe, found[0][1][1, :4], found[0][0], 5)
        for (t, x_BCYX), (_, before_BCYX) in zip(found, plain, strict=True):
            assert torch.equal(x_BCYX[::3], before_BCYX[::3]) and torch.equal(x_BCYX[:, 4:], before_BCYX[:, 4:])
            torch.testing.assert_close(noise_of(pipe, x_BCYX[4, :4], t, 5), first, rtol=0, atol=2e-4)


# -- noise ------------------------------------------------------------------------------------------------------------


def noise(row: int, prompts: Sequence[str] = PROMPTS, **settings: Any) -> Tensor:
    pipe = tiny.sd()
    t, x_BCYX = heard(pipe, [Held({row: 5}, **settings)], list(prompts), steps=1)[0]
    return noise_of(pipe, x_BCYX[row], t, 5)


def test_noise_depends_on_name_and_seed_alone() -> None:
    own = noise(1)
    for row, prompts in ((0, PROMPTS[1:]), (2, [PROMPTS[2], PROMPTS[0], PROMPTS[1]]), (0, PROMPTS[1:2])):
        assert torch.equal(noise(row, prompts), own)
    assert torch.equal(noise(0, names=[PROMPTS[1]] * 3), own)
    for other in (noise(0), noise(1, seed=1), noise(1, names=["x"] * 3)):
        share = torch.corrcoef(torch.stack([own.flatten(), other.flatten()]))[0, 1]
        assert abs(share) < 0.15  # five standard deviations of 1024 draws


def test_nothing_is_drawn_from_the_global_generator() -> None:
    pipe = tiny.sd()
    before = torch.get_rng_state()
    heard(pipe, [Held({1: 5})])
    assert torch.equal(torch.get_rng_state(), before)


# -- the autoencoder --------------------------------------------------------------------------------------------------


def encoded(pipe: Any, image: Image.Image) -> Tensor:
    return encode_image(find_adapter(pipe), image)


@pytest.mark.parametrize("build", [tiny.sd, tiny.sdxl])
def test_encoding_is_that_of_image_to_image(build: Any) -> None:
    pipe = build()
    found = encoded(pipe, photo(1))
    torch.testing.assert_close(found, clean(pipe, photo(1)), rtol=0, atol=1e-6)
    gray = photo(1).convert("L")
    assert torch.equal(encoded(pipe, gray), encoded(pipe, gray.convert("RGB")))
    assert found.dtype == torch.float32 and not found.requires_grad


def test_means_and_deviations_of_latents_as_the_pipeline_undoes_them() -> None:
    """What the pipeline decodes, by its own rule, is what the autoencoder gave."""
    pipe = tiny.sdxl()
    plain = encoded(pipe, photo(1)) / pipe.vae.config.scaling_factor
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.5, 0.5, 1.0, 3.0]
    pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
    decoded: list[Tensor] = []
    pipe.vae.decode = lambda z, **_: decoded.append(z) or (torch.zeros(1, 3, 64, 64),)  # type: ignore[func-returns-value]
    pipe("a cat", num_inference_steps=1, callback_on_step_end=lambda *_: {"latents": encoded(pipe, photo(1))[None]})
    torch.testing.assert_close(decoded[0][0], plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_forced", [True, False])
def test_autoencoders_that_overflow_in_half_precision(is_forced: bool) -> None:
    pipe = tiny.sdxl(dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=is_forced)
    before = {name: each.clone() for name, each in pipe.vae.state_dict().items()}
    seen: list[torch.dtype] = []
    pipe.vae.encoder.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    found = encoded(pipe, photo(1))
    assert seen == [torch.float32 if is_forced else torch.float16]
    exact = tiny.sdxl(dtype=torch.float16)
    exact.vae.to(torch.float32)
    torch.testing.assert_close(found, clean(exact, photo(1)), rtol=0, atol=1e-6 if is_forced else 1e-2)
    assert all(torch.equal(each, before[name]) for name, each in pipe.vae.state_dict().items())
    assert {each.dtype for each in pipe.vae.state_dict().values()} == {torch.float16}


def test_an_error_in_the_autoencoder_leaves_it_as_it_was() -> None:
    pipe = tiny.sdxl(dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    tiny.run(pipe, PROMPTS, steps=1)
    before = state(pipe)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = pipe.vae.encoder.conv_in.register_forward_pre_hook(stop)
    with unreached(pipe), pytest.raises(KeyboardInterrupt), t2ictl.controlled(pipe, [Held({1: 5})]):
        tiny.run(pipe, PROMPTS)
    handle.remove()
    assert pipe.vae.dtype == torch.float16 and state(pipe) == before


def test_offloaded_autoencoders_are_refused_before_the_first_pass() -> None:
    accelerate = pytest.importorskip("accelerate")
    for offload in (accelerate.cpu_offload_with_hook, lambda vae: accelerate.cpu_offload(vae, torch.device("cpu"))):
        pipe = tiny.sd()
        plain, before = tiny.run(pipe, PROMPTS, steps=2), state(pipe)
        offload(pipe.vae)
        with unreached(pipe), pytest.raises(UnsupportedPipeline, match="offloading holds the autoencoder"):
            heard(pipe, [Held({1: 5})])
        accelerate.hooks.remove_hook_from_module(pipe.vae, recurse=True)
        assert state(pipe) == before and torch.equal(tiny.run(pipe, PROMPTS, steps=2), plain)


@pytest.mark.parametrize("is_forced", [True, False])
def test_autoencoders_that_are_cast_for_each_layer(is_forced: bool) -> None:
    """They are used as they are, and not cast, which would not be undone."""
    pipe = tiny.sdxl(dtype=torch.float16)
    exact = encoded(pipe, photo(1))
    pipe.vae.register_to_config(force_upcast=is_forced)
    pipe.vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float16)
    before = {name: each.dtype for name, each in pipe.vae.state_dict().items()}
    assert torch.float8_e4m3fn in before.values()
    if is_forced:
        with unreached(pipe), pytest.raises(UnsupportedPipeline, match="holds the autoencoder elsewhere"):
            heard(pipe, [Held({1: 5})])
    else:
        assert (encoded(pipe, photo(1)) - exact).abs().max() < 0.1 * exact.abs().max()
    assert before == {name: each.dtype for name, each in pipe.vae.state_dict().items()}


def test_distilled_autoencoders_and_none() -> None:
    pipe, channels = tiny.sd(), (8, 8, 8)
    pipe.vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        scaling_factor=0.5,
    )
    pixels = torch.from_numpy(np.array(photo(1))).permute(2, 0, 1)[None].float() / 127.5 - 1
    wanted = 0.5 * pipe.vae.encode(pixels).latents[0]
    torch.testing.assert_close(encoded(pipe, photo(1)), wanted, rtol=0, atol=1e-6)
    for build in (tiny.sd, tiny.sdxl):
        pipe = build()
        pipe.vae = None
        with unreached(pipe), pytest.raises(UnsupportedPipeline, match="has no autoencoder"):
            heard(pipe, [Held({1: 5})])


# -- the session ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny.sd, tiny.sdxl])
def test_pins_come_after_the_moves_of_others_and_are_not_traced(build: Any) -> None:
    pipe = build()
    with t2ictl.controlled(pipe, [MOVES]) as alone:
        moved = tiny.run(pipe, PROMPTS, steps=3)
    with t2ictl.controlled(pipe, [Held({1: 5}), MOVES]) as both, inputs(pipe) as found:
        pinned = tiny.run(pipe, PROMPTS, steps=3)
    assert torch.equal(pinned[[0, 2]], moved[[0, 2]]) and not torch.equal(moved, tiny.run(pipe, PROMPTS, steps=3))
    assert len(both.trace) == len(alone.trace) > 0 and both.cost.extra_forwards == alone.cost.extra_forwards
    wanted = [x for _, x in heard(pipe, [Held({1: 5})])]
    for (_, x), y in zip(found, wanted, strict=True):
        assert torch.equal(x[[1, 4]], y[[1, 4]])


def test_a_random_direction_holds_the_same_rows() -> None:
    pipe = tiny.sd()
    wanted = heard(pipe, [Held({1: 5})])
    still = heard(pipe, [RandomDirection((), (1, 2, 3), (Held({1: 5}),))])
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(still, wanted, strict=True))
    with t2ictl.controlled(pipe, [MOVES]) as session:
        tiny.run(pipe, PROMPTS, steps=3)
    found = heard(pipe, [RandomDirection(session.trace, (1, 2, 3), (MOVES, Held({1: 5})))])
    assert all(torch.equal(x[[1, 4]], y[[1, 4]]) for (_, x), (_, y) in zip(found, wanted, strict=True))
    assert not torch.equal(found[0][1][0], wanted[0][1][0])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_pipeline_is_restored_when_an_image_fails(error: type[BaseException]) -> None:
    pipe = tiny.sd()
    plain, before = tiny.run(pipe, PROMPTS, steps=2), state(pipe)

    class Failing(Held):
        def give(self, row: int, height: int, width: int) -> Image.Image:
            raise error("no image")

    with unreached(pipe), pytest.raises(error, match="no image"), t2ictl.controlled(pipe, [Failing({1: 5})]):
        tiny.run(pipe, PROMPTS)
    assert state(pipe) == before and torch.equal(tiny.run(pipe, PROMPTS, steps=2), plain)
    with t2ictl.controlled(pipe, [Held({1: 5})]):
        tiny.run(pipe, PROMPTS, steps=2)
        again = tiny.run(pipe, PROMPTS, steps=2)  # a session may be called often
    assert torch.equal(again[0], plain[0]) and state(pipe) == before


def test_schedulers_of_another_noise_are_refused_before_the_first_pass() -> None:
    pipe = tiny.sdxl()
    pipe.scheduler = diffusers.EDMEulerScheduler()
    before = state(pipe)
    with unreached(pipe), pytest.raises(UnsupportedPipeline, match="EDMEulerScheduler does not noise images"):
        heard(pipe, [Held({1: 5})])
    assert state(pipe)["processors"] == before["processors"]


def test_without_a_session_it_is_refused() -> None:
    with pytest.raises(NeedsSession, match="latents between steps"):
        ordered_processors(tiny.sd(), Held({1: 5}), PROMPTS, size=None, images_per_prompt=1)
