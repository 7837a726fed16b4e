"""Rows held at given pictures: exact values, the others untouched, and everything put back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import t2ictl
from t2ictl import Control, Plan, PlanContext
from t2ictl.adapters import find_adapter
from t2ictl.benchmarks.random_direction import RandomDirection
from t2ictl.errors import UnsupportedPipeline
from t2ictl.pinned_rows import PinnedRows, encode_picture
from t2ictl.schedulers import input_scale
from tests import tiny
from tests.tiny import run

PROMPTS = ["a cat", "a dog", "a cat"]


def photo(seed: int = 0) -> Image.Image:
    return Image.fromarray((tiny.picture(seed)[0].permute(1, 2, 0) * 255).byte().numpy())


class Pinned(Control):
    """Holds some pictures at a photo."""

    name = "pinned"
    paper = ""
    families = ("sd", "sdxl")
    needs_words = False
    has_losses = False

    def __init__(self, images: dict[int, Image.Image], seed: int = 0) -> None:
        self.images, self.seed, self.asked = images, seed, list[tuple[int, int]]()

    def plan(self, context: PlanContext) -> Plan:
        def gives(image: int) -> Any:
            def give(height: int, width: int) -> Image.Image:
                self.asked.append((height, width))
                return self.images[image].resize((width, height))

            return give

        pictures = {image: gives(image) for image in self.images}
        names = {image: context.row_prompts[image].text for image in self.images}
        return Plan(pin=PinnedRows(adapter=context.adapter, pictures=pictures, names=names, seed=self.seed))


def seen(pipe: Any, controls: list[Any], prompts: Any = PROMPTS, **call: Any) -> tuple[list[Tensor], Tensor]:
    """What the denoiser saw at each evaluation, and the latents at the end; each picture with its own noise."""
    heard: list[Tensor] = []
    handle = pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach().clone()))
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    with t2ictl.controlled(pipe, controls):
        latents = run(pipe, prompts, **{"generator": generators, **call})
    handle.remove()
    return heard, latents


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "heun", "pndm"])
@pytest.mark.parametrize("build", [tiny.sd, tiny.sdxl])
def test_held_rows_are_the_noised_picture_and_the_others_are_the_plain_ones(build: Any, scheduler: str) -> None:
    pipe = build()
    pipe.scheduler = tiny.scheduler(scheduler)
    plain, _ = seen(pipe, [])
    held, latents = seen(pipe, [Pinned({1: photo()})])
    clean_CYX = _encoded(pipe, photo())
    assert len(held) == len(plain)
    for one, other in zip(held, plain, strict=True):
        for row in (0, 2, 3, 5):
            torch.testing.assert_close(one[row], other[row], rtol=0, atol=1e-5)
        assert torch.equal(one[1], one[4])  # both sides of the guidance
    pipe.scheduler.set_timesteps(4)
    noises = []
    for timestep, x in zip(pipe.scheduler.timesteps, held, strict=True):
        if scheduler in ("ddim", "pndm"):  # these noise a picture by their own alphas
            alpha = pipe.scheduler.alphas_cumprod[int(timestep)]
            noises.append((x[1] - alpha.sqrt() * clean_CYX) / (1 - alpha).sqrt())
    for noise in noises[1:]:
        torch.testing.assert_close(noise, noises[0], rtol=0, atol=1e-4)  # the same at every step
    if noises:
        assert abs(float(noises[0].std()) - 1) < 0.1 and abs(float(noises[0].mean())) < 0.1
    assert torch.isfinite(latents).all()


def _encoded(pipe: Any, image: Image.Image) -> Tensor:
    """Mode of the autoencoder's posterior, scaled, by hand."""
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        moments = pipe.vae.quant_conv(pipe.vae.encoder(pixels))
    mean: Tensor = moments[0, : pipe.vae.config.latent_channels]
    return mean * pipe.vae.config.scaling_factor


