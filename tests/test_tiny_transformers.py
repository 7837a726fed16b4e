"""The tiny transformer pipelines are what the other tests take them for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tests import tiny_transformers as tiny
from tests.tiny_variants import VARIANTS

ALL: dict[str, Callable[..., Any]] = tiny.FAMILIES | VARIANTS
PROMPT = "a red circle and a blue square"
PACKED = ("flux", "chroma")
families = pytest.mark.parametrize("name", tiny.FAMILIES)
everything = pytest.mark.parametrize("name", ALL)


class Kernels(TorchFunctionMode):
    """Notes queries, keys and mask of every attention kernel call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            self.calls.append((given["query"], given["key"], given.get("attn_mask")))
        return func(*args, **kwargs)


def _text_maps(name: str, query_BHQD: torch.Tensor, key_BHKD: torch.Tensor, mask: Any) -> torch.Tensor:
    """How the last row's places divide their attention to text among its tokens, mean over heads: (N, T)."""
    logits_BHQK = query_BHQD @ key_BHKD.mT / math.sqrt(query_BHQD.shape[-1])
    logits_BHQK = logits_BHQK if mask is None else logits_BHQK + mask
    maps_QK = logits_BHQK.softmax(-1)[-1].mean(0)
    places, total = math.prod(tiny.TOKENS), maps_QK.shape[1]
    if query_BHQD.shape[2] != places:  # one sequence of image and text
        maps_QK = maps_QK[-places:, : total - places] if name.startswith(PACKED) else maps_QK[:places, places:]
    return maps_QK / maps_QK.sum(-1, keepdim=True)


def _pass(name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The sample of the first evaluation, as a leaf, and the text maps of every block in one pass from it."""
    pipe = tiny.FAMILIES[name]()
    seen: list[tuple[Any, Any]] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        seen.append((args, kwargs))

    with pipe.transformer.register_forward_pre_hook(note, with_kwargs=True):
        tiny.run(pipe, PROMPT, steps=2)  # one step is a special case of PixArt-Alpha's pipeline
    args, kwargs = seen[0]
    sample = (args[0] if args else kwargs["hidden_states"]).detach().clone().requires_grad_(True)
    kwargs = kwargs if args else kwargs | {"hidden_states": sample}
    with Kernels() as kernels:
        pipe.transformer(*((sample, *args[1:]) if args else ()), **kwargs)
    alone = math.prod(tiny.TOKENS)  # a call with that many keys is attention of the image to itself
    return sample, [_text_maps(name, *call) for call in kernels.calls if call[1].shape[2] != alone]


def test_all_are_there() -> None:
    assert list(tiny.FAMILIES) == [
        "pixart_alpha",
        "pixart_sigma",
        "sana",
        "hunyuan_dit",
        "sd3",
        "sd35",
        "flux",
        "flux_schnell",
        "chroma",
    ]
    assert len(VARIANTS) == 16


@everything
def test_repeatable_and_silent_about_randomness(name: str) -> None:
    before = torch.get_rng_state()
    first, second = (tiny.run(ALL[name](), PROMPT, steps=2) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.isfinite(first).all()


@everything
def test_seeds_of_weights_and_of_noise_matter(name: str) -> None:
    pipe = ALL[name]()
    latents = tiny.run(pipe, PROMPT, steps=2)
    assert not torch.equal(latents, tiny.run(pipe, PROMPT, steps=2, seed=1))
    assert not torch.equal(latents, tiny.run(ALL[name](seed=1), PROMPT, steps=2))


@everything
def test_words_matter(name: str) -> None:
    pipe = ALL[name]()
    square = tiny.run(pipe, PROMPT, steps=2)
    cat = tiny.run(pipe, "a red circle and a blue cat", steps=2)
    assert (cat - square).norm() > 0.01 * square.norm()


@everything
def test_two_prompts_with_two_images_each(name: str) -> None:
    pipe = ALL[name]()
    latents = tiny.run(pipe, ["a red cat", "a giraffe"], steps=2, num_images_per_prompt=2)
    assert latents.shape[0] == 4
    assert torch.isfinite(latents).all()
    assert not torch.equal(latents[0], latents[1])


@families
def test_latents_are_higher_than_wide_and_the_other_way_round_runs(name: str) -> None:
    pipe = tiny.FAMILIES[name]()
    height, width = tiny.size(pipe)
    side = 2 if name != "sana" else 1  # cells of a token
    rows, columns = (side * tokens for tokens in tiny.TOKENS)
    channels = 8 if name.startswith("sd3") else 4
    shape = (1, rows * columns // 4, 16) if name.startswith(PACKED) else (1, channels, rows, columns)
    assert tiny.run(pipe, PROMPT, steps=2).shape == shape
    turned = tiny.run(pipe, PROMPT, steps=2, height=width, width=height)
    assert turned.shape == (shape if name.startswith(PACKED) else (1, channels, columns, rows))


@families
def test_maps_differ_from_place_to_place_and_have_gradients(name: str) -> None:
    sample, blocks = _pass(name)
    assert len(blocks) >= 4
    for maps_NT in blocks:
        top_T = maps_NT.mean(0).topk(4).indices
        spread = maps_NT[:, top_T].std(0) / maps_NT[:, top_T].mean(0)
        assert spread.mean() > 0.3
        peak = maps_NT[:, top_T[1]].max()
        (gradient,) = torch.autograd.grad(peak, sample, retain_graph=True)
        assert gradient.norm() * sample.norm() > 0.1 * peak


@pytest.mark.parametrize("name", [name for name in VARIANTS if "controlnet" in name])
def test_controlnet_has_an_effect(name: str) -> None:
    pipe = VARIANTS[name]()
    latents = tiny.run(pipe, PROMPT, steps=2)
    without = tiny.run(pipe, PROMPT, steps=2, controlnet_conditioning_scale=0.0)
    assert (latents - without).norm() > 0.02 * without.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@families
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    latents = tiny.run(tiny.FAMILIES[name](dtype=dtype), PROMPT, steps=2)
    assert torch.isfinite(latents).all()


@families
def test_latents_become_an_image(name: str) -> None:
    pipe = tiny.FAMILIES[name]()
    image = tiny.run(pipe, PROMPT, steps=2, output_type="pt")
    assert image.shape == (1, 3, *tiny.size(pipe))


def test_the_stock_instruction_of_sana_is_read() -> None:
    pipe = tiny.sana()
    latents = tiny.run(pipe, PROMPT, steps=2)
    assert not torch.equal(latents, tiny.run(pipe, PROMPT, steps=2, complex_human_instruction=None))


def test_negative_prompts_make_flux_evaluate_twice() -> None:
    calls: list[int] = []
    pipe = tiny.flux()
    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    tiny.run(pipe, PROMPT, steps=2, negative_prompt="a cat", true_cfg_scale=2.0)
    assert len(calls) == 4


def test_configuration_goes_to_the_transformer() -> None:
    assert len(tiny.pixart_sigma(num_layers=6).transformer.transformer_blocks) == 6
    assert tiny.flux_schnell().transformer.config.guidance_embeds is False
    assert tiny.flux_schnell().scheduler.config.use_dynamic_shifting is False
