"""Attention layers of a denoiser: their order and the sizes of their maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from t2ictl.families import find_adapter
from tests.tiny import sd, sdxl, unet


@pytest.mark.parametrize("build", [sd, sdxl])
def test_layers_stand_in_the_order_in_which_the_denoiser_runs_them(build: Any) -> None:
    pipe = build()
    ran: list[str] = []
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))  # type: ignore[misc]
    pipe("a cat", num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    layers = find_adapter(pipe).layers
    assert [layer.module for layer in layers] == ran
    assert [layer.order for layer in layers] == list(range(len(ran)))
    assert len({layer.address for layer in layers}) == len(ran) == len(pipe.unet.attn_processors)


@pytest.mark.parametrize("size", [(16, 16), (13, 17), (14, 18), (1, 3), (7, 64)])
def test_map_sizes_are_those_of_the_denoiser(size: tuple[int, int]) -> None:
    model = unet()
    positions: dict[str, int] = {}
    for name, module in model.named_modules():
        if name.endswith(("attn1", "attn2")):

            def note(_: Any, args: Any, name: str = name) -> None:
                positions[name] = args[0].shape[1]

            module.register_forward_pre_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 4, *size), 1, torch.zeros(1, 16, 32))
    pipe = sd()
    pipe.unet = model
    for layer in find_adapter(pipe).layers:
        height, width = layer.size(size)
        assert height * width == positions[layer.module]