def test_the_picture_is_encoded_as_the_autoencoder_does() -> None:
    pipe = tiny.sd()
    torch.testing.assert_close(encode_picture(find_adapter(pipe), photo()), _encoded(pipe, photo()))


def test_noise_depends_on_the_text_and_the_seed_alone() -> None:
    pipe = tiny.sd()
    alone = seen(pipe, [Pinned({0: photo()})], ["a dog"])[0][0][0]
    beside = seen(pipe, [Pinned({1: photo()})])[0][0][1]
    torch.testing.assert_close(alone, beside, rtol=0, atol=0)
    other = seen(pipe, [Pinned({0: photo()}, seed=1)], ["a dog"])[0][0][0]
    assert (other - alone).abs().max() > 0.5
    named = seen(pipe, [Pinned({0: photo()})], ["a cat"])[0][0][0]
    assert (named - alone).abs().max() > 0.5


@pytest.mark.parametrize("size", [(72, 40), (64, 96)])
def test_the_picture_is_asked_for_once_and_at_the_size_of_the_call(size: tuple[int, int]) -> None:
    control = Pinned({1: photo()})
    seen(tiny.sd(), [control], height=size[0], width=size[1])
    assert control.asked == [size]


def test_moves_that_are_pinned_are_in_no_trace_and_cost_nothing() -> None:
    pipe = tiny.sd()
    with t2ictl.controlled(pipe, [Pinned({1: photo()})]) as session:
        run(pipe, PROMPTS)
    assert session.trace == () and session.cost.extra_forwards == 0 and session.cost.forwards == 4 * 6


def test_the_random_direction_holds_what_its_base_holds() -> None:
    pipe = tiny.sd()
    held = seen(pipe, [Pinned({1: photo()})])[0]
    drawn = seen(pipe, [RandomDirection((), [0, 1, 2], base=[Pinned({1: photo()})])])[0]
    assert all(torch.equal(one[1], other[1]) for one, other in zip(held, drawn, strict=True))


def test_what_the_scheduler_gets_is_what_the_denoiser_saw() -> None:
    """The scheduler steps from the held sample: the latents after the step do not remember the noise of the row."""
    pipe = tiny.sd()
    ends = []
    for seed in (0, 1):
        generators = [torch.Generator().manual_seed(seed + each) for each in range(3)]
        ends.append(seen(pipe, [Pinned({1: photo()})], generator=generators)[1])
    assert torch.equal(ends[0][1], ends[1][1]) and not torch.equal(ends[0][0], ends[1][0])
    pipe.scheduler.set_timesteps(4)
    assert input_scale(pipe.scheduler, pipe.scheduler.timesteps[0]) == 1


def test_half_precision_autoencoders_are_upcast_and_come_back() -> None:
    pipe = tiny.sdxl(dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    made = encode_picture(find_adapter(pipe), photo())
    assert pipe.vae.dtype == torch.float16 and made.dtype == torch.float32
    pipe.vae.to(torch.float32)
    torch.testing.assert_close(made, encode_picture(find_adapter(pipe), photo()), rtol=0, atol=1e-6)


def test_an_error_in_the_autoencoder_leaves_it_as_it_was() -> None:
    pipe = tiny.sdxl(dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    keys = set(pipe.unet.__dict__)
    pipe.vae.encode = lambda *_: (_ for _ in ()).throw(RuntimeError("power cut"))
    with pytest.raises(RuntimeError, match="power cut"):
        seen(pipe, [Pinned({1: photo()})])
    assert pipe.vae.dtype == torch.float16 and set(pipe.unet.__dict__) == keys


def test_an_offloaded_autoencoder_is_refused() -> None:
    accelerate = pytest.importorskip("accelerate")
    pipe = tiny.sd()
    accelerate.cpu_offload_with_hook(pipe.vae, "cpu")
    with pytest.raises(UnsupportedPipeline, match="offloading"):
        encode_picture(find_adapter(pipe), photo())
