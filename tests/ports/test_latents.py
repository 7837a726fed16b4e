"""Latents inside the arguments of a denoiser: found, exchanged, and what stands beside them left alone."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from torch import Tensor

from t2ictl.ports.flux import packed, unpacked
from tests.ports.port_cases import BUILDS, PLACES, known, made

everything = pytest.mark.parametrize("name", BUILDS)
# Channels of the latents; what stands behind them belongs to inpainting.
CHANNELS = {"sd3": 8, "sd35": 8, "sd3_img2img": 8, "sd3_controlnet": 8, "sd3_controlnet_inpaint": 8}
CHANNELS |= {"sd3_inpaint": 16, "sd3_inpaint_33": 16}
SIDES = {"sd": (16, 16), "sdxl": (16, 16), "sd_inpaint_9": (16, 16), "sana": (8, 6), "sana_controlnet": (8, 6)}


def is_packed(name: str) -> bool:
    return name.startswith(("flux", "chroma"))


def drawn(x_RCYX: Tensor) -> Tensor:
    return torch.randn(x_RCYX.shape, generator=torch.Generator().manual_seed(7)).to(x_RCYX)


@everything
def test_latents_have_the_channels_and_sides_of_the_scheduler_sample(name: str) -> None:
    port, call = known(name)
    inputs = port.bind(call.args, call.kwargs)
    rows = 4 if is_packed(name) else 8  # FLUX and Chroma have no guidance within the batch
    size = SIDES.get(name, (16, 12))
    assert port.latent_channels == CHANNELS.get(name, 4)
    assert port.latents(inputs).shape == (rows, CHANNELS.get(name, 4), *size)


@everything
def test_there_and_back_again_is_exact(name: str) -> None:
    port, call = known(name)
    inputs = port.bind(call.args, call.kwargs)
    again = port.with_latents(inputs, port.latents(inputs))
    assert torch.equal(again[port.sample_name], inputs[port.sample_name])
    assert list(again) == list(inputs)
    assert all(again[key] is inputs[key] for key in inputs if key != port.sample_name)


@everything
def test_other_latents_take_their_place_and_nothing_else_changes(name: str) -> None:
    port, call = known(name)
    inputs = port.bind(call.args, call.kwargs)
    before, other_RCYX = inputs[port.sample_name].clone(), drawn(port.latents(inputs))
    changed = port.with_latents(inputs, other_RCYX)
    assert torch.equal(port.latents(changed), other_RCYX)
    assert torch.equal(inputs[port.sample_name], before)  # nothing is written into what the pipeline holds
    own, channels = changed[port.sample_name], other_RCYX.shape[1]
    assert own.shape == before.shape
    if is_packed(name):
        assert torch.equal(own[:, :PLACES, 4 * channels :], before[:, :PLACES, 4 * channels :])
        assert torch.equal(own[:, PLACES:], before[:, PLACES:])
    else:
        assert torch.equal(own[:, channels:], before[:, channels:])


def test_what_stands_beside_latents() -> None:
    """The cases above are not empty: masks in further channels, an image in further tokens."""
    beside = {name: known(name) for name in ("sd_inpaint_9", "sd3_inpaint_33", "flux_fill", "flux_kontext")}
    shapes = {name: port.bind(call.args, call.kwargs)[port.sample_name].shape for name, (port, call) in beside.items()}
    assert shapes == {
        "sd_inpaint_9": (8, 9, 16, 16),
        "sd3_inpaint_33": (8, 33, 16, 12),
        "flux_fill": (4, PLACES, 96),
        "flux_kontext": (4, 2 * PLACES, 16),
    }
    ids = beside["flux_kontext"][1].kwargs["img_ids"]
    assert ids[:PLACES, 0].unique().tolist() == [0] and ids[PLACES:, 0].unique().tolist() == [1]


@everything
def test_the_form_in_which_the_pipeline_steps(name: str) -> None:
    port, call = known(name)
    x_RCYX = port.latents(port.bind(call.args, call.kwargs))
    images = 4
    assert call.sample is not None
    assert port.pipeline_form(x_RCYX[:images]).shape == call.sample.shape
    if name not in ("sd", "sdxl", "sd_inpaint_9"):  # their first samples are scaled
        assert torch.equal(port.pipeline_form(x_RCYX[:images]), call.sample)


@pytest.mark.parametrize("name", ["flux", "chroma", "flux_kontext", "flux_fill"])
def test_latents_are_those_that_the_pipeline_unpacks(name: str) -> None:
    port, call = known(name)
    inputs = port.bind(call.args, call.kwargs)
    own_RNC = inputs["hidden_states"][:, :PLACES, :16].contiguous()
    assert torch.equal(port.latents(inputs), FluxPipeline._unpack_latents(own_RNC, 64, 48, 4))
    assert torch.equal(port.pipeline_form(port.latents(inputs)), own_RNC)


def test_ids_with_a_batch_are_read_as_well() -> None:
    port, call = made("flux")
    inputs = port.bind(call.args, call.kwargs)
    batched = {**inputs, "img_ids": inputs["img_ids"].expand(4, -1, -1)}
    assert torch.equal(port.latents(batched), port.latents(inputs))


def test_another_size_of_the_same_model_is_another_grid() -> None:
    """The ids are read anew: the sides of the call before are not taken for those of this one."""
    port, call = made("flux")
    inputs = port.bind(call.args, call.kwargs)
    assert port.latents(inputs).shape[2:] == (16, 12)
    turned = {**inputs, "img_ids": FluxPipeline._prepare_latent_image_ids(1, 6, 8, "cpu", torch.float32)}
    assert port.latents(turned).shape[2:] == (12, 16)
    kontext = FluxKontextPipeline._prepare_latent_image_ids(1, 4, 12, "cpu", torch.bfloat16)
    assert port.latents({**inputs, "img_ids": kontext}).shape[2:] == (8, 24)


@pytest.mark.parametrize("size", [(2, 2), (2, 8), (6, 4), (10, 14)])
@pytest.mark.parametrize("channels", [1, 4, 16])
def test_packing_is_that_of_a_slow_loop_and_of_diffusers(size: tuple[int, int], channels: int) -> None:
    height, width = size
    x_BCYX = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(0))
    slow_BNC = torch.zeros(3, height * width // 4, channels * 4)
    for row in range(height // 2):
        for column in range(width // 2):
            for channel in range(channels):
                for down in range(2):
                    for right in range(2):
                        token = row * (width // 2) + column
                        value_B = x_BCYX[:, channel, 2 * row + down, 2 * column + right]
                        slow_BNC[:, token, 4 * channel + 2 * down + right] = value_B
    assert torch.equal(packed(x_BCYX), slow_BNC)
    assert torch.equal(packed(x_BCYX), FluxPipeline._pack_latents(x_BCYX, 3, channels, height, width))
    assert torch.equal(unpacked(slow_BNC, height // 2, width // 2), x_BCYX)
    assert torch.equal(FluxPipeline._unpack_latents(slow_BNC, 8 * height, 8 * width, 8), x_BCYX)


def test_a_gradient_passes_through_packing() -> None:
    port, call = known("flux_fill")
    inputs = port.bind(call.args, call.kwargs)
    x_RCYX = port.latents(inputs).clone().requires_grad_(True)
    weights = drawn(inputs["hidden_states"])
    total = (port.with_latents(inputs, x_RCYX)["hidden_states"] * weights).sum()
    (gradient_RCYX,) = torch.autograd.grad(total, [x_RCYX])
    assert torch.equal(packed(gradient_RCYX), weights[..., :16])
