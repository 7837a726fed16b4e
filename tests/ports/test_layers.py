"""Attention layers and text of a denoiser, against what really runs and what really reaches the kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from t2ictl.attention.layers import Layer
from t2ictl.families import find_adapter
from tests import tiny_transformers as tiny
from tests.ports.port_cases import PLACES, calls_of, known

families = pytest.mark.parametrize("name", tiny.FAMILIES)
BLOCKS = {"flux": 5, "flux_schnell": 5, "chroma": 5}
THIRDS = {4: ["early", "early", "middle", "late"], 5: ["early", "early", "middle", "middle", "late"]}
TEXT = {"sd3": 16 + 24, "sd35": 16 + 24, "hunyuan_dit": 77 + 256}
CROSS = {
    "transformer_blocks.0.self": ("transformer_blocks.0.attn1", "none"),
    "transformer_blocks.0.cross": ("transformer_blocks.0.attn2", "keys"),
}
#: The layers of the first and of the last block: module, and where text stands among the keys.
EXPECTED = {
    "pixart_alpha": CROSS,
    "pixart_sigma": CROSS,
    "sana": {
        "transformer_blocks.3.linear": ("transformer_blocks.3.attn1", "none"),
        "transformer_blocks.3.cross": ("transformer_blocks.3.attn2", "keys"),
    },
    "hunyuan_dit": {"blocks.0.self": ("blocks.0.attn1", "none"), "blocks.3.cross": ("blocks.3.attn2", "keys")},
    "sd3": {"transformer_blocks.3.joint": ("transformer_blocks.3.attn", "last")},
    "sd35": {
        "transformer_blocks.1.joint": ("transformer_blocks.1.attn", "last"),
        "transformer_blocks.1.self": ("transformer_blocks.1.attn2", "none"),
    },
    "flux": {
        "transformer_blocks.0.joint": ("transformer_blocks.0.attn", "first"),
        "single_transformer_blocks.1.single": ("single_transformer_blocks.1.attn", "first"),
    },
}
KINDS = {
    "pixart_alpha": ["self", "cross"] * 4,
    "pixart_sigma": ["self", "cross"] * 4,
    "sana": ["linear", "cross"] * 4,
    "hunyuan_dit": ["self", "cross"] * 4,
    "sd3": ["joint"] * 4,
    "sd35": ["joint", "self"] * 2 + ["joint"] * 2,
    "flux": ["joint"] * 3 + ["single"] * 2,
}


def of_family(table: dict[str, Any], name: str) -> Any:
    return table.get(name, table["flux"])


class Kernels(TorchFunctionMode):
    """Heads, queries and keys of every call of the attention kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key"), args, strict=False)), **kwargs}
            query, key = given["query"], given["key"]
            self.shapes.append((query.shape[1], query.shape[2], key.shape[2]))
        return func(*args, **kwargs)


@families
def test_kinds_addresses_and_where_text_stands(name: str) -> None:
    port, _ = known(name)
    assert [layer.kind for layer in port.layers] == of_family(KINDS, name)
    found = {layer.address: layer for layer in port.layers}
    assert len(found) == len(port.layers)
    for address, (module, text) in of_family(EXPECTED, name).items():
        assert (found[address].module, found[address].text) == (module, text)
    words = [layer for layer in port.layers if layer.has_words]
    assert [layer.kind in ("cross", "joint", "single") for layer in port.layers] == [
        each in words for each in port.layers
    ]


@families
def test_depth_and_thirds_count_blocks(name: str) -> None:
    port, _ = known(name)
    blocks = list(port.blocks())
    count = BLOCKS.get(name, 4)
    assert len(blocks) == count
    for number, (block, module) in enumerate(blocks):
        own = [layer for layer in port.layers if layer.module.startswith(f"{block}.")]
        assert own and {layer.depth for layer in own} == {number / count}
        assert {layer.block for layer in own} == {THIRDS[count][number]}
        assert port.denoiser.get_submodule(block) is module


@families
def test_layers_stand_in_the_order_in_which_they_run(name: str) -> None:
    pipe = tiny.FAMILIES[name]()
    layers, ran = find_adapter(pipe).layers, []
    known_modules = {layer.module for layer in layers}
    for module_name, module in pipe.transformer.named_modules():
        if hasattr(module, "set_processor"):
            assert module_name in known_modules  # no layer is left out

            def note(*_: Any, module_name: str = module_name) -> None:
                ran.append(module_name)

            module.register_forward_pre_hook(note)
    calls = calls_of(pipe, "a cat")
    per_call = len(ran) // len(calls)
    assert ran[:per_call] == [layer.module for layer in layers]
    assert [layer.order for layer in layers] == list(range(len(layers)))


@families
@torch.no_grad()
def test_heads_places_and_text_are_those_that_reach_the_kernel(name: str) -> None:
    port, call = known(name)
    inputs = port.bind(call.args, call.kwargs)
    text = TEXT.get(name, tiny.TEXT)
    assert port.text_length(inputs) == text
    assert sum(each.shape[1] for each in port.texts(inputs)) == text
    with Kernels() as kernels:
        port.denoiser(*call.args, **call.kwargs)
    with_softmax = [layer for layer in port.layers if layer.kind != "linear"]
    size = port.latents(inputs).shape[2:]

    def expected(layer: Layer) -> tuple[int, int, int]:
        height, width = layer.size((size[0], size[1]))
        assert (height, width) == tiny.TOKENS and height * width == PLACES
        both = PLACES + text
        queries, keys = {"none": (PLACES, PLACES), "keys": (PLACES, text)}.get(layer.text, (both, both))
        return layer.heads, queries, keys

    assert kernels.shapes == [expected(layer) for layer in with_softmax]


def test_a_model_of_many_blocks_is_numbered_in_the_order_in_which_it_runs() -> None:
    layers = find_adapter(tiny.sd3(num_layers=11)).layers
    assert [layer.address for layer in layers] == [f"transformer_blocks.{number}.joint" for number in range(11)]
    assert [layer.block for layer in layers] == ["early"] * 4 + ["middle"] * 4 + ["late"] * 3


def test_a_patch_of_one_cell_is_a_map_of_the_latents_size() -> None:
    for name, stride in (("sana", 1), ("sd3", 2), ("flux", 2), ("pixart_alpha", 2)):
        port, _ = known(name)
        assert {layer.stride for layer in port.layers} == {stride} == {port.cell_multiple}


@pytest.mark.parametrize("name", ["pixart_alpha", "pixart_sigma", "sana"])
@torch.no_grad()
def test_text_as_cross_attention_reads_it(name: str) -> None:
    port, call = known(name)
    read: list[torch.Tensor] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        read.append(kwargs["encoder_hidden_states"])

    cross = next(layer for layer in port.layers if layer.kind == "cross")
    with port.denoiser.get_submodule(cross.module).register_forward_pre_hook(note, with_kwargs=True):
        port.denoiser(*call.args, **call.kwargs)
    rows_RTC = port.texts(port.bind(call.args, call.kwargs))[0]
    assert torch.equal(port.attended_text(rows_RTC), read[0])


@families
@torch.no_grad()
def test_without_text_nothing_but_the_rows_speaks_of_a_prompt(name: str) -> None:
    """With the same rows, the calls of two prompts are one call."""
    pipe, found = tiny.FAMILIES[name](), []
    port = find_adapter(pipe).port
    for prompt in ("a red circle", "a photo of a small green cat"):
        call = calls_of(pipe, prompt)[0]
        inputs = port.bind(call.args, call.kwargs)
        rows = {key: torch.linspace(-1, 1, inputs[key].numel()).view_as(inputs[key]) for key in port.text_names}
        found.append(port.denoiser(**port.without_text({**inputs, **rows, "return_dict": False}))[0])
    assert torch.equal(*found)
